"""The layers of a stack one by one: each taken for what it is, and what is only nearly known for nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sgdsde
from sgdsde._functional import as_functional
from sgdsde.ensemble.chain import chain_of
from sgdsde.ensemble.layers import RELU, TANH, Affine, Convolution, Flatten, Layer, PerExample
from sgdsde.ensemble.stepper import Loop
from sgdsde.networks import CNN, MLP
from tests.unit.ensemble.test_steppers import network, seeded, trained


class Halved(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


def with_hook(make: Callable[[], nn.Module], *path: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = make()
        model.get_submodule(".".join(path)).register_forward_hook(lambda layer, inputs, y: 3 * y)
        return model

    return build


OF_IMAGES: dict[str, Callable[[], nn.Module]] = {
    "reflected borders": lambda: nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), nn.Flatten()),
    "padding in a word": lambda: nn.Sequential(nn.Conv2d(2, 2, 3, padding="same"), nn.Flatten()),
    "subclass": lambda: nn.Sequential(Halved(2, 2, 3), nn.Flatten()),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(2, 2, 3), nn.Flatten()),
    "statistics without weights": lambda: nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2, affine=False).eval()),
    "MLP, trained activation": network(MLP, 72, 6, 1, activation=nn.PReLU()),
    "MLP, two activations": network(MLP, 72, 6, 1, activation=nn.Sequential(nn.Tanh(), nn.SiLU())),
    "MLP, hidden layer with a hook": with_hook(network(MLP, 72, 6, 1), "hidden", "0"),
    "CNN, read-out with a hook": with_hook(network(CNN, 2, 6, 3, 2), "read_out"),
}


@pytest.mark.parametrize("name", OF_IMAGES)
def test_layers_that_are_nearly_known_are_not_taken_for_known(name: str) -> None:
    model = seeded(OF_IMAGES[name])()
    assert chain_of(as_functional(model)) is None


@pytest.mark.parametrize(("layer", "kinds"), [
    (nn.Flatten(), [Flatten]), (nn.Flatten(1, 3), [PerExample]), (nn.Flatten(2), [PerExample]),
    (nn.ReLU(), [RELU]), (nn.Tanh(), [TANH]), (nn.GELU(), [PerExample]), (nn.MaxPool2d(2), [PerExample]),
    (nn.Conv2d(2, 3, 2), [Convolution]), (nn.Sequential(nn.ReLU(), nn.Flatten()), [RELU, Flatten]),
    (MLP(72, 5, 1, activation="relu"), [Flatten, Affine, RELU, Affine]),
    (MLP(72, 5, 1, activation="erf"), [Flatten, Affine, PerExample, Affine]),
    (MLP(72, 5, 1, activation=nn.Tanh()), [Flatten, Affine, TANH, Affine]),
    (CNN(2, 4, 3, 1, activation="tanh"), [Convolution, TANH, Flatten, Affine]),
    (CNN(2, 4, 3, 1, activation="tanh", readout="pool"), [Convolution, TANH, PerExample, Affine]),
], ids=lambda value: type(value).__name__)  # fmt: skip
def test_each_layer_is_taken_for_what_it_is(layer: nn.Module, kinds: list[type[Layer] | Layer]) -> None:
    """Known ones by hand, others without tensors of their own example by example."""
    chain = chain_of(as_functional(nn.Sequential(layer, nn.Linear(1, 1))))
    assert chain is not None
    assert len(chain) == len(kinds) + 1
    for found, kind in zip(chain, kinds):
        assert isinstance(found, kind) if isinstance(kind, type) else found is kind


@pytest.mark.parametrize("layer", [nn.Flatten(2), nn.Flatten(1, 2), nn.Softmax(-1), nn.MaxPool1d(2)], ids=str)
def test_layers_taken_example_by_example_are_those_of_a_loop(layer: nn.Module) -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 4), layer, nn.Flatten(), nn.LazyLinear(2)))()
    x = torch.randn(9, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model(x)
    problem = sgdsde.Problem(model, x, x[:, 0, :2], loss=nn.MSELoss())
    torch.testing.assert_close(trained(problem, None, {}), trained(problem, Loop, {}), rtol=1e-10, atol=1e-12)
