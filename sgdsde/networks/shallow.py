"""Wide networks of one hidden layer whose read-out alone is scaled by the width, and the laws of their neurons."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from sgdsde._checks import complaint, positive_number, whole_number


class NeuronLaw(ABC):
    """The law of a hidden neuron's weights w [d] and bias b; abstract."""

    @abstractmethod
    def draw(self, n: int, d: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """w [n, d] and b [n], float64."""


@dataclass(frozen=True)
class Uniform(NeuronLaw):
    """w uniform in +-aw and b in +-ab, one input."""

    aw: float = 1.0
    ab: float = 1.0

    def __post_init__(self) -> None:
        positive_number("aw", self.aw)
        positive_number("ab", self.ab)

    def draw(self, n: int, d: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        if d != 1:
            raise ValueError(complaint("in_features", "1 for Uniform", d, "use Sphere or Gaussian"))
        w, b = 2 * torch.rand(2, n, dtype=torch.float64, **_on(generator)) - 1
        return self.aw * w[:, None], self.ab * b


@dataclass(frozen=True)
class Gaussian(NeuronLaw):
    """w from N(0, sw^2 I) and b from N(0, sb^2)."""

    sw: float = 1.0
    sb: float = 1.0

    def __post_init__(self) -> None:
        positive_number("sw", self.sw)
        positive_number("sb", self.sb)

    def draw(self, n: int, d: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        drawn = torch.randn(n, d + 1, dtype=torch.float64, **_on(generator))
        return self.sw * drawn[:, :d], self.sb * drawn[:, d]


@dataclass(frozen=True)
class Sphere(NeuronLaw):
    """w uniform on the unit sphere and b uniform in +-radius: kinks spread evenly over a ball of this radius."""

    radius: float = 1.0

    def __post_init__(self) -> None:
        positive_number("radius", self.radius)

    def draw(self, n: int, d: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        w = torch.randn(n, d, dtype=torch.float64, **_on(generator))
        b = 2 * torch.rand(n, dtype=torch.float64, **_on(generator)) - 1
        return w / w.norm(dim=1, keepdim=True), self.radius * b


def _on(generator: torch.Generator | None) -> dict:
    return {"generator": generator, "device": "cpu" if generator is None else generator.device}


class ShallowReLU(nn.Module):
    """f(x) = sum_i v_i (w_i . x + b_i)_+, [n, in_features] -> [n, 1], in two copies of opposite sign: f = 0 at first.

    Neurons (w, b) are of order 1 and drawn from ``law``, v from N(0, 1/width). With learning rates of order 1/width the
    hidden layer's part of the kernel vanishes as 1/width: gradient descent ends in ``regimes.wide_limit``. (The ``MLP``
    in NTK parametrization trains both layers alike and is not in this limit.)

    Args:
        width: n, even. law: ``Uniform``, ``Gaussian`` or ``Sphere``. in_features: d.
        dtype, device: of the parameters. generator: draws them; torch's default if None.
    Source: Jin, Montufar, arXiv:2006.07356.
    """

    def __init__(
        self,
        width: int,
        law: NeuronLaw,
        *,
        in_features: int = 1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        half, odd = divmod(whole_number("width", width, 2), 2)
        if odd:
            raise ValueError(complaint("width", "even, for two copies of opposite sign", width))
        if not isinstance(law, NeuronLaw):
            raise TypeError(complaint("law", "Uniform, Gaussian or Sphere", type(law).__name__))
        self.width, self.law, self.in_features = 2 * half, law, whole_number("in_features", in_features, 1)
        w, b = law.draw(half, self.in_features, generator)
        v = torch.randn(half, dtype=torch.float64, **_on(generator)) / math.sqrt(self.width)
        dtype = dtype or torch.get_default_dtype()
        self.weight, self.bias, self.read_out = (
            nn.Parameter(torch.cat(pair).to(dtype=dtype, device=device)) for pair in ((w, w), (b, b), (v, -v))
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.in_features:
            raise ValueError(complaint("x", f"[n, {self.in_features}]", f"shape {list(x.shape)}"))
        half = self.width // 2
        # Copy by copy, so that the two cancel to the last bit at the start, whatever the batch.
        parts = [
            torch.relu(functional.linear(x, self.weight[copy], self.bias[copy])) * self.read_out[copy]
            for copy in (slice(None, half), slice(half, None))
        ]
        return (parts[0] + parts[1]).sum(1, keepdim=True)

    def extra_repr(self) -> str:
        return f"width={self.width}, {self.law}, in_features={self.in_features}"
