"""Second moments of minibatch SGD in a few dozen numbers, at a cost that does not grow with the horizon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from sgdsde._checks import complaint, finite_number
from sgdsde._types import Progress
from sgdsde.dynamics.dynamics import Dynamics, NoiseSource
from sgdsde.dynamics.moment_recursion import MomentRecursion
from sgdsde.dynamics.moments.modes import is_shared
from sgdsde.dynamics.moments.reduced.prediction import EXACT_STEPS, ReducedLaws, ReducedPrediction, TooInaccurateError
from sgdsde.dynamics.moments.reduced.resolvent import PastLimitError
from sgdsde.dynamics.shared_kernel import TracedRecursion
from sgdsde.kernel import KroneckerKernel
from sgdsde.linearization import Linearization
from sgdsde.losses import SquaredError
from sgdsde.sgd import SGD

SMALLEST_TOLERANCE = 1e-7
MOST_RECORDED = 20_000
LONGEST_FALL_BACK = 100_000
LONGEST_TRUNCATED = 10_000
LEAST_COST = 100
"""Plain steps that every reduced prediction costs at least."""


def cost_in_plain_steps(rank: int, n_settings: int = 1) -> float:
    """What a reduced prediction costs, in steps of ``MomentRecursion``: measured at ranks 128, 256 and 1024."""
    return 30 + n_settings * (60 + 30_000 / rank)


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

    Args:
        tolerance: relative error of the expected training loss while that is above 1e-4 of its start.
    Exactness: exact for the first 16 steps; then to ``Trajectory.estimated_error``, by how much the model changes when
        every fifth pole is left out, twice: 1.4 to 200 times the true error in 300 cases. Poles are added until it is
        below the tolerance. Spreads, outputs and test losses have no resolvents of their own: test losses were within
        1e-4, standard deviations within 1 %.
    Cost: 16 plain steps and about 60 to 100 more whatever the horizon, for a schedule several times that; N r^2
        numbers, N = 30 to 60. A recorded step costs N r^2 operations, with a test set 2 r^3 more for its spread.
    Source: derived in docs/derivations.md.
    """

    tolerance: float = 1e-4

    squared_error_only: ClassVar[bool] = True
    independent_batches_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        tolerance = finite_number("tolerance", self.tolerance)
        if not SMALLEST_TOLERANCE <= tolerance <= 0.1:
            remedy = "use MomentRecursion() for full precision"
            raise ValueError(complaint("tolerance", f"between {SMALLEST_TOLERANCE:g} and 0.1", tolerance, remedy))
        object.__setattr__(self, "tolerance", tolerance)

    @staticmethod
    def is_cheaper(linearization: Linearization, sgd: SGD, n_steps: int) -> bool:
        """Whether the model can represent this training, at less than the cost of ``n_steps`` of the recursion."""
        if not isinstance(linearization.problem.criterion, SquaredError) or sgd.momentum or sgd.sampling == "shuffled":
            return False
        if linearization.basis is not None or isinstance(linearization.kernel, KroneckerKernel):
            return False
        if linearization.outputs.dtype != torch.float64:
            return False
        if n_steps <= LEAST_COST:
            return False
        return n_steps > cost_in_plain_steps(len(linearization.eigenbasis.values), 1 if sgd.is_constant else 4)

    @property
    def noise_source(self) -> NoiseSource | None:
        return "state"

    def evolve(
        self, linearization: Linearization, sgd: SGD, record: Sequence[int], *, progress: Progress = None
    ) -> ReducedLaws:
        self.check(linearization, sgd)
        if sgd.momentum:
            raise self.refuse("momentum", "dynamics.MomentRecursion()")
        if len(record) > MOST_RECORDED:
            remedy = "omit record for about 50 geometric steps"
            raise ValueError(complaint("record", f"at most {MOST_RECORDED:,} steps", f"{len(record):,}", remedy))
        if _has_tail(linearization) and record[-1] > LONGEST_TRUNCATED:
            reason = f"more than {LONGEST_TRUNCATED:,} steps of a truncated kernel, whose tail moves meanwhile"
            raise self.refuse(reason, "the whole kernel, linearize(problem), or dynamics.Volterra()")
        if linearization.outputs.dtype != torch.float64:
            return self._plain(linearization, sgd, record, progress, "single precision")
        if record[-1] <= EXACT_STEPS:
            return self._plain(linearization, sgd, record, progress, f"{EXACT_STEPS} steps or fewer")
        try:
            return ReducedPrediction(linearization, sgd, record, self.tolerance).laws(progress)
        except TooInaccurateError as error:
            return self._plain(linearization, sgd, record, progress, str(error))
        except PastLimitError:
            return self._plain(linearization, sgd, record, progress, "beyond the mean-square limit")
        except MemoryError as error:
            return self._plain(linearization, sgd, record, progress, str(error))

    def _plain(
        self, linearization: Linearization, sgd: SGD, record: Sequence[int], progress: Progress, reason: str
    ) -> ReducedLaws:
        """The recursion itself, which has no limit but its cost."""
        if record[-1] > LONGEST_FALL_BACK:
            expected, received = "a setting that ReducedMoments can represent over so many steps", f"one {reason}"
            remedy = f"lower n_steps below {LONGEST_FALL_BACK:,}, or ask for dynamics=MomentRecursion()"
            raise ValueError(complaint("sgd", expected, received, remedy))
        plain = TracedRecursion() if is_shared(linearization) else MomentRecursion()
        return ReducedLaws(
            iter(plain.evolve(linearization, sgd, record, progress=progress)), f"{plain!r} for {self!r}: {reason}"
        )


def _has_tail(linearization: Linearization) -> bool:
    return linearization.basis is not None and linearization.basis.tail is not None
