"""The published convergence theorem of gradient confusion, and what holds exactly where confusion is zero."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde._checks import complaint, nonnegative_number, positive_number, whole_number
from sgdsde.linearization import Linearization
from sgdsde.losses import SquaredError
from sgdsde.sgd import SGD


@dataclass(frozen=True)
class ConfusionTheorem:
    """Theorem 3.1 of Sankararaman et al. (2020) for SGD with single examples.

        E F_T - F* <= rho^T (F_0 - F*) + lr eta (1 - rho^T)/(1 - rho),   rho = 1 - (2 mu/n)(lr - n L lr^2/2)

    for f_i with gradients of Lipschitz constant L that satisfy |grad f_i|^2 >= 2 mu (f_i - f_i*), confusion at most eta
    along the whole path and lr < 2/(n L). Beside the exact recursion it is loose: its floor n eta / (mu (2 - n L lr))
    does not vanish with the learning rate, though the true one is O(lr); one eta stands for the whole path, though
    confusion falls with the loss; and its largest lr is n times below ``stability.max_lr`` at equal norms.

    Args:
        n_train: n. smoothness: L. pl_constant: mu. For f_i = r_i^2 of a linear model with |x_i| = 1 both are 2.
    Source: arXiv:1904.06963, theorem 3.1.
    """

    n_train: int
    smoothness: float
    pl_constant: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_train", whole_number("n_train", self.n_train, 2))
        positive_number("smoothness", self.smoothness)
        if positive_number("pl_constant", self.pl_constant) > self.smoothness:
            expected = f"at most the smoothness {self.smoothness:g}"
            raise ValueError(complaint("pl_constant", expected, self.pl_constant, "a PL constant never exceeds it"))

    @property
    def max_lr(self) -> float:
        """2/(n L), beyond which the theorem says nothing."""
        return 2 / (self.n_train * self.smoothness)

    def rate(self, lr: float) -> float:
        """The rate rho of the theorem at a learning rate."""
        n, lr = self.n_train, positive_number("lr", lr)
        if lr >= self.max_lr:
            raise ValueError(complaint("lr", f"below 2/(n L) = {self.max_lr:.6g}", lr, "the theorem holds there only"))
        return 1 - 2 * self.pl_constant / n * (lr - n * self.smoothness * lr**2 / 2)

    def floor(self, lr: float, confusion: float) -> float:
        """lr eta / (1 - rho)."""
        return lr * nonnegative_number("confusion", confusion) / (1 - self.rate(lr))

    def bound(self, lr: float, steps: Tensor, *, excess: float, confusion: float) -> Tensor:
        """On E F_k - F* at the steps, [T], float64, from F_0 - F* = ``excess``."""
        decay = self.rate(lr) ** steps.double()
        return decay * nonnegative_number("excess", excess) + (1 - decay) * self.floor(lr, confusion)


def decoupled_loss(linearization: Linearization, sgd: SGD, steps: Tensor) -> Tensor:
    """Expected training loss where gradients are orthogonal, confusion 0: each residual decays on its own, [T].

        E e_i^2 -> (1 - 2 lr s K_ii/n + q lr^2 s^2 K_ii^2/n) e_i^2,   q = phi/B + (1 - phi/B)/n

    One output, squared error, plain SGD with constant learning rate and i.i.d. batches; [T] values at ``steps``.

    Raises:
        ValueError: a kernel that is not diagonal, more outputs than one, momentum, decay, schedules or epochs.
    Exactness: exact for the linearized model.
    Source: enumeration of all batches; docs/regimes.md.
    """
    plain = not (
        sgd.momentum or sgd.weight_decay or sgd.label_noise_std or callable(sgd.lr) or callable(sgd.batch_size)
    )
    if not plain or sgd.sampling == "shuffled":
        raise ValueError(complaint("sgd", "plain, constant and with i.i.d. batches", sgd))
    own, s = _own_kernels(linearization)
    n, noise = len(own), sgd.plan(len(own), 1).noise_factor(0)
    rate = sgd.lr_at(0) * s * own
    factor = 1 - 2 * rate / n + (noise + (1 - noise) / n) * rate.square() / n
    squares = linearization.residual.double()[:, 0].square()
    return s / 2 * (factor ** steps.double()[:, None] * squares).mean(1)


def decoupled_max_lr(linearization: Linearization, sgd: SGD) -> float:
    """Mean-square limit where gradients are orthogonal: 2 / (s K_max (q + (1 - q)/n)), q = phi/B of ``sgd``.

    With replacement 2 B / (s K_max (1 + (B - 1)/n)), without 2 B / (s K_max).
    """
    own, s = _own_kernels(linearization)
    noise = sgd.plan(len(own), 1).noise_factor(0)
    return 2 / (s * float(own.max()) * (noise + (1 - noise) / len(own)))


def _own_kernels(linearization: Linearization) -> tuple[Tensor, float]:
    """K_ii [n] and s of a diagonal kernel."""
    problem, kernel = linearization.problem, linearization.dense_kernel.double()
    if problem.n_outputs != 1 or not isinstance(problem.criterion, SquaredError):
        received = f"{problem.n_outputs} outputs, {type(problem.loss).__name__}"
        raise ValueError(complaint("problem", "of one output under squared error", received))
    own = kernel.diagonal()
    if (kernel - torch.diag(own)).abs().max() > 1e-12 * own.max():
        raise ValueError(complaint("kernel", "diagonal", "examples with overlapping gradients", "use predict"))
    return own, problem.criterion.curvature
