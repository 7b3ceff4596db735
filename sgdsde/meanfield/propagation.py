"""Variances and correlations in a real network, layer by layer, against the maps of infinite width."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sgdsde._checks import complaint, real_floating
from sgdsde.meanfield.activation import ActivationLike, as_activation
from sgdsde.meanfield.chebyshev_tables import dual_at
from sgdsde.meanfield.initialization import AFFINE
from sgdsde.meanfield.variance import second_moments
from sgdsde.networks import Network, ResNet
from sgdsde.networks.layers import Layer


@dataclass(frozen=True)
class Propagation:
    """Measured and predicted variances q and correlations c of preactivations, one entry per affine layer.

    q is averaged over examples, c over pairs of them. A measured value deviates by about width^-1/2, relative.
    """

    layers: list[str]
    measured_q: Tensor
    predicted_q: Tensor
    measured_c: Tensor
    predicted_c: Tensor

    def __str__(self) -> str:
        lines = [f"{'layer':<20}{'q measured':>12}{'predicted':>12}{'c measured':>12}{'predicted':>12}"]
        columns = (self.measured_q, self.predicted_q, self.measured_c, self.predicted_c)
        for name, *numbers in zip(self.layers, *(column.tolist() for column in columns)):
            lines.append(f"{name:<20}" + "".join(f"{number:>12.5f}" for number in numbers))
        return "\n".join(lines)


@torch.no_grad()
def propagate(
    model: nn.Module,
    x: Tensor,
    *,
    activation: ActivationLike | None = None,
    sigma_w: float | None = None,
    sigma_b: float | None = None,
) -> Propagation:
    """Variances and correlations of the preactivations of every affine layer, measured and predicted.

    Args:
        model: an ``MLP``, ``ResNet`` or ``CNN`` of ``networks``, or a torch model in which linear or convolutional
            layers follow each other in the order in which they are called, with one activation between them.
        x: examples [n, ...], at least two for a correlation; a few dozen are enough.
        activation, sigma_w, sigma_b: of a model that does not say; sigmas None: measured from each layer's weights.
    Raises:
        ValueError: a model of one's own without ``activation``; x with fewer than two examples.
    Exactness: the prediction is that of infinite width; a convolution is treated as if its padding were circular.
    """
    x = real_floating("x", x)
    if len(x) < 2:
        raise ValueError(complaint("x", "at least two examples", f"shape {list(x.shape)}"))
    if isinstance(model, Network):
        activation, sigma_w, sigma_b = model.activation, model.sigma_w, model.sigma_b
    if activation is None:
        raise ValueError(complaint("activation", "given for a model of one's own", None, 'pass activation="tanh", say'))
    outputs = _residual_stream(model, x) if isinstance(model, ResNet) else _hooked(model, x)
    if not outputs:
        raise ValueError(complaint("model", "a model with linear or convolutional layers", type(model).__name__))
    measured = [_overlaps(y) for _, y, _ in outputs]
    predicted = _predict(x, outputs, as_activation(activation), (sigma_w, sigma_b), model)
    (measured_q, measured_c), (predicted_q, predicted_c) = (_summary(list(side)) for side in (measured, predicted))
    return Propagation([name for name, _, _ in outputs], measured_q, predicted_q, measured_c, predicted_c)


def _hooked(model: nn.Module, x: Tensor) -> list[tuple[str, Tensor, nn.Module]]:
    """(name, output, layer) of every affine layer, in the order of the calls."""
    found: list[tuple[str, Tensor, nn.Module]] = []
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (*AFFINE, Layer)):

            def record(layer: nn.Module, _: tuple[Tensor, ...], y: Tensor, name: str = name) -> None:
                found.append((name or "the model", y.detach().double(), layer))

            handles.append(module.register_forward_hook(record))
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _residual_stream(model: ResNet, x: Tensor) -> list[tuple[str, Tensor, nn.Module]]:
    y = model.first(x.flatten(1))
    found: list[tuple[str, Tensor, nn.Module]] = [("first", y.double(), model.first)]
    for index, (scale, block) in enumerate(zip(model.block_scales, model.blocks)):
        y = y + scale * block(model.activate(y))
        found.append((f"blocks.{index}", y.double(), block))
    return [*found, ("read_out", model.read_out(model.activate(y)).double(), model.read_out)]


def _overlaps(y: Tensor) -> Tensor:
    """Inner products per neuron, [n, n]."""
    rows = y.flatten(1)
    return rows @ rows.T / rows.shape[1]


def _predict(
    x: Tensor,
    outputs: list[tuple[str, Tensor, nn.Module]],
    activation: ActivationLike,
    sigmas: tuple[float | None, float | None],
    model: nn.Module,
) -> list[Tensor]:
    activation = as_activation(activation)
    scales = [None, *model.block_scales, None] if isinstance(model, ResNet) else [None] * len(outputs)
    overlaps, results = _overlaps(x.double()), []
    for index, ((_, _, layer), scale) in enumerate(zip(outputs, scales)):
        weight, bias = _layer_sigmas(layer, sigmas)
        if index:
            s = overlaps.diagonal().sqrt()
            product, _ = dual_at(activation, float(s.min()), float(s.max())).pair_(overlaps.clone(), s, s)
            product.diagonal().copy_(second_moments(activation, overlaps.diagonal())[0])
        else:
            product = overlaps
        new = bias**2 + weight**2 * product
        overlaps = new if scale is None else overlaps + scale**2 * new
        results.append(overlaps)
    return results


def _layer_sigmas(layer: nn.Module, sigmas: tuple[float | None, float | None]) -> tuple[float, float]:
    """sigma_w and sigma_b as given, else from the root mean squares of this layer's parameters."""
    sigma_w, sigma_b = sigmas
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    if sigma_w is None:
        sigma_w = math.sqrt(math.prod(weight.shape[1:]) * float(weight.double().square().mean()))
    if sigma_b is None:
        sigma_b = math.sqrt(float(bias.double().square().mean())) if isinstance(bias, Tensor) else 0.0
    return sigma_w, sigma_b


def _summary(overlaps: list[Tensor]) -> tuple[Tensor, Tensor]:
    """q averaged over examples and c over pairs, [layers] each."""
    stacked = torch.stack([o.cpu() for o in overlaps])
    q = stacked.diagonal(dim1=1, dim2=2)
    scale = q.clamp_min(1e-300).sqrt()
    c = stacked / scale[:, :, None] / scale[:, None, :]
    i, j = torch.triu_indices(c.shape[1], c.shape[1], offset=1)
    return q.mean(1), c[:, i, j].mean(1)
