"""Ways to step several runs: batched products, vmap and a loop are one and the same training."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sgdsde
from sgdsde.ensemble import batched_products
from sgdsde.ensemble.batched_products import BatchedProducts
from sgdsde.ensemble.batches import Batches
from sgdsde.ensemble.chain import chain_of
from sgdsde.ensemble.layers import Affine
from sgdsde.ensemble.rates import Rates
from sgdsde.ensemble.real import RealLearner
from sgdsde.ensemble.stepper import Loop, Vmapped
from sgdsde.networks import CNN, MLP
from tests.settings import each


def seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return make().double()

    return build


def network(kind: type, *sizes: int, **words: Any) -> Callable[[], nn.Module]:
    return lambda: kind(*sizes, **words, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


IMAGES, ROWS, WORDS = (2, 6, 6), (5,), (4, 5)
STACKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "linear": (seeded(lambda: nn.Linear(5, 2)), ROWS, 2),
    "dense stack": (seeded(lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 1, bias=False))), ROWS, 1),
    "activations": (
        seeded(
            lambda: nn.Sequential(
                *(nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 4), nn.Sigmoid()),
                *(nn.Softplus(), nn.Linear(4, 3), nn.LeakyReLU(0.2)),
            )
        ),
        ROWS,
        3,
    ),
    "nested, flattened": (
        seeded(lambda: nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(72, 4), nn.ELU()), nn.Linear(4, 2))),
        IMAGES,
        2,
    ),
    "positions": (
        seeded(lambda: nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2), nn.Identity())),
        WORDS,
        2,
    ),
    "convolutions": (
        seeded(
            lambda: nn.Sequential(
                *(nn.Conv2d(2, 4, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(4, 4, 2, groups=2, dilation=2)),
                *(nn.AvgPool2d(1), nn.SiLU(), nn.Flatten(), nn.Linear(4, 2)),
            )
        ),
        IMAGES,
        2,
    ),
    "pooled convolutions": (
        seeded(
            lambda: nn.Sequential(
                *(nn.Conv2d(2, 3, 3, bias=False), nn.Tanh(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)),
                *(nn.Flatten(), nn.Linear(3, 1)),
            )
        ),
        IMAGES,
        1,
    ),
    "oblong, dilated, wide, overpadded convolutions": (
        seeded(
            lambda: nn.Sequential(
                *(nn.Conv2d(2, 3, 1), nn.Conv2d(3, 4, (3, 2), padding=(1, 0)), nn.Tanh()),
                *(nn.Conv2d(4, 5, 2, dilation=(1, 2), padding=(0, 2)), nn.Tanh(), nn.Conv2d(5, 17, 2), nn.Tanh()),
                *(nn.Conv2d(17, 2, 3), nn.Tanh(), nn.Conv2d(2, 1, 1, padding=1), nn.Flatten(), nn.Linear(24, 1)),
            )
        ),
        IMAGES,
        1,
    ),
    "MLP": (network(MLP, 72, 6, 1, depth=2, sigma_b=0.3), IMAGES, 1),
    "MLP, own activation": (network(MLP, 5, 6, 2, activation=lambda x: x * torch.sin(x)), ROWS, 2),
    "MLP, module activation": (network(MLP, 5, 6, 2, activation=nn.Tanh(), parametrization="standard"), ROWS, 2),
    "CNN": (network(CNN, 2, 6, 3, 2, depth=2, activation="erf", sigma_b=0.2), IMAGES, 2),
    "pooled CNN": (network(CNN, 2, 6, 3, 1, depth=2, readout="pool"), IMAGES, 1),
}
LOSSES: dict[str, Any] = {
    "squared error": nn.MSELoss(),
    "cross-entropy": nn.CrossEntropyLoss(label_smoothing=0.1),
    "Huber": nn.HuberLoss(delta=0.3),
    "own function": lambda f, y: (f - y).abs().pow(1.5).mean(),
}


def problem_of(name: str, loss: str = "squared error") -> sgdsde.Problem:
    make, shape, c = STACKS[name]
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(9, *shape, dtype=torch.float64, generator=generator)
    y = torch.randn(9, c, dtype=torch.float64, generator=generator)
    labels: Tensor = torch.arange(9) % c if loss == "cross-entropy" else y
    return sgdsde.Problem(make(), x, labels, loss=LOSSES[loss])


def trained(problem: sgdsde.Problem, stepper: Any, words: dict[str, Any], *, weighted: bool = False) -> Tensor:
    """Outputs of three runs with learning rates, decays and momenta of their own after four steps, and the losses."""
    learner = RealLearner(problem, stepper)
    sgds = []
    for lr, part in ((0.05, 1.0), (0.1, 0.5), (0.02, 0.9)):
        scaled = {key: part * words[key] for key in ("weight_decay", "momentum") if key in words}
        sgds.append(sgdsde.SGD(lr, 4, **words | scaled))
    generator = torch.Generator().manual_seed(7)
    indices = torch.randint(0, 9, (4, 3, 4), generator=generator)
    weights = torch.randn(4, 3, 4, dtype=torch.float64, generator=generator) / 4 if weighted else None
    state = learner.start(3)
    buffer = {name: torch.zeros_like(value) for name, value in state.items()}
    rates = Rates(sgds, [sgd.plan(9, 4) for sgd in sgds], 1, next(iter(state.values())))
    updates = rates.updates(*rates.of(range(4)))
    losses = learner.advance(state, buffer, Batches(indices, weights), updates)
    assert losses.shape == (4, 3)
    return torch.cat([learner.all_outputs(state)[0].flatten(), losses.flatten()])


@pytest.mark.parametrize("name", STACKS)
def test_stacks_are_found_and_stepped_as_by_vmap_and_by_a_loop(name):
    problem = problem_of(name)
    assert isinstance(RealLearner(problem).stepper, BatchedProducts)
    found = trained(problem, None, {})
    for other in (Vmapped, Loop):
        torch.testing.assert_close(found, trained(problem, other, {}), rtol=1e-10, atol=1e-12)


@each("decay", "momentum", "nesterov, decay", "momentum, dampening, decay")
@pytest.mark.parametrize("name", ["dense stack", "convolutions"])
def test_every_update_is_that_of_a_loop(name, words):
    problem = problem_of(name)
    torch.testing.assert_close(trained(problem, None, words), trained(problem, Loop, words), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_and_weights_of_examples(loss, weighted):
    problem = problem_of("activations", loss)
    found, expected = (trained(problem, way, {}, weighted=weighted) for way in (None, Loop))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@each("plain", "momentum")
@pytest.mark.parametrize("way", [None, Vmapped, Loop], ids=["products", "vmap", "loop"])
def test_label_noise_is_added_to_the_targets_and_trained_on(way, words):
    problem = problem_of("activations")
    learner, sgd = RealLearner(problem, way), sgdsde.SGD(0.1, 4, **words)
    indices = torch.arange(16).view(2, 2, 4) % 9
    noise = torch.randn(2, 2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    state = learner.start(2)
    buffer = {name: torch.zeros_like(value) for name, value in state.items()}
    rates = Rates([sgd], [sgd.plan(9, 2)], 2, next(iter(state.values())))
    losses = learner.advance(state, buffer, Batches(indices, None, noise), rates.updates(*rates.of(range(2))))
    for run in range(2):
        model = copy.deepcopy(problem.model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=sgd.momentum)
        for k in range(2):
            rows = indices[k, run]
            loss = nn.functional.mse_loss(model(problem.x_train[rows]), problem.y_train[rows] + noise[k, run])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            torch.testing.assert_close(losses[k, run], loss.detach(), rtol=1e-10, atol=0)
        torch.testing.assert_close(
            learner.all_outputs(state)[0][run], model(problem.x_train).detach(), rtol=1e-10, atol=0
        )


# ---------------------------------------------------------------------------------------------- what is no such stack


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def twice() -> nn.Module:
    layer = nn.Linear(5, 5)
    return nn.Sequential(layer, nn.ReLU(), layer)


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    model[2].weight = model[0].weight
    return model


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU())
    model[0].register_forward_hook(lambda layer, inputs, y: 3 * y)
    return model


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    model[0].weight.requires_grad_(False)
    return model


def own_forward() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 5), nn.ReLU())
    model.forward = MethodType(lambda self, x: 2 * self[1](self[0](x)), model)
    return model


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: Residual(nn.Linear(5, 5), nn.ReLU()),
    "subclass": lambda: nn.Sequential(Doubled(5, 5)),
    "normalization": lambda: nn.Sequential(nn.Linear(5, 5), nn.LayerNorm(5)),
    "trained activation": lambda: nn.Sequential(nn.Linear(5, 5), nn.PReLU()),
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 5)), nn.ReLU()),
    **{make.__name__: make for make in (twice, tied, hooked, frozen, own_forward)},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_are_left_to_vmap_and_are_right(name):
    model = seeded(OTHERS[name])()
    x = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    problem = sgdsde.Problem(model, x, x, loss=nn.MSELoss())
    assert chain_of(problem.functional) is None
    assert not isinstance(RealLearner(problem).stepper, BatchedProducts)


def test_a_stack_that_is_not_the_model_is_noticed(monkeypatch, caplog):
    problem = problem_of("linear")
    wrong = {
        "forward": [Affine("weight", "bias", multiplier=1.001)],
        "bias": [Affine("weight", "bias", bias_multiplier=0.999)],
        "shapes": [Affine("weight", "bias"), Affine("weight", "bias")],
    }
    for chain in wrong.values():
        monkeypatch.setattr(batched_products, "chain_of", lambda functional, chain=chain: chain)
        with caplog.at_level(logging.WARNING):
            assert isinstance(RealLearner(problem).stepper, Vmapped)
        assert "are not the model" in caplog.text
        caplog.clear()


def test_a_wrong_gradient_behind_right_outputs_is_noticed(monkeypatch):
    problem = problem_of("dense stack")
    right = Affine.gradients
    monkeypatch.setattr(Affine, "gradients", lambda self, delta, kept: right(self, 1.001 * delta, kept))
    assert isinstance(RealLearner(problem).stepper, Vmapped)


# ------------------------------------------------------------------------------------------------ torch's own loop


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_runs_are_a_loop_of_torch(dtype):
    problem = problem_of("convolutions") if dtype == torch.float64 else None
    if problem is None:
        double = problem_of("convolutions")
        problem = sgdsde.Problem(
            copy.deepcopy(double.model).float(), double.x_train.float(), double.y_train.float(), loss=nn.MSELoss()
        )
    sgd = sgdsde.SGD(0.1, 4, momentum=0.8, dampening=0.3, weight_decay=0.1, sampling="shuffled")
    measured = sgdsde.run_ensemble(problem, sgd, 7, 3, seed=2, observe=("outputs",), record=[7])
    batches = sgdsde.sampling.batch_indices(sgd, 9, 7, seed=2, run=2)
    model = copy.deepcopy(problem.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.8, dampening=0.3, weight_decay=0.1)
    for batch in batches:
        rows = batch[batch >= 0]
        optimizer.zero_grad()
        nn.functional.mse_loss(model(problem.x_train[rows]), problem.y_train[rows]).backward()
        optimizer.step()
    expected = model(problem.x_train).detach().double()
    error = (measured.train_outputs.samples[2, 0] - expected).abs().max() / expected.abs().max()
    assert error <= (1e-12 if dtype == torch.float64 else 1e-5)
