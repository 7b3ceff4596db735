"""An activation as mean-field theory needs it: values, slopes by autograd, and the places where it is not smooth."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from sgdsde._checks import complaint
from sgdsde.meanfield import gauss_panels
from sgdsde.networks import resolve_activation

ActivationLike: TypeAlias = "str | Callable[[Tensor], Tensor] | Activation"
"""A name in ``networks.ACTIVATIONS``, an nn.Module, an elementwise callable, or an ``Activation``."""

JUMP_TOLERANCE = 1e-6  # torch's softplus jumps by 2e-9 where it turns linear, far below; sign jumps by 2


class Activation:
    """An elementwise function phi with its derivative, checked once.

    The values are computed in float64. ``kinks(radius)`` are the points in [-radius, radius] where phi' or phi'' jumps,
    found by bisection: quadrature splits its panels there.

    Args:
        function: the name, module or callable; a module is copied, in float64 and in eval mode.
    Raises:
        TypeError: not elementwise, not differentiable by autograd, or not deterministic.
        ValueError: values that are not finite, or (in ``kinks``) a phi that jumps: chi would be infinite.
    """

    def __init__(self, function: str | Callable[[Tensor], Tensor]) -> None:
        self.given = function
        resolved = resolve_activation(function)
        self.function = copy.deepcopy(resolved).double().eval() if isinstance(resolved, nn.Module) else resolved
        self.name = function if isinstance(function, str) else getattr(function, "__name__", str(function))
        # Memos, in which quadrature looks before it bisects: that costs milliseconds, and root finders ask often.
        self._kinks: dict[float, Tensor] = {}
        self.edges: dict[tuple[float, float], Tensor] = {}
        self._check()

    def __repr__(self) -> str:
        return f"Activation({self.name})"

    def value(self, x: Tensor) -> Tensor:
        """phi(x), of the shape of x."""
        with torch.no_grad():
            return self.function(x)

    def value_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """phi(x) and phi'(x), each of the shape of x; at a kink autograd's choice of slope."""
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone().requires_grad_(True)
            value = self.function(x)
            (slope,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), slope

    def slope_at_zero(self) -> tuple[float, float]:
        """The one-sided slopes of phi at 0, from the left and from the right."""
        _, slope = self.value_and_slope(torch.tensor([-1e-12, 1e-12], dtype=torch.float64))
        return float(slope[0]), float(slope[1])

    def kinks(self, radius: float) -> Tensor:
        """The points of [-radius, radius] where phi or its first derivatives are not smooth, sorted; 0 is included."""
        ceiling = 2.0 ** math.ceil(math.log2(max(radius, 1.0)))
        if ceiling not in self._kinks:
            found = gauss_panels.find_kinks(self.value_and_slope, ceiling, self.name)
            self._refuse_jumps(found)
            self._kinks[ceiling] = found
        return self._kinks[ceiling]

    def is_homogeneous(self) -> bool:
        """Whether phi(s x) = s phi(x) for s > 0, that is phi(x) = right x for x > 0 and left x for x < 0."""
        left, right = self.slope_at_zero()
        x = torch.logspace(-6, 6, 97, dtype=torch.float64)
        x = torch.cat([-x, x])
        return bool((self.value(x) - torch.where(x > 0, right * x, left * x)).abs().le(1e-13 * x.abs()).all())

    def _refuse_jumps(self, kinks: Tensor) -> None:
        distance = 1e-9 * kinks.abs().clamp_min(1.0)
        jumps = self.value(kinks + distance) - self.value(kinks - distance)
        worst = int(jumps.abs().argmax())
        if abs(float(jumps[worst])) > JUMP_TOLERANCE:
            received = f"{self.name} with a jump of {float(jumps[worst]):.3g} at {float(kinks[worst]):.6g}"
            raise ValueError(complaint("activation", "continuous", received, "its chi is infinite: smooth the jump"))

    def _check(self) -> None:
        x = torch.linspace(-2.971, 3.017, 48, dtype=torch.float64)
        differentiable = "differentiable by torch.autograd"
        try:
            y, slope = self.value_and_slope(x)
        except (RuntimeError, TypeError, AttributeError) as error:
            received = f"{self.name}, which raises {type(error).__name__}: {str(error).splitlines()[0]}"
            remedy = "write it with torch functions of a float64 tensor"
            raise TypeError(complaint("activation", differentiable, received, remedy)) from error
        if y.shape != x.shape or not y.is_floating_point():
            received = f"{self.name}, which maps shape {list(x.shape)} to {list(y.shape)} of {y.dtype}"
            raise TypeError(complaint("activation", "elementwise", received))
        if not bool((torch.isfinite(y) & torch.isfinite(slope)).all()):
            where = float(x[~(torch.isfinite(y) & torch.isfinite(slope))][0])
            raise ValueError(complaint("activation", "finite with a finite slope", f"{self.name} at {where:.6g}"))
        if not torch.equal(self.value(x), y):
            raise TypeError(complaint("activation", "deterministic", f"{self.name}, which gives two answers for one x"))
        if not torch.allclose(self.value(x.flip(0)[:31]), y.flip(0)[:31], rtol=1e-13, atol=1e-15):
            received = f"{self.name}, whose entries depend on each other"
            raise TypeError(complaint("activation", "elementwise", received))
        # A straight-through or detached slope has the right type and the wrong value: compare with differences.
        step = 1e-6
        difference = (self.value(x + step) - self.value(x - step)) / (2 * step)
        wrong = (difference - slope).abs() > 1e-4 * (1 + slope.abs())
        if int(wrong.sum()) > 4:  # a few points may straddle a kink
            at = float(x[wrong][0])
            received = f"{self.name} with slope {float(slope[wrong][0]):.6g} at {at:.6g}, where finite differences give"
            received += f" {float(difference[wrong][0]):.6g}"
            raise TypeError(complaint("activation", differentiable, received))


def as_activation(activation: ActivationLike) -> Activation:
    """The ``Activation`` of a name, a module or a callable; an ``Activation`` is returned as it is."""
    return activation if isinstance(activation, Activation) else Activation(activation)
