"""The functions that wide shallow networks learn: exact feature kernels, end points and the way there."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from sgdsde._checks import complaint, positive_number, real_floating, whole_number
from sgdsde.losses import SquaredError, as_loss
from sgdsde.networks.shallow import Gaussian, NeuronLaw, Sphere, Uniform


def feature_kernel(x1: Tensor, x2: Tensor, law: NeuronLaw) -> Tensor:
    """kappa(x, x') = E (w.x + b)_+ (w.x' + b)_+ over the law of a neuron, [n1, n2], float64.

        Uniform(aw, ab), |x| <= ab/aw:     ab^2/6 + aw^2 x x'/6 + (zeta/12) |x - x'|^3,   zeta = aw^3/(8 ab)
        Sphere(R), d inputs, |x| <= R:     R^2/6 + x.x'/(2 d) + (c3/(24 R)) |x - x'|^3
                                           c3 = E |w_1|^3 = Gamma(d/2) / (sqrt pi Gamma((d + 3)/2))
        Gaussian(sw, sb):                  |k|/(2 pi) (sin t + (pi - t) cos t),   k = sw^2 x.x' + sb^2, cos t = k/|k|

    Args:
        x1, x2: [n1, d], [n2, d], or [n1], [n2] for one input.
    Raises:
        ValueError: inputs outside the ball in which the kinks are spread evenly.
    Exactness: exact. Source: docs/regimes.md; Gaussian: Cho, Saul (2009).
    """
    one, two = _points("x1", x1), _points("x2", x2)
    if one.shape[1] != two.shape[1]:
        raise ValueError(complaint("x2", f"of {one.shape[1]} inputs like x1", two.shape[1]))
    return _kernel(law, one, two)


@singledispatch
def _kernel(law: NeuronLaw, x1: Tensor, x2: Tensor) -> Tensor:
    raise TypeError(complaint("law", "Uniform, Gaussian or Sphere", type(law).__name__))


@_kernel.register
def _(law: Uniform, x1: Tensor, x2: Tensor) -> Tensor:
    if x1.shape[1] != 1:
        raise ValueError(complaint("x1", "of one input for Uniform", f"{x1.shape[1]} inputs", "use Sphere"))
    _check_ball(x1, x2, law.ab / law.aw, "ab / aw")
    zeta = law.aw**3 / (8 * law.ab)
    return law.ab**2 / 6 + law.aw**2 / 6 * x1 @ x2.mT + zeta / 12 * (x1 - x2.mT).abs() ** 3


@_kernel.register
def _(law: Sphere, x1: Tensor, x2: Tensor) -> Tensor:
    _check_ball(x1, x2, law.radius, "radius")
    d = x1.shape[1]
    cubes = math.exp(math.lgamma(d / 2) - math.lgamma((d + 3) / 2)) / math.sqrt(math.pi)
    distance = (x1[:, None] - x2).norm(dim=-1)
    return law.radius**2 / 6 + x1 @ x2.mT / (2 * d) + cubes / (24 * law.radius) * distance**3


@_kernel.register
def _(law: Gaussian, x1: Tensor, x2: Tensor) -> Tensor:
    k = law.sw**2 * x1 @ x2.mT + law.sb**2
    own = [law.sw**2 * x.square().sum(1) + law.sb**2 for x in (x1, x2)]
    size = (own[0][:, None] * own[1]).sqrt()
    # By the difference vector: acos loses half of the digits where two inputs are close.
    a = torch.cat([law.sw * x1, torch.full_like(x1[:, :1], law.sb)], 1) / own[0].sqrt()[:, None]
    b = torch.cat([law.sw * x2, torch.full_like(x2[:, :1], law.sb)], 1) / own[1].sqrt()[:, None]
    angle = 2 * torch.atan2((a[:, None] - b).norm(dim=-1), (a[:, None] + b).norm(dim=-1))
    return (size * angle.sin() + (math.pi - angle) * k) / (2 * math.pi)


def curvature_density(law: NeuronLaw) -> Callable[[Tensor | float], Tensor]:
    """zeta(c) = E[w^2 | kink at c] p(c), c = -b/w, of one input: training penalizes int (f'')^2 / zeta.

        Uniform: min(aw, ab/|c|)^4 / (8 aw ab),   Gaussian: 2 sw^3 sb^3 / (pi (sb^2 + c^2 sw^2)^2),   Sphere: 1/(2 R)

    Source: Jin, Montufar, arXiv:2006.07356, theorem 5.
    """
    if not isinstance(law, (Uniform, Gaussian, Sphere)):
        raise TypeError(complaint("law", "Uniform, Gaussian or Sphere", type(law).__name__))

    def density(c: Tensor | float) -> Tensor:
        at = torch.as_tensor(c, dtype=torch.float64)
        if isinstance(law, Uniform):
            return (law.ab / at.abs()).clamp(max=law.aw) ** 4 / (8 * law.aw * law.ab)
        if isinstance(law, Gaussian):
            return 2 * (law.sw * law.sb) ** 3 / (math.pi * (law.sb**2 + (at * law.sw) ** 2) ** 2)
        return torch.where(at.abs() <= law.radius, 1 / (2 * law.radius), 0.0)

    return density


def wide_limit(
    x: Tensor,
    y: Tensor,
    points: Tensor,
    law: NeuronLaw,
    *,
    time: float = math.inf,
    width: float = 1.0,
    loss: nn.Module | None = None,
) -> Tensor:
    """What gradient flow of ``ShallowReLU`` has learned after a time, as the width grows; at ``points``, [k].

        f_t = kappa(points, x) kappa^-1 (1 - exp(-(s n t/M) kappa)) y,   t = inf: the interpolant of kappa

    Args:
        x: [M] or [M, d]. y: [M]. points: [k] or [k, d]. time: sum of learning rates. width: n; the limit depends on
            n t alone. loss: default ``nn.MSELoss()``.
    Raises:
        ValueError: the same x twice with different y; inputs outside the ball (``feature_kernel``).
    Exactness: networks approach it as width^-1/2. Condition of the kernel of five points: 2e3, 1e4, 8e5 at R = 1, 2, 8.
    Cost: M^3.
    """
    inputs, targets, at = _points("x", x), targets_of(x, y), _points("points", points)
    kernel = feature_kernel(inputs, inputs, law)
    values, vectors = torch.linalg.eigh(kernel)
    kept = values > 1e-14 * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    rate = loss_curvature(loss) * positive_number("width", width) / len(inputs)
    filters = torch.ones_like(values) if math.isinf(time) else -torch.expm1(-rate * _time(time) * values)
    return feature_kernel(at, inputs, law) @ (vectors @ (filters / values * (vectors.mT @ targets)))


def smoothing_strength(time: float, width: float, n_train: int, loss: nn.Module | None = None) -> float:
    """lam(t) = M/(s n t): the smoothing spline, sum (h - y)^2 + lam int (h'')^2/zeta, that gradient flow resembles.

    Flow fits the share 1 - exp(-s n mu t/M) of a kernel mode mu, the spline mu/(mu + lam): equal to first order, and
    up to 0.2036 apart (0.1019 for the best constant in front of lam, 0.53): a likeness, not an identity.

    Args:
        time: sum of learning rates. width: n. n_train: M. loss: a squared error; default ``nn.MSELoss()``, s = 2.
    """
    m = whole_number("n_train", n_train, 1)
    return m / (loss_curvature(loss) * positive_number("width", width) * _time(time))


def loss_curvature(loss: Any) -> float:
    """s of a squared error of one output."""
    criterion = as_loss(nn.MSELoss() if loss is None else loss, 1)
    if not isinstance(criterion, SquaredError):
        raise ValueError(complaint("loss", "a squared error", type(loss).__name__, "use nn.MSELoss()"))
    return criterion.curvature


def _time(time: float) -> float:
    return positive_number("time", time, "it is a sum of learning rates")


def _points(name: str, x: Tensor) -> Tensor:
    real_floating(name, x)
    if x.ndim not in (1, 2):
        raise ValueError(complaint(name, "[n] or [n, d]", f"shape {list(x.shape)}"))
    return (x[:, None] if x.ndim == 1 else x).detach().double()


def targets_of(x: Tensor, y: Tensor) -> Tensor:
    """y [M], float64, checked to be a function of x."""
    inputs, targets = _points("x", x), real_floating("y", y).detach().double().flatten()
    if len(targets) != len(inputs):
        raise ValueError(complaint("y", f"[{len(inputs)}]", f"shape {list(y.shape)}"))
    distinct, which = torch.unique(inputs, dim=0, return_inverse=True)
    for i in range(len(distinct)) if len(distinct) < len(inputs) else ():
        values = targets[which == i]
        if (values != values[0]).any():
            received = f"{values[0]:.6g} and {values[values != values[0]][0]:.6g} at x = {distinct[i].tolist()}"
            raise ValueError(complaint("y", "one value at each x", received, "average them, or smooth"))
    return targets


def _check_ball(x1: Tensor, x2: Tensor, radius: float, name: str) -> None:
    farthest = max(float(x.norm(dim=1).max()) for x in (x1, x2))
    if farthest > radius * (1 + 1e-12):
        remedy = "scale the inputs, or widen the law of the biases"
        raise ValueError(complaint("inputs", f"within {name} = {radius:g} of 0", f"|x| = {farthest:.6g}", remedy))
