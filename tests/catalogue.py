"""One small network for every kind of layer, with inputs, and its kernel by one plain backward pass per output."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from sgdsde.networks import CNN, MLP
from tests import architectures as nets
from tests.architectures import Wrapped, normalized

N = 3
"""Examples of every case."""


@dataclass(frozen=True)
class NetCase:
    """A network and inputs of one shape.

    Attributes:
        build: makes the network. shape: of one example.
        tokens: inputs are integers below this number (0: real inputs).
        vectorizes: False where torch.func is known to need the slow path.
    """

    build: Callable[[], Any]
    shape: tuple[int, ...]
    tokens: int = 0
    vectorizes: bool = True

    def model(self, dtype: torch.dtype = torch.float64) -> Any:
        """A copy of the network in eval mode with random parameters, always the same."""
        generator = torch.Generator().manual_seed(0)
        model = copy.deepcopy(self.build())
        if not isinstance(model, nn.Module):
            return model[0], {name: torch.randn(v.shape, generator=generator).to(dtype) for name, v in model[1].items()}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator))
        return model.to(dtype).eval()

    def inputs(self, n: int = N, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        if self.tokens:
            return torch.randint(self.tokens, (n, *self.shape), generator=generator)
        return torch.randn(n, *self.shape, generator=generator, dtype=torch.float64).to(dtype)


def kernel_by_backward(model: Any, x1: Tensor, x2: Tensor | None = None, where: Callable[[str], bool] | None = None):
    """J(x1) J(x2)^T in float64 from one backward pass per output of the user's own model."""
    left = jacobian_by_backward(model, x1, where)
    right = left if x2 is None else jacobian_by_backward(model, x2, where)
    return left.double() @ right.double().mT


def jacobian_by_backward(model: Any, x: Tensor, where: Callable[[str], bool] | None = None) -> Tensor:
    """[n*c, p], the parameters joined; shared ones once."""
    if isinstance(model, nn.Module):
        named = dict(model.named_parameters())
        outputs = model(x)
    else:
        named = {name: value.detach().requires_grad_() for name, value in model[1].items()}
        outputs = model[0](named, x)
    leaves = [value for name, value in named.items() if value.requires_grad and (where is None or where(name))]
    rows = []
    for output in outputs.flatten():
        gradients = torch.autograd.grad(output, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([gradient.to_dense().flatten() for gradient in gradients]))
    return torch.stack(rows)


IMAGE, SEQUENCE = (2, 4, 4), (3, 4)


def scaled_twice(model: Any, x: Tensor) -> Tensor:
    """Two dense layers whose weights and biases have scales of their own."""
    hidden = functional.linear(x, 0.5 * model.first.weight, 0.3 * model.first.bias).tanh()
    return functional.linear(hidden, model.second.weight, model.second.bias * -3)


def stack(*layers: nn.Module, shape: tuple[int, ...]) -> NetCase:
    return NetCase(lambda: nn.Sequential(*layers, nn.Flatten()), shape)


def between(*layers: nn.Module) -> NetCase:
    """Layers between two dense ones."""
    return NetCase(lambda: nn.Sequential(nn.Linear(4, 4), *layers, nn.Linear(4, 2)), (4,))


def after_convolution(*layers: nn.Module, shape: tuple[int, ...] = IMAGE) -> NetCase:
    return NetCase(lambda: nn.Sequential(nn.Conv2d(shape[0], 4, 2), *layers, nn.Flatten()), shape)


def embedding(**words: Any) -> NetCase:
    return NetCase(lambda: nn.Sequential(nn.Embedding(5, 3, **words), nn.Flatten(), nn.Linear(12, 2)), (4,), tokens=5)


def bag(mode: str, **words: Any) -> NetCase:
    return NetCase(lambda: nn.EmbeddingBag(5, 3, mode=mode, **words), (4,), tokens=5)


CONVOLUTIONS = {
    "conv1d": stack(nn.Conv1d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv1d(3, 1, 2), shape=(2, 5)),
    "conv2d": stack(nn.Conv2d(2, 3, 3), nn.Tanh(), shape=IMAGE),
    "conv3d": stack(nn.Conv3d(1, 2, 2), shape=(1, 3, 3, 2)),
    "conv grouped": stack(nn.Conv2d(4, 4, 2, groups=2), shape=(4, 3, 3)),
    "conv depthwise": stack(nn.Conv2d(3, 6, 2, groups=3), shape=(3, 3, 2)),
    "conv strided": stack(nn.Conv2d(2, 3, 2, stride=2), shape=IMAGE),
    "conv dilated": stack(nn.Conv2d(2, 2, 2, dilation=2), shape=IMAGE),
    "conv circular": stack(nn.Conv2d(2, 1, 3, padding=1, padding_mode="circular"), shape=IMAGE),
    "conv reflect": stack(nn.Conv2d(2, 1, 3, padding=1, padding_mode="reflect"), shape=IMAGE),
    "conv same": stack(nn.Conv1d(2, 1, 3, padding="same"), shape=(2, 5)),
    "conv transposed 1d": stack(nn.ConvTranspose1d(2, 2, 2, stride=2), shape=(2, 3)),
    "conv transposed 2d": stack(nn.ConvTranspose2d(2, 2, 2, stride=2, output_padding=1), shape=(2, 2, 2)),
    "conv transposed 3d": stack(nn.ConvTranspose3d(1, 1, 2), shape=(1, 2, 2, 1)),
    "conv transposed grouped": stack(nn.ConvTranspose2d(4, 2, 2, groups=2), shape=(4, 2, 2)),
    "squeeze and excite": NetCase(nets.squeeze_and_excite, IMAGE),
    "residual block": NetCase(nets.residual_block, IMAGE),
    "unet skip": NetCase(nets.skip_connection, IMAGE),
}

NORMALIZATIONS = {
    "batch norm 1d": NetCase(lambda: nn.Sequential(nn.Linear(4, 4), normalized(nn.BatchNorm1d(4))), (4,)),
    "batch norm 2d": NetCase(
        lambda: nn.Sequential(nn.Conv2d(2, 3, 2), normalized(nn.BatchNorm2d(3)), nn.Flatten()), IMAGE
    ),
    "batch norm without affine": NetCase(
        lambda: nn.Sequential(nn.Linear(4, 3), normalized(nn.BatchNorm1d(3, affine=False))), (4,)
    ),
    "layer norm": between(nn.LayerNorm(4)),
    "group norm": after_convolution(nn.GroupNorm(2, 4)),
    "instance norm": after_convolution(nn.InstanceNorm2d(4, affine=True)),
    "instance norm 1d": stack(nn.Conv1d(2, 3, 2), nn.InstanceNorm1d(3), shape=(2, 5)),
    "instance norm with statistics": NetCase(
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 2), normalized(nn.InstanceNorm2d(3, affine=True, track_running_stats=True)), nn.Flatten()
        ),
        IMAGE,
    ),
    "rms norm": between(nn.RMSNorm(4)),
    "local response norm": after_convolution(nn.LocalResponseNorm(2)),
    "weight norm": NetCase(
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 2)), (4,)
    ),
    "spectral norm": NetCase(nets.spectral, (4,)),
    "orthogonal": NetCase(lambda: parametrizations.orthogonal(nn.Linear(4, 4)), (4,)),
    "own parametrization": NetCase(nets.squared_weights, (4,)),
}

SEQUENCES = {
    "embedding": embedding(),
    "embedding with padding": embedding(padding_idx=0),
    "sparse embedding": embedding(sparse=True),
    "embedding bag": bag("mean"),
    "embedding bag of sums": bag("sum"),
    "embedding bag of maxima": bag("max", padding_idx=1),
    "multihead attention": NetCase(nets.multihead_attention, SEQUENCE),
    "attention by hand": NetCase(nets.attention_by_hand, SEQUENCE),
    "transformer encoder layer": NetCase(
        lambda: nn.Sequential(nn.TransformerEncoderLayer(4, 2, dim_feedforward=5, batch_first=True), nn.Flatten()),
        SEQUENCE,
    ),
    "transformer encoder": NetCase(nets.transformer_encoder, SEQUENCE),
    "lstm": NetCase(nets.recurrent(nn.LSTM), (4, 3), vectorizes=False),
    "gru": NetCase(nets.recurrent(nn.GRU), (4, 3), vectorizes=False),
    "rnn": NetCase(nets.recurrent(nn.RNN), (4, 3), vectorizes=False),
    "lstm both ways": NetCase(nets.recurrent(nn.LSTM, num_layers=2, bidirectional=True), (4, 3), vectorizes=False),
    "gru cell": NetCase(nets.recurrent_cell, (4, 3)),
}

PARAMETERS = {
    "tied weights": NetCase(nets.tied_weights, (4,)),
    "transposed tie": NetCase(nets.transposed_tie, (4,)),
    "layer used twice": NetCase(nets.used_twice, (4,)),
    "one layer under two names": NetCase(nets.one_layer_under_two_names, (4,)),
    "bare parameters": NetCase(nets.bare_parameters, (4,)),
    "parameter list": NetCase(nets.parameter_list, (4,)),
    "parameter dict": NetCase(nets.parameter_dict, (4,)),
    "module list and dict": NetCase(nets.module_containers, (4,)),
    "frozen parameters": NetCase(nets.frozen_part, (4,)),
    "frozen tied parameter": NetCase(nets.frozen_and_tied, (4,)),
    "parameter without influence": NetCase(nets.without_influence, (4,)),
    "pair of function and parameters": NetCase(nets.by_functions, (4,)),
}

SHAPES = {
    "shapes under control": NetCase(nets.shapes_under_control, IMAGE),
    "through fourier space": NetCase(nets.filtered_in_fourier_space, (6,)),
    "own backward pass": NetCase(nets.own_backward_pass, (4,), vectorizes=False),
    "max pool": after_convolution(nn.MaxPool2d(2)),
    "average pool": after_convolution(nn.AvgPool2d(2)),
    "adaptive average pool": after_convolution(nn.AdaptiveAvgPool2d((2, 1))),
    "adaptive max pool": after_convolution(nn.AdaptiveMaxPool2d(2)),
    "power pool": after_convolution(nn.Softplus(), nn.LPPool2d(2, 2)),
    "upsample": after_convolution(nn.Upsample(scale_factor=2, mode="bilinear"), shape=(1, 3, 2)),
    "upsample nearest": after_convolution(nn.Upsample(scale_factor=2), shape=(1, 3, 2)),
    "pixel shuffle": after_convolution(nn.PixelShuffle(2)),
    "fold": stack(nn.Linear(4, 4), nn.Fold((3, 3), 2), shape=(4, 4)),
    "reshape": NetCase(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)), nn.Linear(3, 2), nn.Flatten()), (4,)
    ),
    "bilinear": NetCase(lambda: Wrapped(lambda m, x: m.pair(x[:, :2], x[:, 2:]), pair=nn.Bilinear(2, 2, 3)), (4,)),
    "layer norm by its function": NetCase(
        lambda: Wrapped(
            lambda m, x: torch.layer_norm(0.01 * m.layer(x), (4,), m.norm.weight, m.norm.bias),
            layer=nn.Linear(4, 4),
            norm=nn.LayerNorm(4),
        ),
        (4,),
    ),
    "group norm by its function": NetCase(
        lambda: Wrapped(
            lambda m, x: torch.group_norm(0.01 * m.layer(x), 2, m.norm.weight, m.norm.bias),
            layer=nn.Linear(4, 4),
            norm=nn.GroupNorm(2, 4),
        ),
        (4,),
    ),
    "own dense network": NetCase(lambda: MLP(4, 5, 3, depth=2, activation="tanh", sigma_b=0.3), (4,)),
    "own convolutional network": NetCase(lambda: CNN(2, 4, 3, 2, depth=1, sigma_b=0.4), IMAGE),
    "scaled weights and biases": NetCase(
        lambda: Wrapped(scaled_twice, first=nn.Linear(4, 5), second=nn.Linear(5, 3)), (4,)
    ),
    "scaled biases of positions": NetCase(
        lambda: Wrapped(lambda m, x: scaled_twice(m, x).flatten(1), first=nn.Linear(4, 3), second=nn.Linear(3, 2)),
        SEQUENCE,
    ),
}

ACTIVATIONS = {
    "linear": stack(nn.Linear(4, 3), shape=(4,)),
    "linear without bias": stack(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 1), shape=(4,)),
    "prelu": between(nn.PReLU(4)),
    "softmax": between(nn.Softmax(dim=-1)),
    "log softmax": between(nn.LogSoftmax(dim=-1)),
    "gelu by tanh": between(nn.GELU("tanh")),
    "glu": stack(nn.Linear(4, 6), nn.GLU(), nn.Linear(3, 1), shape=(4,)),
    "sine": NetCase(lambda: Wrapped(lambda m, x: torch.sin(3 * m.layer(x)), layer=nn.Linear(4, 2)), (4,)),
    "relu in place": between(nn.ReLU(inplace=True)),
    "dropout in eval": between(nn.Dropout(0.5)),
} | {
    kind.__name__: between(kind())
    for kind in (
        *(nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.SELU, nn.CELU, nn.LeakyReLU, nn.RReLU, nn.ReLU6, nn.Softplus),
        *(nn.Softsign, nn.Sigmoid, nn.LogSigmoid, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Tanhshrink),
        *(nn.Softshrink, nn.Tanh),
    )
}

CASES = CONVOLUTIONS | NORMALIZATIONS | SEQUENCES | PARAMETERS | SHAPES | ACTIVATIONS
