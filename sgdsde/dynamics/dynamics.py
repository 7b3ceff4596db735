"""The interface of a dynamics: the evolution of the law of the outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, TypeAlias

from sgdsde._types import Progress
from sgdsde.dynamics.output_law import OutputLaw
from sgdsde.linearization import Linearization
from sgdsde.losses import SquaredError
from sgdsde.problem import Problem
from sgdsde.sgd import SGD

NoiseSource: TypeAlias = Literal["none", "start", "mean", "state"]
"""What the noise of a dynamics is evaluated at: not at all, the start, the mean, or mean and spread."""


class Dynamics(ABC):
    """Evolves the law of the outputs from the linearization at initialization; never computes a loss.

    Attributes:
        squared_error_only, smooth_loss_only, independent_batches_only: what ``check`` refuses besides what no theory
            represents; a smooth loss has a second derivative. freezes_kernel: whether the kernel stays that of the
            initial weights. follows_bulk: whether noise reaches the directions that have no modes (``BulkState``).
    """

    squared_error_only: ClassVar[bool] = False
    smooth_loss_only: ClassVar[bool] = False
    freezes_kernel: ClassVar[bool] = True
    independent_batches_only: ClassVar[bool] = False
    follows_bulk: ClassVar[bool] = False

    @property
    def needs_spectrum(self) -> bool:
        """Whether the kernel is decomposed, which takes five times its memory, or only multiplied with."""
        return True

    def look(self, problem: Problem, sgd: SGD, n_steps: int) -> str:
        """Refuses, before anything is computed, what a cheap look at the network shows to be out of range.

        Returns:
            What was looked at, among the assumptions of the prediction; empty where nothing was.
        Raises:
            ValueError: says what was seen, and what to do.
        """
        return ""

    @property
    def noise_source(self) -> NoiseSource | None:
        """Where the noise is taken, of a dynamics that follows the kernel's eigenpairs; None where it does not."""
        return None

    def assumptions(self, sgd: SGD) -> tuple[str, ...]:
        """Assumptions of this theory about this SGD, in words: kernel first, then noise and closure."""
        kernel = ("the kernel stays that of the initial weights",) if self.freezes_kernel else ()
        noise = self.noise_assumption(sgd)
        return (*kernel, noise) if noise else kernel

    def noise_assumption(self, sgd: SGD) -> str:
        """The idealization of the noise of minibatches, in words; empty where nothing is said."""
        return ""

    @abstractmethod
    def evolve(
        self, linearization: Linearization, sgd: SGD, record: Sequence[int], *, progress: Progress = None
    ) -> Iterator[OutputLaw]:
        """One law for each step of ``record`` (sorted, from 0 on)."""

    def check(self, linearization: Linearization, sgd: SGD) -> None:
        """Refuses a setting that this dynamics cannot represent.

        Raises:
            ValueError: everything that stands in the way, and a dynamics (with changes of the SGD where none can do
                without) that represents this very problem.
        """
        loss, own = type(linearization.problem.loss).__name__, []
        if self.squared_error_only and not _is_squared(linearization):
            own.append(f"the loss {loss}")
        if self.smooth_loss_only and (kink := linearization.problem.criterion.kink):  # looked for when it matters
            own.append(f"a loss without second derivative ({loss}, {kink})")
        if self.independent_batches_only and sgd.sampling == "shuffled":
            own.append("shuffled epochs")
        of_all = _unknown_to_all(linearization, sgd)
        if own:
            raise self.refuse(" and ".join([*own, *of_all]), alternative(linearization, sgd))
        if of_all:
            raise self.refuse(" and ".join(of_all), " and ".join(of_all.values()))

    def refuse(self, reason: str, alternative: str) -> ValueError:
        """The error for what this dynamics cannot represent."""
        return ValueError(f"{type(self).__name__} cannot represent {reason}; use {alternative}")


def alternative(linearization: Linearization, sgd: SGD) -> str:
    """A dynamics for this problem and SGD in words, and what must be changed because no theory represents it."""
    closes = _is_squared(linearization) and (sgd.sampling != "shuffled" or linearization.basis is None)
    name = "dynamics.MomentRecursion()" if closes else "dynamics.LinearizedSGD()"
    return with_remedies(name, linearization, sgd)


def with_remedies(alternative: str, linearization: Linearization, sgd: SGD) -> str:
    """An alternative in words, with the changes of the SGD without which no theory represents it."""
    remedies = _unknown_to_all(linearization, sgd).values()
    return f"{alternative} with {' and '.join(remedies)}" if remedies else alternative


def _unknown_to_all(linearization: Linearization, sgd: SGD) -> dict[str, str]:
    """Settings that no theory on this linearization represents, each with its remedy."""
    remedies = {}
    if sgd.label_noise_std and not _is_squared(linearization):
        remedies["label noise without squared error"] = "label_noise_std=0"
    if sgd.weight_decay and linearization.weight_outputs is None:
        remedies["weight decay without weight_outputs"] = "weight_decay=0 (or linearize(problem), which has them)"
    return remedies


def _is_squared(linearization: Linearization) -> bool:
    return isinstance(linearization.problem.criterion, SquaredError)
