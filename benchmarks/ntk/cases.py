"""The networks and data of the benchmark, in NumPy alone, so that every contestant starts from the same bits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

SEED = 0


class Layer(NamedTuple):
    """One step of a chain; two layers that name the same weight share it, the same weight and bias are one module."""

    kind: Literal["linear", "conv", "relu", "pool"]
    fan_in: int = 0
    fan_out: int = 0
    weight: str = ""
    bias: str = ""


@dataclass(frozen=True)
class Case:
    """A chain of layers, n inputs, and what is asked for: the full kernel or its trace over outputs.

    Convolutions are 3 x 3 with zero padding and stride 1; "pool" is the mean over positions.
    """

    name: str
    n: int
    input_shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    outputs: Literal["full", "trace"] = "full"

    @property
    def n_outputs(self) -> int:
        return self.layers[-1].fan_out

    @property
    def rows(self) -> int:
        """Rows of the kernel that is asked for."""
        return self.n * (self.n_outputs if self.outputs == "full" else 1)

    def weights(self) -> dict[str, np.ndarray]:
        """float32 by name: weights of variance 2 / fan-in [out, in, ...], biases of standard deviation 0.1 [out]."""
        random = np.random.default_rng(SEED)
        made: dict[str, np.ndarray] = {}
        for layer in self.layers:
            if not layer.weight:
                continue
            kernel = (3, 3) if layer.kind == "conv" else ()
            scale = (2 / (layer.fan_in * int(np.prod(kernel)))) ** 0.5
            if layer.weight not in made:
                made[layer.weight] = scale * random.standard_normal((layer.fan_out, layer.fan_in, *kernel))
            if layer.bias not in made:
                made[layer.bias] = 0.1 * random.standard_normal(layer.fan_out)
        return {name: value.astype(np.float32) for name, value in made.items()}

    def inputs(self) -> np.ndarray:
        """[n, ...], standard normal, float32."""
        random = np.random.default_rng(SEED + 1)
        return random.standard_normal((self.n, *self.input_shape)).astype(np.float32)


def mlp(*widths: int) -> tuple[Layer, ...]:
    """Linear layers with biases and ReLU between them."""
    layers: list[Layer] = []
    for index, (fan_in, fan_out) in enumerate(pairwise(widths)):
        layers += [Layer("linear", fan_in, fan_out, f"w{index}", f"b{index}"), Layer("relu")]
    return tuple(layers[:-1])


def cnn(*channels: int, n_outputs: int) -> tuple[Layer, ...]:
    """Convolutions with biases, each followed by ReLU, the mean over positions, and a linear read-out."""
    layers: list[Layer] = []
    for index, (fan_in, fan_out) in enumerate(pairwise(channels)):
        layers += [Layer("conv", fan_in, fan_out, f"w{index}", f"b{index}"), Layer("relu")]
    return (*layers, Layer("pool"), Layer("linear", channels[-1], n_outputs, "w_out", "b_out"))


def shared(*, module: bool) -> tuple[Layer, ...]:
    """Two equal layers in a row: one module used twice, or two modules that share their weight but not their bias."""
    first = Layer("linear", 32, 32, "w1", "b1")
    second = first if module else first._replace(bias="b2")
    ends = (Layer("linear", 16, 32, "w0", "b0"), Layer("linear", 32, 3, "w3", "b3"))
    relu = Layer("relu")
    return (ends[0], relu, first, relu, second, relu, ends[1])


_WIDE_MLP = Case("mlp_full", 256, (784,), mlp(784, 512, 512, 10))

TIMED: tuple[Case, ...] = (
    Case("mlp_one_output", 512, (64,), mlp(64, 4096, 1)),
    replace(_WIDE_MLP, name="mlp_trace", outputs="trace"),
    _WIDE_MLP,
    Case("cnn_full", 64, (3, 16, 16), cnn(3, 32, 64, 64, n_outputs=10)),
)
SHARED: tuple[Case, ...] = (
    Case("tied_weights", 24, (16,), shared(module=False)),
    Case("reused_layer", 24, (16,), shared(module=True)),
)
WARM_UP = Case("warm_up", 2, (4,), mlp(4, 8, 3))
"""Small enough to cost nothing: brings in what a library imports late, before memory is counted."""
CASES = {case.name: case for case in TIMED + SHARED}
TITLES = {
    "mlp_one_output": "64-4096-1, n = 512",
    "mlp_trace": "784-512-512-10, n = 256, outputs summed",
    "mlp_full": "the same, full 2560 x 2560",
    "cnn_full": "CNN 32-64-64, 10 outputs, n = 64, full",
    "tied_weights": "tied weights",
    "reused_layer": "a layer used twice",
}


def operations(case: Case) -> int:
    """Multiplications and additions of the layer-wise algorithm: a lower count than any contestant here performs.

    Forward pass, backpropagated deltas of every output, and per layer the activation Gram and the delta Gram; for a
    convolution its Jacobian and the Jacobian's Gram. A symmetric Gram counts half. The delta of the read-out is the
    identity and costs nothing. Elementwise work is not counted.
    """
    c, n = case.n_outputs, case.n
    gram_rows, copies = (n * c, 1) if case.outputs == "full" else (n, c)
    positions = int(np.prod(case.input_shape[1:])) if len(case.input_shape) > 1 else 1
    weighted = [layer for layer in case.layers if layer.weight]
    total = 0
    for index, layer in enumerate(weighted):
        taps = 9 if layer.kind == "conv" else 1
        here = positions if layer.kind == "conv" else 1
        size = layer.fan_in * layer.fan_out * taps
        total += 2 * n * here * size  # forward
        first, last = index == 0, index == len(weighted) - 1
        if not (first or last):
            total += 2 * n * c * here * size  # deltas to the layer before
        if layer.kind == "conv":
            total += 2 * n * c * here * size + gram_rows**2 * copies * size
        else:
            total += n**2 * layer.fan_in + (0 if last else gram_rows**2 * copies * layer.fan_out)
    return total
