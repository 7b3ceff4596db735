"""Predictions of many settings of one problem, on the frozen or the moving kernel as the problem needs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from sgdsde._checks import complaint
from sgdsde._types import Progress
from sgdsde.dynamics import Dynamics, MovingKernel
from sgdsde.frozen_kernel import FrozenKernelWarning, kernel_motion
from sgdsde.linearization import Linearization, as_linearization
from sgdsde.losses import SquaredError
from sgdsde.prediction import predict
from sgdsde.prediction_sweep import predict_many
from sgdsde.problem import Problem
from sgdsde.sgd import SGD
from sgdsde.stability import UnstableWarning, max_lr_of
from sgdsde.trajectory import Trajectory

PATH_ENDS = "must stay "
"""What the errors of ``MovingKernel`` say where the path diverges or the network dies: no loss at this setting."""


@dataclass(frozen=True, eq=False)
class Forecasts:
    """A way to predict many settings of one problem.

    Attributes:
        linearization: at initialization. dynamics: the theory; None: ``predict_many`` on the frozen kernel.
        kernel: what is said of the kernel, in words. is_doubtful: the kernel moves, and the prediction keeps it.
    """

    linearization: Linearization
    dynamics: Dynamics | None = None
    kernel: str = "the kernel is kept as it is at initialization; that of the network moves little here"
    is_doubtful: bool = False

    @classmethod
    def of(
        cls, problem_or_linearization: Problem | Linearization, dynamics: Dynamics | None, progress: Progress
    ) -> Forecasts:
        """Predictions with the theory asked for, on the frozen kernel by default."""
        if dynamics is not None and not isinstance(dynamics, Dynamics):
            remedy = "use dynamics.MomentRecursion() or another of sgdsde.dynamics"
            raise TypeError(complaint("dynamics", "an instance of sgdsde.dynamics.Dynamics", repr(dynamics), remedy))
        linearization = as_linearization(problem_or_linearization, progress=progress)
        if dynamics is not None and not dynamics.freezes_kernel:
            return cls(linearization, dynamics, f"the kernel moves with the network ({type(dynamics).__name__})")
        if isinstance(problem_or_linearization, Linearization):
            return cls(linearization, dynamics, "an answer for the linearized model, whose kernel stays")
        return cls(linearization, dynamics)

    @property
    def moves_kernel(self) -> bool:
        """Whether the kernel of the prediction moves with the network."""
        return self.dynamics is not None and not self.dynamics.freezes_kernel

    @property
    def has_limit(self) -> bool:
        """Whether the expected loss of the linearized model grows past the mean-square limit."""
        return isinstance(self.linearization.problem.criterion, SquaredError)

    def limit(self, sgd: SGD, n_steps: int) -> float:
        """The mean-square limit on the learning rate, of the smallest batch of a schedule."""
        if callable(sgd.batch_size):
            sgd = replace(sgd, batch_size=min(sgd.batch_size_at(k) for k in range(n_steps)))
        return max_lr_of(self.linearization, sgd)

    def suited(
        self, problem_or_linearization: Problem | Linearization, sgd: SGD, predicted: Trajectory, *, switch: bool
    ) -> Forecasts:
        """The same where the frozen kernel will do for this prediction; else the moving kernel, or a warning.

        A ``Linearization`` asks for the linearized model and keeps its kernel. With ``switch`` the moving kernel is
        taken, unless a dynamics was named or the loss has no second derivative.
        """
        if isinstance(problem_or_linearization, Linearization) or self.moves_kernel:
            return self
        motion = kernel_motion(self.linearization, sgd, predicted)
        if motion is None or not motion.is_large:
            return self
        kink = self.linearization.problem.criterion.kink
        if switch and self.dynamics is None and not kink:
            words = f"the kernel moves with the network (MovingKernel), because {motion.sentence}"
            return replace(self, dynamics=MovingKernel(), kernel=words)
        said = f"the kernel is kept as it is at initialization, although {motion.sentence}"
        remedy = "train a few runs instead (run_ensemble)" if kink else "use dynamics=dynamics.MovingKernel()"
        warnings.warn(f"{said}: the answer may be wrong; {remedy}", FrozenKernelWarning, stacklevel=4)
        return replace(self, kernel=said, is_doubtful=True)

    def predict(self, sgds: Sequence[SGD], n_steps: int, record: Sequence[int]) -> list[Trajectory | None]:
        """The prediction of each candidate; None where it is not finite.

        Silent: what a candidate is warned of (a limit, a drift) shows in its loss. ``predict_one`` warns.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            if self.dynamics is None and self.has_limit:
                found = predict_many(self.linearization, sgds, n_steps, record=record)
                return [_finite(trajectory) for trajectory in found]
            return [self._candidate(sgd, n_steps, record) for sgd in sgds]

    def predict_one(self, sgd: SGD, n_steps: int) -> Trajectory:
        """The prediction of the setting that was chosen, with its warnings besides that of the limit."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnstableWarning)  # the answer holds the limit
            return predict(self.linearization, sgd, n_steps, dynamics=self.dynamics)

    def _candidate(self, sgd: SGD, n_steps: int, record: Sequence[int]) -> Trajectory | None:
        try:
            return _finite(predict(self.linearization, sgd, n_steps, dynamics=self.dynamics, record=record))
        except ValueError as error:
            if PATH_ENDS in str(error):
                return None
            raise


def _finite(found: Trajectory) -> Trajectory | None:
    return found if math.isfinite(float(found.train_loss.mean[-1])) else None


def setting(sgd: SGD, *, without: str = "lr") -> str:
    """The words of an SGD besides the one in question and those at their default."""
    said = []
    for field in fields(sgd):
        value = getattr(sgd, field.name)
        if field.compare and field.name != without and value != field.default:
            said.append(f"{field.name}={'a schedule' if callable(value) else value}")
    return ", ".join(said)
