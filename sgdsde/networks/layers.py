"""Dense and convolutional layers, and the law that their initial weights are drawn from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from sgdsde._checks import complaint, nonnegative_number, positive_number, word
from sgdsde._types import Parametrization


@dataclass(frozen=True)
class WeightLaw:
    """Scale of every layer of a network, and distribution of its initial entries.

        ntk:       y = sigma_w / sqrt(fan_in) W x + sigma_b b,   entries of W and b from N(0, 1)
        standard:  y = W x + b,   W from N(0, sigma_w^2 / fan_in), b from N(0, sigma_b^2)

    Both give the same law of functions and, from one generator, the same function; gradients differ. sigma_b = 0 means
    no bias parameters at all, in both parametrizations: in the first they could not act, and in the second training
    them would give a tangent kernel with a bias term that mean-field theory does not have at sigma_b = 0.

    Entries are drawn in float64 on the generator's device (the CPU without one) and then converted, so one seed means
    the same weights in every dtype and on every device.
    """

    parametrization: Parametrization
    sigma_w: float
    sigma_b: float
    dtype: torch.dtype | None = None
    device: torch.device | str | None = None
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        word("parametrization", self.parametrization, ("ntk", "standard"))
        object.__setattr__(self, "sigma_w", positive_number("sigma_w", self.sigma_w, "it is a standard deviation"))
        object.__setattr__(self, "sigma_b", nonnegative_number("sigma_b", self.sigma_b, "0 leaves the biases out"))
        if self.dtype is not None and not (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point):
            raise TypeError(complaint("dtype", "a real floating-point torch.dtype", self.dtype, "use torch.float64"))
        if self.generator is not None and not isinstance(self.generator, torch.Generator):
            remedy = "use torch.Generator().manual_seed(0)"
            raise TypeError(complaint("generator", "a torch.Generator or None", repr(self.generator), remedy))

    def multiplier(self, sigma: float) -> float:
        """The factor in front of parameters whose contribution has standard deviation ``sigma``."""
        return sigma if self.parametrization == "ntk" else 1.0

    def draw(self, shape: tuple[int, ...], sigma: float) -> nn.Parameter:
        """Initial parameters of the given shape, whose contribution has standard deviation ``sigma``."""
        source = torch.device("cpu") if self.generator is None else self.generator.device
        entries = torch.randn(shape, dtype=torch.float64, device=source, generator=self.generator)
        dtype = torch.get_default_dtype() if self.dtype is None else self.dtype
        device = torch.get_default_device() if self.device is None else self.device
        if self.parametrization == "standard":
            entries = sigma * entries
        return nn.Parameter(entries.to(dtype=dtype, device=device))


class Layer(nn.Module):
    """Weights, perhaps biases, and their multipliers; abstract, the two below define how they act."""

    def __init__(self, law: WeightLaw, *, weight_shape: tuple[int, ...]) -> None:
        super().__init__()
        sigma = law.sigma_w / math.sqrt(math.prod(weight_shape[1:]))
        self.weight = law.draw(weight_shape, sigma)
        self.weight_multiplier = law.multiplier(sigma)
        self.bias = law.draw(weight_shape[:1], law.sigma_b) if law.sigma_b > 0 else None
        self.bias_multiplier = law.multiplier(law.sigma_b)

    def add_bias(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        """y plus the scaled biases, seen in a shape that broadcasts against y."""
        return y if self.bias is None else y + self.bias_multiplier * self.bias.view(shape)

    def extra_repr(self) -> str:
        return f"weight={list(self.weight.shape)}, bias={self.bias is not None}"


class Dense(Layer):
    """A linear layer [n, in_features] -> [n, out_features]; fan_in = in_features."""

    def __init__(self, in_features: int, out_features: int, law: WeightLaw) -> None:
        super().__init__(law, weight_shape=(out_features, in_features))

    def forward(self, x: Tensor) -> Tensor:
        # The multiplier goes to the outputs: [n, out] numbers, where scaled weights would be [out, in] for every run.
        return self.add_bias(self.weight_multiplier * functional.linear(x, self.weight), (-1,))


class Convolution(Layer):
    """A convolution of stride 1 with zero padding to the same size; fan_in = in_channels * kernel_size^2."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, law: WeightLaw) -> None:
        super().__init__(law, weight_shape=(out_channels, in_channels, kernel_size, kernel_size))
        self.padding = kernel_size // 2

    def forward(self, x: Tensor) -> Tensor:
        # Here the weights have fewer entries than the images.
        y = functional.conv2d(x, self.weight_multiplier * self.weight, padding=self.padding)
        return self.add_bias(y, (-1, 1, 1))
