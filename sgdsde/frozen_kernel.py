"""The likely error of a frozen kernel, from a short full-batch path of the network itself.

The path is gradient descent by a few large steps over the time of the training, sum lr / (1 - momentum), or as much of
it as they reach. Along it the loss of the network is compared with that of the linearized model on the same steps, and
at its end the kernels of some examples.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde._streams import numpy_stream
from sgdsde.dynamics import GradientDescent
from sgdsde.dynamics.moments.state import march
from sgdsde.dynamics.moving_kernel.mean_path import MeanPath, PathWalk
from sgdsde.kernel.moved_weights import kernel_between
from sgdsde.linearization import Linearization
from sgdsde.sgd import SGD
from sgdsde.stability.second_moments import largest_eigenvalue
from sgdsde.trajectory import Trajectory

STEPS = 24
"""Steps of the path, at most."""

STEP_OF_LIMIT = 0.5
"""Step of the path in units of 2 / sharpness."""

OUTPUTS = 128
"""Outputs of the examples whose kernels are compared."""

LOSS_WARNED, DRIFT_WARNED = 0.05, 0.1
"""Relative difference of the loss, and of the kernel, from which on a prediction warns."""


class FrozenKernelWarning(UserWarning):
    """The kernel moves so far that a prediction with the initial one is likely off; the message says by how much."""


@dataclass(frozen=True)
class KernelMotion:
    """How far a short full-batch path of the network leaves its linearization.

    Attributes:
        drift: |K - K_0| / |K_0| at the end of the path, in Frobenius norm, on some examples.
        gap: the largest difference of the network's loss from that of the linearized model along the path, relative to
            the predicted loss at the same time; infinite where the network diverges on it.
        share: how much of the time of the training the path covers, in (0, 1].
    """

    drift: float
    gap: float
    share: float

    @property
    def is_large(self) -> bool:
        """Whether a prediction with the initial kernel is likely to be wrong by more than 5 %."""
        return not (self.gap <= LOSS_WARNED and self.drift <= DRIFT_WARNED)

    @property
    def sentence(self) -> str:
        """The motion in words, with its numbers."""
        part = "this training" if self.share == 1 else f"the first {_percent(self.share)} of this training"
        if not math.isfinite(self.gap):
            return f"full batches drive the network itself to infinity within {part}, unlike its linearization"
        return (
            f"the kernel moves by {_percent(self.drift)} along a full-batch path over {part}, where the loss becomes "
            f"{_percent(self.gap)} different from that of the frozen kernel"
        )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def kernel_motion(linearization: Linearization, sgd: SGD, predicted: Trajectory) -> KernelMotion | None:
    """The motion of the kernel over the training that was predicted; None where nothing moves.

    Exactness: a lower bound in practice where ``share`` is below 1: errors grow as the loss falls, and the noise of
        minibatches moves the kernel besides.
    Cost: at most 24 full-batch gradients and forward passes, and two kernels of at most 128 outputs:
        0.4 to 2.8 plain runs in what was measured (docs/choosing_a_dynamics.md).
    """
    problem, total = linearization.problem, float(predicted.times[-1]) / (1 - sgd.momentum)
    if not total > 0:
        return None
    largest = STEP_OF_LIMIT * 2 / _sharpness(linearization)
    n_steps = min(STEPS, max(4, math.ceil(total / largest)))
    lr = min(total / n_steps, largest)
    decay = sgd.weight_decay if linearization.weight_outputs is not None else 0.0
    descent = SGD(lr, problem.n_train, sampling="without_replacement", weight_decay=decay)
    share = min(1.0, n_steps * lr / total)
    try:
        losses, drift = _path(linearization, descent, n_steps)
    except ValueError:  # not finite
        return KernelMotion(math.inf, math.inf, share)
    gap = 0.0
    for law in GradientDescent().evolve(linearization, descent, range(n_steps + 1)):
        frozen = float(problem.criterion.mean(law.mean, linearization.targets))
        expected = _at(float(law.time) * (1 - sgd.momentum), predicted)
        if losses[law.step] != frozen:
            gap = max(gap, abs(losses[law.step] - frozen) / max(expected, 1e-300))
    return KernelMotion(drift, gap, share)


def warn_if_kernel_moves(linearization: Linearization, sgd: SGD, predicted: Trajectory) -> None:
    """Warns where the frozen kernel is likely to make the predicted loss wrong by more than 5 %."""
    motion = kernel_motion(linearization, sgd, predicted)
    if motion is not None and motion.is_large:
        warnings.warn(
            f"the prediction keeps the kernel of the initial weights, but {motion.sentence}: expect an error of that "
            "size at least, more where the loss has fallen further. Use dynamics=dynamics.MovingKernel(), or ask "
            "sgdsde.diagnose(problem, sgd, n_steps); predict from sgdsde.linearize(problem) where the linearized model "
            "is what you mean",
            FrozenKernelWarning,
            stacklevel=3,
        )


def _path(linearization: Linearization, descent: SGD, n_steps: int) -> tuple[list[float], float]:
    """Losses of the network at every step [n_steps + 1], and the drift of its kernel at the end."""
    problem, losses = linearization.problem, []
    count = min(problem.n_train, max(1, OUTPUTS // problem.n_outputs))
    some = torch.linspace(0, problem.n_train - 1, count).round().long().to(problem.device)
    walk = PathWalk(MeanPath.start(problem, descent, descent.plan(problem.n_train, n_steps)))
    for k in march(walk, range(n_steps + 1), "path of the network"):
        losses.append(float(problem.criterion.mean(walk.path.train_outputs(k), problem.y_train)))
    initial, final = (kernel_between(problem, at, problem.x_train[some]) for at in (problem.params, walk.path.params))
    norm = float(torch.linalg.norm(initial))
    return losses, float(torch.linalg.norm(final - initial)) / norm if norm > 0 else 0.0


def _sharpness(linearization: Linearization) -> float:
    """A bound from above on the curvature of the loss in the weights, l_max(K) max |G_i| / n.

    A loss without second derivative counts as one of curvature 1.
    """
    problem, size, curvature = linearization.problem, len(linearization.kernel), 1.0
    if not problem.criterion.kink:
        hessians = problem.criterion.hessian(linearization.outputs, linearization.targets)
        curvature = float(torch.linalg.matrix_norm(hessians, 2).max())
    start = numpy_stream(0, "start of a Lanczos iteration", 0).standard_normal(size)
    top = largest_eigenvalue(lambda v: linearization.kernel @ v, (size, 1), linearization.outputs, start=start)
    return max(top * curvature / problem.n_train, 1e-300)


def _at(time: float, predicted: Trajectory) -> float:
    """The predicted training loss at a time, linear between recorded steps."""
    known: Tensor = predicted.times
    right = int(torch.searchsorted(known, torch.tensor(time, dtype=known.dtype)).clamp(1, len(known) - 1))
    width = float(known[right] - known[right - 1])
    place = min(max((time - float(known[right - 1])) / width, 0.0), 1.0) if width > 0 else 0.0
    losses = predicted.train_loss.mean
    return float(torch.lerp(losses[right - 1], losses[right], place))
