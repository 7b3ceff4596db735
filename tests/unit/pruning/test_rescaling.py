"""One factor a neuron brings signals back, where masks do not look at the data; where they do, only data does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

import sgdsde
from sgdsde import meanfield, networks, pruning
from tests.pruning_problems import dense, digits_classes

pytestmark = pytest.mark.filterwarnings("ignore::sgdsde.pruning.PruningWarning")
EDGE = {"relu": (2**0.5, 0.0, 1.0), "tanh": (1.304146, 0.2, 0.512079)}


def edge_network(activation: str, depth: int, width: int, seed: int, *, in_features: int = 0, classes: int = 0):
    sigma_w, sigma_b, _ = EDGE[activation]
    return networks.MLP(
        in_features or width,
        width,
        classes or width,
        depth=depth - 1,
        activation=activation,
        sigma_w=sigma_w,
        sigma_b=sigma_b,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(seed),
    )


def growths(model: pruning.PrunedNetwork, x: Tensor) -> tuple[float, float]:
    """Growth a layer of E y^2 forward, and of a random cotangent's squared gradient backward, over hidden layers."""
    found = []
    layers = [*model.network.hidden, model.network.read_out]
    handles = [layer.register_forward_hook(lambda _, __, y: found.append(y)) for layer in layers]
    model(x)
    for handle in handles:
        handle.remove()
    steps = len(found) - (1 if found[-1].shape == found[0].shape else 2)
    first, last = found[0], found[steps]
    cotangent = torch.randn(last.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    (slope,) = torch.autograd.grad((last * cotangent).sum(), first)
    backward = float(slope.square().sum() / cotangent.square().sum()) ** (1 / steps)
    return float(last.detach().square().mean() / first.detach().square().mean()) ** (1 / steps), backward


def variances(model: nn.Module, layers: list[nn.Module], x: Tensor) -> list[float]:
    """The mean square of what each layer returns."""
    found: list[float] = []
    handles = [
        layer.register_forward_hook(lambda _, __, y: found.append(float(y.detach().square().mean())))
        for layer in layers
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return found


def measured_growths(
    activation: str, depth: int, width: int, criterion: pruning.Criterion, sparsity: float, *, seeds: int
) -> dict[str, float]:
    """Geometric mean over seeds of the backward growth, by normalizer."""
    logs: dict[str, list[float]] = {}
    scale = EDGE[activation][2] ** 0.5 if activation == "tanh" else 1.0
    for seed in range(seeds):
        model = edge_network(activation, depth, width, seed)
        pruned = pruning.prune(model, criterion, sparsity, seed=seed + 50).apply(model)
        generator = torch.Generator().manual_seed(100 + seed)
        x, fresh = (scale * torch.randn(64, width, dtype=torch.float64, generator=generator) for _ in range(2))
        for how in ("none", "layer", "neuron", "data"):
            rescaled = pruned
            if how != "none":
                rescaled = pruning.rescale_to_edge_of_chaos(pruned, normalizer=how, x=x)  # type: ignore[arg-type]
            logs.setdefault(how, []).append(math.log(growths(rescaled, fresh)[1]))
    return {how: math.exp(np.mean(values)) for how, values in logs.items()}


@pytest.mark.parametrize(
    ("activation", "depth", "criterion", "sparsity", "stated"),
    [
        ("relu", 30, pruning.Magnitude(), 0.9, (0.439, 0.999, 1.000, 1.017)),
        ("relu", 30, pruning.Random(), 0.9, (0.100, 0.998, 0.996, 1.011)),
        ("tanh", 15, pruning.Magnitude(), 0.99, (0.129, 0.967, 0.949, 1.031)),
    ],
    ids=["magnitude relu", "random relu", "magnitude tanh"],
)
def test_growth_of_gradients_is_one_again(
    activation: str, depth: int, criterion: pruning.Criterion, sparsity: float, stated: tuple[float, ...]
) -> None:
    found = measured_growths(activation, depth, 200, criterion, sparsity, seeds=2)
    for value, expected in zip(found.values(), stated):
        assert value == pytest.approx(expected, abs=0.05 if expected > 0.5 else 0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "sparsity", "stated"),
    [
        ("tanh", 0.9, (0.383, 0.965, 0.951, 1.04)),
        ("tanh", 0.97, (0.134, 0.823, 0.674, 1.01)),
        ("relu", 0.9, (0.749, 4.12, 1.89, 0.870)),
        ("relu", 0.97, (0.424, 6.00, 1.70, 0.860)),
    ],
)
def test_snip_on_deep_relu_breaks_the_rule_and_data_mends_it(
    activation: str, sparsity: float, stated: tuple[float, ...]
) -> None:
    """Digits, 20 layers of 100, three seeds: "layer" overshoots by four and "neuron" by two under ReLU, not tanh."""
    logs: dict[str, list[float]] = {}
    for seed in range(3):
        model = edge_network(activation, 21, 100, seed, in_features=64, classes=10)
        scale = EDGE[activation][2] ** 0.5 if activation == "tanh" else 1.0
        problem = digits_classes(model, 256, 128, scale=scale)
        pruned = pruning.prune(problem, pruning.SNIP(), sparsity).apply(problem)
        assert pruned.x_test is not None
        for how in ("none", "layer", "neuron", "data"):
            rescaled = pruned
            if how != "none":
                rescaled = pruning.rescale_to_edge_of_chaos(pruned, normalizer=how)  # type: ignore[arg-type]
            logs.setdefault(how, []).append(math.log(growths(rescaled.model, pruned.x_test)[1]))
    found = {how: math.exp(np.mean(values)) for how, values in logs.items()}
    for value, expected in zip(found.values(), stated):
        assert abs(math.log(value / expected)) < 0.2, found


def test_snip_keeps_weights_that_read_active_units() -> None:
    model = dense((64, *[100] * 20, 10), 0)
    problem = digits_classes(model, 256, 128)
    masks = list(pruning.prune(problem, pruning.SNIP(), 0.9).values())
    h, shares, all_shares = problem.x_test, [], []
    for index, layer in enumerate(layer for layer in model if isinstance(layer, nn.Linear)):
        if index:
            on = (h > 0).double().mean(0)
            shares.append(float((masks[index] * on).sum() / masks[index].sum()))
            all_shares.append(float(on.mean()))
        h = torch.relu(layer(h)).detach()
    # The read-out and the layers next to it are not yet that extreme.
    assert min(shares[5:-1]) > 0.85
    assert max(all_shares) < 0.65


@pytest.mark.parametrize("where", ["weights", "factors"])
@pytest.mark.parametrize("normalizer", ["neuron", "layer", "data"])
def test_both_places_give_one_function_and_leave_the_network_alone(where: str, normalizer: str) -> None:
    model = edge_network("tanh", 4, 30, 0)
    pruned = pruning.prune(model, pruning.Random(), 0.5, seed=1).apply(model)
    x = torch.randn(8, 30, dtype=torch.float64)
    before = pruned(x).detach()
    words = {"normalizer": normalizer, "x": x}
    one = pruning.rescale_to_edge_of_chaos(pruned, where="weights", **words)  # type: ignore[call-overload]
    other = pruning.rescale_to_edge_of_chaos(pruned, where="factors", **words)  # type: ignore[call-overload]
    assert torch.allclose(one(x), other(x), rtol=1e-12)
    assert torch.equal(pruned(x).detach(), before)
    assert not torch.allclose(one(x), before, rtol=0.01)
    assert pruning.Masks.of(one) == pruning.Masks.of(pruned)


def test_the_factor_is_sigma_over_the_root_of_alpha() -> None:
    model = edge_network("relu", 3, 30, 0)
    pruned = pruning.prune(model, pruning.Magnitude(), 0.8).apply(model)
    rescaled = pruning.rescale_to_edge_of_chaos(pruned)
    for layer in [*rescaled.network.hidden, rescaled.network.read_out]:
        effective = layer.weight.detach() * layer.weight_multiplier
        silent = effective.abs().sum(1) == 0
        assert torch.allclose(effective.square().sum(1)[~silent], torch.tensor(2.0, dtype=torch.float64), rtol=1e-12)
    by_layer = pruning.rescale_to_edge_of_chaos(pruned, normalizer="layer", sigma_w=1.5)
    for layer in [*by_layer.network.hidden, by_layer.network.read_out]:
        effective = layer.weight.detach() * layer.weight_multiplier
        assert float(effective.square().sum(1).mean()) == pytest.approx(1.5**2, rel=1e-12)


def test_data_makes_every_variance_q() -> None:
    model = edge_network("tanh", 5, 40, 0)
    x = torch.randn(200, 40, dtype=torch.float64)
    pruned = pruning.prune(model, pruning.Magnitude(), 0.8).apply(model)
    rescaled = pruning.rescale_to_edge_of_chaos(pruned, normalizer="data", x=x)
    found = variances(rescaled, [*rescaled.network.hidden, rescaled.network.read_out], x)
    assert found == pytest.approx([meanfield.edge_of_chaos("tanh", 0.2).q] * 5, rel=1e-10)


def test_variance_that_survives_magnitude() -> None:
    """alpha / sigma_w^2 = 2 (t phi(t) + PhiBar(t)): .439286, .084492, .012696; the density would be .1, .01, .001."""
    for sparsity, stated in ((0.9, 0.439286), (0.99, 0.084492), (0.999, 0.012696)):
        t = norm.isf((1 - sparsity) / 2)
        law = 2 * (t * norm.pdf(t) + norm.sf(t))
        assert law == pytest.approx(stated, abs=1e-6)
        model = dense((1000, 1000), 0)
        pruned = pruning.prune(model, pruning.Magnitude(), sparsity).apply(model)
        left = float(pruned.network[0].weight.detach().square().sum() / 1000)
        assert left / 2 == pytest.approx(stated, rel=0.02)


@pytest.mark.parametrize(
    ("criterion", "stated"), [(pruning.Random(), (0.088, 0.87)), (pruning.Magnitude(), (0.407, 0.93))]
)
def test_convolutions_are_rescaled_by_channel(criterion: pruning.Criterion, stated: tuple[float, float]) -> None:
    """Growth of E y^2 over 12 convolutions of 32 channels with circular padding, at 90 %."""
    generator = torch.Generator().manual_seed(0)
    words = {"padding": 1, "padding_mode": "circular", "bias": False, "dtype": torch.float64}
    convolutions = [nn.Conv2d(32, 32, 3, **words) for _ in range(12)]
    for layer in convolutions:
        with torch.no_grad():
            layer.weight.copy_(math.sqrt(2 / 288) * torch.randn(32, 32, 3, 3, dtype=torch.float64, generator=generator))
    model = nn.Sequential(*[part for layer in convolutions for part in (layer, nn.ReLU())][:-1], nn.Flatten())
    x = torch.randn(4, 32, 8, 8, dtype=torch.float64, generator=generator)
    pruned = pruning.prune(model, criterion, 0.9, seed=1).apply(model)
    rescaled = pruning.rescale_to_edge_of_chaos(pruned, sigma_w=2**0.5)
    for network, expected in zip((pruned, rescaled), stated):
        found = variances(network, [layer for layer in network.network if isinstance(layer, nn.Conv2d)], x)
        assert (found[-1] / found[0]) ** (1 / 11) == pytest.approx(expected, abs=0.3 if expected > 0.5 else 0.05)


@pytest.mark.slow
def test_traces_of_random_masks() -> None:
    """Tr K / dense = d^L unscaled, d with rescaled weights, 1 with factors; 60 draws, within 8 %."""
    for density, length in ((0.5, 3), (0.1, 3)):
        sums = np.zeros(4)
        x = sgdsde.datasets.digits(8, 1, dtype=torch.float64).x_train
        for seed in range(60):
            model = dense((64, 120, 120, 1), seed)
            # The expectation is that of masks drawn weight by weight.
            generator = torch.Generator().manual_seed(10_000 + seed)
            given = {n: torch.rand(v.shape, generator=generator) < density for n, v in model.named_parameters()}
            pruned = pruning.Masks(given).apply(model)
            inflated = pruning.PrunedNetwork(dense((64, 120, 120, 1), seed), given)
            with torch.no_grad():
                for value in inflated.network.parameters():
                    value.div_(density**0.5)
            factors = {name: torch.full((1, 1), density**-0.5) for name in given}
            scaled = pruning.PrunedNetwork(dense((64, 120, 120, 1), seed), given, factors)
            sums += [float(sgdsde.empirical_ntk(m, x).trace()) for m in (model, pruned, inflated, scaled)]
        assert sums[1:] / sums[0] == pytest.approx([density**length, density, 1.0], rel=0.08)


def test_a_problem_comes_back_as_a_problem() -> None:
    problem = digits_classes(edge_network("relu", 3, 20, 0, in_features=64, classes=10), 32, 8)
    pruned = pruning.prune(problem, pruning.SynFlow(), 0.8).apply(problem)
    rescaled = pruning.rescale_to_edge_of_chaos(pruned, normalizer="data")
    assert isinstance(rescaled, sgdsde.Problem)
    assert rescaled.digest != pruned.digest
    assert list(rescaled.params) == list(pruned.params)
    assert pruning.Masks.of(rescaled) == pruning.Masks.of(pruned)


def test_what_cannot_be_rescaled_is_refused() -> None:
    model = edge_network("relu", 3, 20, 0)
    pruned = pruning.prune(model, pruning.Random(), 0.5).apply(model)
    with pytest.raises(TypeError, match=r"use Masks\.apply first"):
        pruning.rescale_to_edge_of_chaos(model)
    with pytest.raises(ValueError, match="a batch of examples under normalizer"):
        pruning.rescale_to_edge_of_chaos(pruned, normalizer="data")
    plain = dense((4, 4, 4), 0)
    with pytest.raises(ValueError, match=r"which tells its edge of chaos, got Sequential; pass sigma_w"):
        pruning.rescale_to_edge_of_chaos(pruning.prune(plain, pruning.Random(), 0.5).apply(plain))
    residual = networks.ResNet(4, 4, 2, depth=2, dtype=torch.float64)
    with pytest.raises(ValueError, match='without skip connections under "data"'):
        pruning.rescale_to_edge_of_chaos(
            pruning.prune(residual, pruning.Random(), 0.3).apply(residual), normalizer="data", x=torch.ones(2, 4)
        )
    with pytest.raises(ValueError, match="prune first and rescale afterwards"):
        pruning.prune(pruning.rescale_to_edge_of_chaos(pruned, where="factors"), pruning.Magnitude(), 0.9)
