"""Second moments of minibatch SGD in a few dozen numbers, at a cost that does not grow with the horizon."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from sgdsde._checks import complaint, finite_number, whole_number
from sgdsde._types import Progress
from sgdsde.dynamics.dynamics import Dynamics, NoiseSource, alternative
from sgdsde.dynamics.moment_recursion import MomentRecursion
from sgdsde.dynamics.moments.modes import is_shared
from sgdsde.dynamics.moments.reduced.epoch_prediction import ShuffledPrediction
from sgdsde.dynamics.moments.reduced.first_steps import exact_steps
from sgdsde.dynamics.moments.reduced.prediction import ReducedLaws, ReducedPrediction, TooInaccurateError
from sgdsde.dynamics.moments.reduced.resolvent import PastLimitError
from sgdsde.dynamics.shared_kernel import TracedRecursion
from sgdsde.kernel import KroneckerKernel
from sgdsde.linearization import Linearization
from sgdsde.losses import SquaredError
from sgdsde.sgd import SGD

SMALLEST_TOLERANCE = 1e-7
MOST_RECORDED = 20_000
LONGEST_FALL_BACK = 100_000
LONGEST_FROZEN = 10_000
LEAST_COST = 100
"""Plain steps that every reduced prediction costs at least."""

MOMENTUM_COST = 1.4
"""Cost of a model with momentum, in steps with momentum, in units of one without, in steps without."""

SHUFFLED_COST = 3000
"""Steps of the closure of shuffled epochs that sampled epochs cost where no spread is followed by itself: at most."""


def cost_in_plain_steps(rank: int, n_settings: int = 1) -> float:
    """What a reduced prediction costs, in steps of ``MomentRecursion``: measured at ranks 128, 256 and 1024."""
    return 30 + n_settings * (60 + 30_000 / rank)


def pays_after(sgd: SGD, rank: int) -> float:
    """Steps of the recursion that a reduced prediction costs; infinite where it cannot be made."""
    if sgd.momentum:
        if beyond_momentum(sgd):
            return math.inf
        return exact_steps(sgd, ReducedMoments.tolerance) + MOMENTUM_COST * cost_in_plain_steps(rank)
    if sgd.sampling == "shuffled":
        return SHUFFLED_COST if sgd.is_constant else math.inf
    return cost_in_plain_steps(rank, 1 if sgd.is_constant else 4)


@dataclass(frozen=True)
class ReducedMoments(Dynamics):
    """``MomentRecursion`` projected on a few dozen symmetric matrices.

    In Y = H^-1/2 M H^-1/2, M = E[e e^T] in the eigenbasis of K, one step of SGD is self-adjoint and a polynomial in lr
    and q = phi/B,

        Y' = T Y + sources,   T = 1 - lr A1 + lr^2 (1 - q) A2 + lr^2 q A3,
        A1 = (h_i + h_j) o,   A2 = (h_i h_j) o,   A3 = n C C^T,

    and the expected loss is (s/2n) (<diag h, Y> + |f|^2), f the immovable part of the residual. The space is spanned by
    (1 + t - T)^-1 Y_0 and (1 + t - T)^-1 diag h at poles t + mu log-spaced from 1/2 down to a tenth of mu, the slowest
    rate of T. Because the loss has resolvents of its own, errors are squared; because T is self-adjoint, nothing can
    become unstable. Constant settings are jumped over, schedules stepped through with N x N products.

    Shuffled epochs: the map of a whole epoch, Y -> E[G Y G^T] over orders of the batches, is projected from sampled
    orders, and its powers are the epochs; the first two epochs are 4096 sampled runs, steps within later ones are parts
    of the same orders.

    With momentum, at constant settings: the model starts after 14 / (1 - momentum) steps, when oscillations have died
    out. T is not self-adjoint, so the loss has a family (z - T^T)^-1 L of its own, to which the residual is made
    orthogonal; directions of this oblique projection that grow, though T does not, are left out.

    Args:
        tolerance: relative error of the expected training loss while that is above 1e-4 of its start; 1 % over shuffled
            epochs, if that is more.
        seed: of sampled orders.
    Exactness: exact for the first 16 steps, with momentum 16 / (1 - momentum), the last of which check the model; then
        to ``Trajectory.estimated_error``, by how much the model changes when every fifth pole is left out, twice: 1.4
        to 200 times the true error in 300 cases. Poles are added until it is below the tolerance. Spreads, outputs and
        test losses have no resolvents of their own: test losses were within 1e-4, standard deviations within 1 %, with
        momentum within 5 %.
        Shuffled epochs, 256 digits at 0.3 of the limit against sampled runs of the linearized model: 0.2 % at B = 32
        (50 epochs) and 0.6 % at B = 8 (20 epochs) with 64 orders. Reported are two standard errors, from leaving out
        one eighth of the orders after the other, and what a coarser space changes; orders are added, up to 1024, until
        that is below the tolerance. Standard deviations were within a tenth, beside a null space within 40 %.
    Cost: 16 plain steps and about 60 to 100 more whatever the horizon, for a schedule several times that; N r^2
        numbers, N = 30 to 60. With momentum its exact steps and 200 to 300 more at rank 256; 4 N r^2 numbers. A
        recorded step costs N r^2 operations, with a test set 2 r^3 more for its spread.
        Shuffled epochs: 4 N r^3 operations for each of 64 to 1024 orders, 4 r^3 for each order and recorded step that
        does not end an epoch; together as many as some 3000 steps of the closure.
    Raises:
        ValueError: momentum with weight decay, a schedule, shuffled epochs or a tail that is followed; over shuffled
            epochs a schedule or a truncated eigenbasis; more steps than a fall-back to the recursion can take.
    Source: derived in docs/derivations.md.
    """

    tolerance: float = 1e-4
    seed: int = field(default=0, repr=False)

    squared_error_only: ClassVar[bool] = True
    follows_bulk: ClassVar[bool] = True

    def __post_init__(self) -> None:
        tolerance = finite_number("tolerance", self.tolerance)
        if not SMALLEST_TOLERANCE <= tolerance <= 0.1:
            remedy = "use MomentRecursion() for full precision"
            raise ValueError(complaint("tolerance", f"between {SMALLEST_TOLERANCE:g} and 0.1", tolerance, remedy))
        object.__setattr__(self, "tolerance", tolerance)
        object.__setattr__(self, "seed", whole_number("seed", self.seed))

    @staticmethod
    def is_cheaper(linearization: Linearization, sgd: SGD, n_steps: int) -> bool:
        """Whether the model can represent this training, at less than the cost of ``n_steps`` of the recursion."""
        if not isinstance(linearization.problem.criterion, SquaredError):
            return False
        if linearization.basis is not None or isinstance(linearization.kernel, KroneckerKernel):
            return False
        if linearization.outputs.dtype != torch.float64:
            return False
        return n_steps > LEAST_COST and n_steps > pays_after(sgd, len(linearization.eigenbasis.values))

    @property
    def noise_source(self) -> NoiseSource | None:
        return "state"

    def evolve(
        self, linearization: Linearization, sgd: SGD, record: Sequence[int], *, progress: Progress = None
    ) -> ReducedLaws:
        self.check(linearization, sgd)
        self._check_setting(linearization, sgd)
        if len(record) > MOST_RECORDED:
            remedy = "omit record for about 50 geometric steps"
            raise ValueError(complaint("record", f"at most {MOST_RECORDED:,} steps", f"{len(record):,}", remedy))
        if _is_frozen(linearization) and record[-1] > LONGEST_FROZEN:
            reason = f"more than {LONGEST_FROZEN:,} steps of a frozen tail, which moves meanwhile"
            raise self.refuse(reason, 'truncate(rank, tail="followed"), or the whole kernel, linearize(problem)')
        if linearization.outputs.dtype != torch.float64:
            return self._plain(linearization, sgd, record, progress, "single precision")
        if record[-1] <= (first := exact_steps(sgd, self.tolerance)):
            return self._plain(linearization, sgd, record, progress, f"{first} steps or fewer")
        sgd = independent_if_one_step(sgd, linearization.problem.n_train)
        try:
            if sgd.sampling == "shuffled":
                tolerance, seed = self.tolerance, self.seed
                return ShuffledPrediction(linearization, sgd, record, tolerance=tolerance, seed=seed).laws(progress)
            return ReducedPrediction(linearization, sgd, record, self.tolerance).laws(progress)
        except TooInaccurateError as error:
            return self._plain(linearization, sgd, record, progress, str(error))
        except PastLimitError:
            return self._plain(linearization, sgd, record, progress, "beyond the mean-square limit")
        except MemoryError as error:
            return self._plain(linearization, sgd, record, progress, str(error))

    def _check_setting(self, linearization: Linearization, sgd: SGD) -> None:
        if sgd.momentum:
            reasons = beyond_momentum(sgd) + ["momentum where a tail is followed"] * _is_followed(linearization)
            if reasons:
                raise self.refuse(" and ".join(reasons), alternative(linearization, sgd))
        if sgd.sampling != "shuffled":
            return
        if not sgd.is_constant:
            raise self.refuse("schedules over shuffled epochs", alternative(linearization, sgd))
        if linearization.basis is not None:
            raise self.refuse("shuffled epochs on a truncated eigenbasis", alternative(linearization, sgd))

    def _plain(
        self, linearization: Linearization, sgd: SGD, record: Sequence[int], progress: Progress, reason: str
    ) -> ReducedLaws:
        """The recursion itself, which has no limit but its cost."""
        if record[-1] > LONGEST_FALL_BACK:
            expected, received = "a setting that ReducedMoments can represent over so many steps", f"one {reason}"
            remedy = f"lower n_steps below {LONGEST_FALL_BACK:,}, or ask for dynamics=MomentRecursion()"
            raise ValueError(complaint("sgd", expected, received, remedy))
        fresh = sgd.sampling != "shuffled"
        plain = TracedRecursion() if is_shared(linearization) and fresh else MomentRecursion()
        return ReducedLaws(
            iter(plain.evolve(linearization, sgd, record, progress=progress)), f"{plain!r} for {self!r}: {reason}"
        )


def beyond_momentum(sgd: SGD) -> list[str]:
    """What cannot be represented together with momentum, by name."""
    checks = {
        "shuffled epochs with momentum": sgd.sampling == "shuffled",
        "schedules with momentum": not sgd.is_constant,
        "weight decay with momentum": bool(sgd.weight_decay),
    }
    return [reason for reason, holds in checks.items() if holds]


def _is_followed(linearization: Linearization) -> bool:
    basis = linearization.basis
    return basis is not None and basis.tail is not None and basis.tail.bulk is not None


def _is_frozen(linearization: Linearization) -> bool:
    basis = linearization.basis
    return basis is not None and basis.tail is not None and basis.tail.bulk is None


def independent_if_one_step(sgd: SGD, n_train: int) -> SGD:
    """The same training with fresh batches, where every epoch is one step."""
    if sgd.sampling != "shuffled" or not sgd.is_constant:
        return sgd
    full, rest = divmod(n_train, sgd.batch_size_at(0))
    if full + (rest > 0 and not sgd.drop_last) > 1:
        return sgd
    return replace(sgd, sampling="without_replacement", drop_last=False)
