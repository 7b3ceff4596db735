"""Networks that share, freeze, reuse, hide or never use their parameters, written out for the catalogue of cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


class Wrapped(nn.Module):
    """A forward pass given as a function of the layers."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: Any) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self._function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._function(self, x)


def normalized(layer: nn.Module) -> nn.Module:
    """A batch normalization with statistics as after training."""
    with torch.no_grad():
        layer.running_mean.uniform_(-1, 1)
        layer.running_var.uniform_(0.5, 2)
        if layer.affine:
            layer.weight.normal_()
            layer.bias.normal_()
    return layer


def tied_weights() -> nn.Module:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second, nn.Linear(4, 2))


def used_twice() -> nn.Module:
    layer, readout = nn.Linear(4, 4), nn.Linear(4, 2)
    return Wrapped(lambda m, x: m.readout(m.layer(torch.tanh(m.layer(x)))), layer=layer, readout=readout)


def one_layer_under_two_names() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.GELU(), layer, nn.Linear(4, 1))


def transposed_tie() -> nn.Module:
    return Wrapped(lambda m, x: F.linear(torch.tanh(m.encode(x)), m.encode.weight.mT), encode=nn.Linear(4, 3))


def frozen_part() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    model[0].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    return model


def frozen_and_tied() -> nn.Module:
    """A frozen layer in between, and a frozen parameter in two places."""
    first, middle, last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    last.weight = first.weight
    first.weight.requires_grad_(False)
    return nn.Sequential(first, nn.Tanh(), middle, nn.Tanh(), last)


def bare_parameters() -> nn.Module:
    weight, scale = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(()))
    return Wrapped(lambda m, x: torch.exp(m.scale) * torch.sin(x @ m.weight), weight=weight, scale=scale)


def parameter_list() -> nn.Module:
    weights = nn.ParameterList([nn.Parameter(torch.randn(4, 4)) for _ in range(3)])

    def forward(m: Any, x: Tensor) -> Tensor:
        for weight in m.weights:
            x = torch.tanh(x @ weight)
        return x

    return Wrapped(forward, weights=weights)


def parameter_dict() -> nn.Module:
    weights = nn.ParameterDict({"a": nn.Parameter(torch.randn(4, 3)), "b": nn.Parameter(torch.randn(4, 3))})
    return Wrapped(lambda m, x: torch.tanh(x @ m.weights["a"]) * (x @ m.weights["b"]), weights=weights)


def module_containers() -> nn.Module:
    layers = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.SiLU()) for _ in range(2)])
    heads = nn.ModuleDict({"left": nn.Linear(4, 1), "right": nn.Linear(4, 2)})

    def forward(m: Any, x: Tensor) -> Tensor:
        for layer in m.layers:
            x = x + layer(x)
        return torch.cat([head(x) for head in m.heads.values()], dim=1)

    return Wrapped(forward, layers=layers, heads=heads)


def without_influence() -> nn.Module:
    return Wrapped(
        lambda m, x: m.used(x), used=nn.Linear(4, 2), unused=nn.Linear(4, 3), bare=nn.Parameter(torch.ones(2))
    )


def shapes_under_control() -> nn.Module:
    """Views, transposes, unfolds and concatenations whose sizes come from the input's shape."""

    def forward(m: Any, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        rows = x.permute(0, 2, 1, 3).reshape(n * height, channels * width)
        hidden = torch.tanh(m.row(rows)).view(n, height, -1)
        patches = F.unfold(x, kernel_size=2).transpose(1, 2)
        both = [hidden[:, ::2].flatten(1), m.patch(patches).amax(1), hidden.roll(1, dims=1).cumsum(1)[:, -1]]
        return torch.cat(both, dim=-1)

    return Wrapped(forward, row=nn.Linear(8, 2), patch=nn.Linear(8, 3))


def attention_by_hand() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        query, key, value = (part.view(len(x), 3, 2, 2).transpose(1, 2) for part in m.qkv(x).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return m.out(mixed.transpose(1, 2).flatten(2)).mean(1)

    return Wrapped(forward, qkv=nn.Linear(4, 12), out=nn.Linear(4, 2))


def multihead_attention() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.attention(x, x, x, need_weights=False)[0].flatten(1)

    return Wrapped(forward, attention=nn.MultiheadAttention(4, 2, batch_first=True))


def recurrent(kind: type[nn.RNNBase], **words: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        layer = kind(3, 4, batch_first=True, **words)
        size = 8 if words.get("bidirectional") else 4
        return Wrapped(lambda m, x: m.readout(m.layer(x)[0][:, -1]), layer=layer, readout=nn.Linear(size, 2))

    return build


def recurrent_cell() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 4)
        for t in range(x.shape[1]):
            state = m.cell(x[:, t], state)
        return state

    return Wrapped(forward, cell=nn.GRUCell(3, 4))


def by_functions() -> tuple[Callable[[dict[str, Tensor], Tensor], Tensor], dict[str, Tensor]]:
    params = {"w": torch.randn(4, 3), "b": torch.randn(3), "v": torch.randn(3, 2)}
    return (lambda p, x: torch.erf(x @ p["w"] + p["b"]) @ p["v"]), params


def spectral() -> nn.Module:
    layer = parametrizations.spectral_norm(nn.Linear(4, 4))
    return nn.Sequential(layer.eval(), nn.Tanh(), nn.Linear(4, 2))


def squared_weights() -> nn.Module:
    class Square(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            return value.square()

    layer = nn.Linear(4, 2)
    nn.utils.parametrize.register_parametrization(layer, "weight", Square())
    return layer


def filtered_in_fourier_space() -> nn.Module:
    """Complex numbers inside, real outputs."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(m.filter), n=x.shape[-1])

    return Wrapped(forward, filter=nn.Parameter(torch.randn(6)))


class Cube(torch.autograd.Function):
    """A function with a hand-written derivative, which torch.func does not know."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        context.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return 3 * context.saved_tensors[0] ** 2 * gradient


def own_backward_pass() -> nn.Module:
    return Wrapped(lambda m, x: m.readout(Cube.apply(m.layer(x))), layer=nn.Linear(4, 3), readout=nn.Linear(3, 2))


def squeeze_and_excite() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        features = m.conv(x)
        return (features * torch.sigmoid(m.gate(features.mean((2, 3))))[..., None, None]).mean((2, 3))

    return Wrapped(forward, conv=nn.Conv2d(2, 3, 3), gate=nn.Linear(3, 3))


def residual_block() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.readout((x + m.second(F.relu(m.norm(m.first(x))))).mean((2, 3)))

    layers = {"first": nn.Conv2d(2, 2, 3, padding=1), "second": nn.Conv2d(2, 2, 3, padding=1)}
    return Wrapped(forward, norm=normalized(nn.BatchNorm2d(2)), readout=nn.Linear(2, 2), **layers)


def skip_connection() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        down = torch.tanh(m.down(x))
        return m.readout(torch.cat([x, m.up(down)], dim=1)).flatten(1)

    layers = {"down": nn.Conv2d(2, 3, 2, stride=2), "up": nn.ConvTranspose2d(3, 2, 2, stride=2)}
    return Wrapped(forward, readout=nn.Conv2d(4, 1, 3), **layers)


def transformer_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=5, activation="gelu", batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(12, 2))
