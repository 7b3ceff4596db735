"""Initialization on the edge of chaos for any torch model of linear and convolutional layers, and what it propagates.

Weights are N(0, sigma_w^2 / fan_in), biases N(0, sigma_b^2), with (sigma_w, q) from ``edge_of_chaos``. The first layer
then has variance q only if its inputs have mean square (q - sigma_b^2) / sigma_w^2 = E phi^2: ``EdgeInitialization``
scales them.

Source: Hayou, Doucet, Rousseau, arXiv:1902.06853.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sgdsde._checks import complaint
from sgdsde._sharing import overlap
from sgdsde.meanfield.activation import ActivationLike, as_activation
from sgdsde.meanfield.edge import edge_of_chaos

AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
ACTIVATION_MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.SiLU: "silu",
    nn.Softplus: "softplus",
    nn.Sigmoid: "sigmoid",
}
OTHER_ACTIVATIONS = (nn.ELU, nn.GELU, nn.LeakyReLU, nn.SELU, nn.CELU, nn.Mish, nn.Hardtanh, nn.Softsign)


@dataclass(frozen=True)
class EdgeInitialization:
    """Point on the edge of chaos that ``init_edge_of_chaos_`` chose, and the mean square that inputs must have."""

    sigma_w: float
    sigma_b: float
    q: float
    is_stable: bool
    input_mean_square: float

    def scale_inputs(self, x: Tensor) -> Tensor:
        """Each example of x [n, ...] divided by its root mean square and multiplied by the one that is needed.

        Raises:
            ValueError: an example that is zero everywhere.
        """
        mean_square = x.flatten(1).square().mean(1)
        if not bool((mean_square > 0).all()):
            zero = int((mean_square == 0).nonzero()[0])
            raise ValueError(complaint("x", "examples that are not zero", f"zeros in example {zero}"))
        factor = (self.input_mean_square / mean_square).sqrt()
        return x * factor.view(-1, *[1] * (x.ndim - 1))


@torch.no_grad()
def init_edge_of_chaos_(
    model: nn.Module,
    sigma_b: float,
    *,
    activation: ActivationLike | None = None,
    generator: torch.Generator | None = None,
) -> EdgeInitialization:
    """The model's weights, redrawn in place on the edge of chaos; returns the point and the input scaling it needs.

    Args:
        model: a torch model whose parameters all belong to ``nn.Linear`` or ``nn.Conv1d/2d/3d`` layers.
        sigma_b: standard deviation of the biases.
        activation: what stands between the layers; None: the one kind of activation module that the model contains.
        generator: draws the weights; torch's default generator if None.
    Raises:
        ValueError: no edge of chaos at this sigma_b, an activation that the modules do not determine, a layer of
            another type (its name is given) or one that makes its weight anew in each forward pass (weight norm,
            spectral norm, pruning, hooks), layers that share a weight, a layer without bias although sigma_b > 0.
    Exactness: the theory is of infinite width; convolutions with zero padding lose variance near the border.
    """
    layers = _affine_layers(model)
    edge = edge_of_chaos(_only_activation(model) if activation is None else activation, sigma_b)
    for name, layer in layers:
        if layer.bias is None and sigma_b > 0:
            received = f"{name} ({type(layer).__name__}) without bias"
            raise ValueError(complaint("every layer", "with a bias when sigma_b > 0", received, "use bias=True"))
    for _, layer in layers:
        fan_in = math.prod(layer.weight.shape[1:])
        layer.weight.normal_(0.0, edge.sigma_w / math.sqrt(fan_in), generator=generator)
        if layer.bias is not None:
            layer.bias.normal_(0.0, sigma_b, generator=generator) if sigma_b > 0 else layer.bias.zero_()
    mean_square = (edge.q - sigma_b**2) / edge.sigma_w**2
    return EdgeInitialization(edge.sigma_w, float(sigma_b), edge.q, edge.is_stable, mean_square)


def _affine_layers(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """Every linear and convolutional layer with its name, if nothing else holds parameters."""
    if not isinstance(model, nn.Module):
        raise TypeError(complaint("model", "an nn.Module", type(model).__name__))
    layers = []
    for name, module in model.named_modules():
        if isinstance(module, AFFINE):
            _refuse_overwritten(name or "the model", module)
            if isinstance(module.weight, nn.parameter.UninitializedParameter):
                raise ValueError(
                    complaint(f"layer {name}", "initialized", type(module).__name__, "run one input first")
                )
            layers.append((name or "the model", module))
        elif list(module.parameters(recurse=False)):
            kinds = ", ".join(kind.__name__ for kind in AFFINE)
            received = f"{name or 'the model'}, a {type(module).__name__} with parameters of its own"
            remedy = "the networks of sgdsde.networks take sigma_w and sigma_b themselves"
            raise ValueError(complaint("every layer with parameters", f"one of {kinds}", received, remedy))
    if not layers:
        raise ValueError(complaint("model", "a model with linear or convolutional layers", type(model).__name__))
    for (first, one), (second, other) in itertools.combinations(layers, 2):
        if overlap(one.weight, other.weight):
            received = f"{first} and {second} with one weight"
            raise ValueError(complaint("layers", "of weights that are independent draws", received, "untie them first"))
    return layers  # type: ignore[return-value]


def _refuse_overwritten(name: str, layer: nn.Module) -> None:
    """Raises ``ValueError`` for a layer that makes the weight or the bias that it uses from other tensors."""
    label, kind = f"layer {name} ({type(layer).__name__})", next(kind for kind in AFFINE if isinstance(layer, kind))
    made = [key for key in ("weight", "bias") if layer._parameters.get(key) is None and getattr(layer, key) is not None]
    if made:
        sources = ", ".join(key for key in layer._parameters if key.startswith(made[0])) or "a parametrization"
        received = f"a {made[0]} that each forward pass makes anew from {sources}"
        remedy = "initialize first, then apply weight norm (spectral norm and pruning leave the edge of chaos)"
        raise ValueError(complaint(label, "one that uses its own parameters", received, remedy))
    if layer._forward_pre_hooks:
        remedy = "initialize first, then register the hook"
        raise ValueError(complaint(label, "without hooks that may change its weights", "a forward pre-hook", remedy))
    own = [
        key for key in ("forward", "_conv_forward") if getattr(type(layer), key, None) is not getattr(kind, key, None)
    ]
    if own or "forward" in vars(layer):
        received = "a forward of its own, which may use other weights"
        raise ValueError(complaint(label, f"a plain nn.{kind.__name__}", received, "initialize it by hand"))


def _only_activation(model: nn.Module) -> ActivationLike:
    found: dict[str, ActivationLike] = {}
    for module in model.modules():
        if type(module) in ACTIVATION_MODULES and module.extra_repr() in ("", "inplace=True"):
            found[type(module).__name__] = ACTIVATION_MODULES[type(module)]
        elif isinstance(module, (*ACTIVATION_MODULES, *OTHER_ACTIVATIONS)):
            kind = type(module)
            settings = {
                key: value for key, value in vars(module).items() if not key.startswith("_") and key != "training"
            }
            settings.pop("inplace", None)
            settings.pop("num_parameters", None)
            found[repr(module).replace(", inplace=True", "")] = as_activation(kind(**settings))
    if len(found) != 1:
        received = ", ".join(found) or "none"
        remedy = 'pass activation="tanh", say'
        raise ValueError(complaint("activation", "the one kind of activation module in the model", received, remedy))
    return next(iter(found.values()))
