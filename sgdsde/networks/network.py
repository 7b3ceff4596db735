"""Base class of networks: settings as public attributes, and an activation."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from sgdsde._checks import whole_number
from sgdsde._types import Parametrization
from sgdsde.networks.activations import resolve_activation
from sgdsde.networks.layers import WeightLaw


class Network(nn.Module):
    """A network of one width and one weight law; abstract. Its attributes are all that mean-field theory needs.

    Attributes:
        width: neurons (channels) in every hidden layer.
        out_features: outputs.
        depth: hidden layers; the read-out is one more.
        activation: as it was given, a name or a callable.
        parametrization, sigma_w, sigma_b: see ``WeightLaw``; the sigma are standard deviations.
    """

    def __init__(
        self,
        width: int,
        out_features: int,
        *,
        depth: int,
        activation: str | Callable[[Tensor], Tensor],
        law: WeightLaw,
    ) -> None:
        super().__init__()
        self.width = whole_number("width", width, 1)
        self.out_features = whole_number("out_features", out_features, 1)
        self.depth = whole_number("depth", depth, 1, "depth counts hidden layers")
        resolve_activation(activation)
        self.activation = activation
        self.parametrization: Parametrization = law.parametrization
        self.sigma_w = law.sigma_w
        self.sigma_b = law.sigma_b

    def activate(self, y: Tensor) -> Tensor:
        """phi(y), elementwise."""
        activation = self.activation
        # Looked up at each call: an nn.Module must stay registered under one name only.
        return resolve_activation(activation)(y) if isinstance(activation, str) else activation(y)

    def extra_repr(self) -> str:
        given = f"activation={self.activation!r}, " if isinstance(self.activation, str) else ""
        law = f"parametrization={self.parametrization!r}, sigma_w={self.sigma_w:.6g}, sigma_b={self.sigma_b:.6g}"
        return f"width={self.width}, depth={self.depth}, {given}{law}"
