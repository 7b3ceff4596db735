"""Time of SGD with momentum: the sum of learning rates that the steps so far amount to."""

from __future__ import annotations

from scipy import optimize


def effective_time(step: float, lr: float, momentum: float) -> float:
    """t(k) = lr/(1 - b) (k - b (1 - b^k)/(1 - b)), the displacement of k steps down a constant slope 1.

    The buffer starts empty, so the first steps are shorter than the later ones. Real k is allowed.
    """
    rest = 1 - momentum
    return lr / rest * (step - momentum * (1 - momentum**step) / rest)


def step_at(time: float, lr: float, momentum: float) -> float:
    """The real k with ``effective_time(k) = time``."""
    if time <= 0:
        return 0.0
    most = time / lr * (1 - momentum) + momentum / (1 - momentum) + 1
    return float(optimize.brentq(lambda k: effective_time(k, lr, momentum) - time, 0.0, most, xtol=1e-12, rtol=1e-14))
