"""What enters a layer or a neuron leaves it: sums of scores that no mask, loss or activation changes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import sgdsde
from sgdsde import networks, pruning
from sgdsde.pruning.flow_criteria import flow_scores
from sgdsde.pruning.linear_pass import LinearPass, Rescaling, linear_outputs, ones_input
from sgdsde.pruning.weights import Subject
from tests.pruning_problems import classification, dense, weights_of


def test_signed_sensitivities_of_every_layer_add_up_to_the_same_number() -> None:
    """Bias-free ReLU, any loss: sum of w g over a layer = <f, dL/df>; the sums of |w g| differ."""
    model = dense((6, 9, 8, 7, 3), 1, sigma_w=1.7)
    problem = classification(model, 20, in_features=6, classes=3)
    params = {name: value.clone().requires_grad_() for name, value in problem.params.items()}
    outputs = problem.forward(params, problem.x_train)
    loss = nn.functional.cross_entropy(outputs, problem.y_train)
    slopes = dict(zip(params, torch.autograd.grad(loss, list(params.values()), retain_graph=True)))
    (at_outputs,) = torch.autograd.grad(loss, outputs)
    expected = float((outputs * at_outputs).sum().detach())
    for name, slope in slopes.items():
        assert float((params[name] * slope).sum().detach()) == pytest.approx(expected, rel=1e-12)
    sizes = list(pruning.layer_sums(pruning.SNIP().scores(problem)).values())
    assert max(sizes) > 1.3 * min(sizes)
    assert min(sizes) >= abs(expected)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_synflow_of_every_layer_adds_up_to_the_sum_over_paths(power: int, activation: str) -> None:
    model = dense((6, 9, 8, 7, 3), 1, activation=activation, sigma_w=1.7, sigma_b=0.7)
    total = pruning.path_norm(model, power)
    scores = pruning.SynFlow(power=power).scores(model)
    for name, value in pruning.layer_sums(scores).items():
        assert value == pytest.approx(total, rel=1e-13)
        assert float(scores[name].mean()) == pytest.approx(total / scores[name].numel(), rel=1e-13)
    for before, after in zip(list(scores.values()), list(scores.values())[1:]):
        assert torch.allclose(before.sum(1), after.sum(0), rtol=1e-12)


def test_the_stated_sum_over_paths() -> None:
    """R_1 = 515.340947338 of these weights; with |biases| in the pass the layers would differ."""
    model = dense((6, 9, 8, 7, 3), 1, sigma_w=1.7)
    assert pruning.path_norm(model, 1) == pytest.approx(515.340947338, abs=1e-8)
    weights = [w.abs() for w in weights_of(model)]
    generator = torch.Generator().manual_seed(5)
    biases = [torch.rand(len(w), dtype=torch.float64, generator=generator).requires_grad_() for w in weights]
    leaves, h = [w.clone().requires_grad_() for w in weights], torch.ones(6, dtype=torch.float64)
    for w, b in zip(leaves, biases):
        h = w @ h + b
    slopes = torch.autograd.grad(h.sum(), leaves)
    sums = [float((w * s).sum()) for w, s in zip(weights, slopes)]
    assert sums == sorted(sums)
    assert sums[-1] > 1.01 * sums[0]


def test_a_masked_network_conserves_too() -> None:
    model = dense((6, 9, 8, 7, 3), 1)
    masks = pruning.prune(model, pruning.SynFlow(n_rounds=20), 0.5)
    sums = list(pruning.layer_sums(pruning.SynFlow().scores(model, masks)).values())
    assert sums == pytest.approx([pruning.path_norm(masks.apply(model), 1)] * 4, rel=1e-12)


@pytest.mark.parametrize("build", ["cnn", "pooled", "torch"])
def test_convolutions_conserve(build: str) -> None:
    generator = torch.Generator().manual_seed(0)
    words = {"depth": 3, "dtype": torch.float64, "generator": generator, "sigma_b": 0.3}
    models = {
        "cnn": lambda: networks.CNN(2, 6, 4, 3, **words),
        "pooled": lambda: networks.CNN(2, 6, 4, 3, readout="pool", **words),
        "torch": lambda: nn.Sequential(
            *(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.MaxPool2d(2)),
            *(nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2), nn.GELU(), nn.AvgPool2d(2), nn.Flatten()),
            nn.Linear(4, 3),
        ).double(),
    }
    model = models[build]().eval()
    example = torch.ones(1, 2, 6, 6, dtype=torch.float64) if build != "torch" else torch.ones(1, 2, 8, 8)
    scores = pruning.SynFlow(example=example).scores(model)
    sums = list(pruning.layer_sums(scores).values())
    assert sums == pytest.approx([sums[0]] * len(sums), rel=1e-11)


def test_a_pooled_pass_counts_unrolled_paths() -> None:
    """Power 2 on a convolution with average pooling: the squares of the unrolled matrix's products."""
    model = networks.CNN(1, 4, 2, 1, depth=1, readout="pool", dtype=torch.float64)
    x = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    basis = torch.eye(16, dtype=torch.float64).view(16, 1, 4, 4)
    first = torch.nn.functional.conv2d(basis, model.hidden[0].weight.detach(), padding=1).flatten(1)
    first = first * model.hidden[0].weight_multiplier
    second = model.read_out.weight.detach() * model.read_out.weight_multiplier / 16
    expected = sum(
        float(first[pixel, 16 * channel + place] ** 2 * second[0, channel] ** 2)
        for pixel in range(16)
        for channel in range(2)
        for place in range(16)
    )
    problem = sgdsde.Problem(model, x, torch.zeros(1, 1, dtype=torch.float64), loss=nn.MSELoss())
    assert pruning.path_norm(problem, 2) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("power", [1, 2])
def test_residual_paths_are_counted_with_their_scales(power: int) -> None:
    """The scores of a block add up to the paths through it: R minus R without the block."""
    generator = torch.Generator().manual_seed(0)
    model = networks.ResNet(3, 4, 2, depth=4, scaling="stable", dtype=torch.float64, generator=generator)
    sums = pruning.layer_sums(pruning.SynFlow(power=power).scores(model))
    total = pruning.path_norm(model, power)
    assert sums["first.weight"] == pytest.approx(total, rel=1e-13)
    assert sums["read_out.weight"] == pytest.approx(total, rel=1e-13)
    for name in ("blocks.0.weight", "blocks.2.weight"):
        gone = pruning.Masks({name: torch.zeros(4, 4, dtype=torch.bool)}).apply(model)
        assert sums[name] == pytest.approx(total - pruning.path_norm(gone, power), rel=1e-12)
    scale, c = 0.5**power, math.sqrt(2) / math.sqrt(4)
    matrices = [(c * block.weight.detach().double()).abs() ** power for block in model.blocks]
    h = (math.sqrt(2 / 3) * model.first.weight.detach()).abs().pow(power).sum(1)
    for matrix in matrices:
        h = h + scale * matrix @ h
    assert float(((c * model.read_out.weight.detach()).abs() ** power @ h).sum()) == pytest.approx(total, rel=1e-13)


class Written(nn.Module):
    """Sums and differences as people write them, all with weights |w| and |s|^p in the pass."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(3, 3).double() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.leaky_relu(self.a(x) - 1.0)
        z = torch.add(y, torch.tanh(self.b(y)), alpha=-0.5)
        z.add_(y.clone())
        z -= 2 * y.clone()
        return -self.c(z.sigmoid()) / 4


@pytest.mark.parametrize("power", [1, 2])
def test_sums_are_those_of_the_absolute_values_however_they_are_written(power: int) -> None:
    model = Written()
    a, b, c = (getattr(model, name).weight.detach().abs() ** power for name in "abc")
    y = a.sum(1)
    z = y + 0.5**power * b @ y + y + 2**power * y
    assert pruning.path_norm(model, power) == pytest.approx(float((c @ z).sum()) / 4**power, rel=1e-13)


def _by_hand(model: nn.Module, activation: str) -> list[Tensor]:
    """SynFlow as the published codes have it: the activation stays."""
    leaves = [w.abs().requires_grad_() for w in weights_of(model)]
    h = torch.ones(leaves[0].shape[1], dtype=torch.float64)
    for index, leaf in enumerate(leaves):
        h = leaf @ h
        if index < len(leaves) - 1:
            h = torch.relu(h) if activation == "relu" else torch.tanh(h)
    slopes = torch.autograd.grad(h.sum(), leaves)
    return [(leaf * slope).detach() for leaf, slope in zip(leaves, slopes)]


def test_an_activation_in_the_pass_changes_nothing_for_relu_and_everything_for_tanh() -> None:
    sizes = (64, *[100] * 6, 10)
    for activation in ("relu", "tanh"):
        model = dense(sizes, 0, activation=activation, sigma_w=1.304146)
        scores = list(pruning.SynFlow().scores(model).values())
        kept = _by_hand(model, activation)
        if activation == "relu":
            assert all(torch.allclose(a, b, rtol=1e-13) for a, b in zip(scores, kept))
            continue
        sums = [float(value.sum()) for value in kept]
        assert sums[0] < 1e-35
        assert sums[-1] > 10
        flat = torch.cat([value.flatten() for value in kept])
        threshold = flat.topk(round(0.1 * len(flat))).values[-1]
        assert sum(not bool((value >= threshold).any()) for value in kept) == 5


def test_deep_networks_are_exact_beyond_the_range_of_floats() -> None:
    """Float32 gives inf at 27 layers of width 500; ours rescales, by one factor for all scores."""
    values = torch.ones(500)
    for w in weights_of(dense([500] * 29, 0)):
        values = w.float().abs() @ values
    assert torch.isinf(values.sum())
    growth = math.sqrt(500) * math.sqrt(2) * math.sqrt(2 / math.pi)
    assert math.log10(pruning.path_norm(dense([500] * 28, 0), 1)) == pytest.approx(
        math.log10(500) + 27 * math.log10(growth), abs=0.1
    )
    model = dense((64, *[100] * 6, 10), 0)
    subject = Subject.of(model)
    plain = flow_scores(subject, subject.kept, ones_input(subject), 1)
    leaves = {name: subject.values(name).abs().requires_grad_() for name in subject.weights}
    total = linear_outputs(subject, leaves, ones_input(subject), LinearPass(1, Rescaling())).sum()
    slopes = torch.autograd.grad(total, list(leaves.values()))
    ratio = torch.cat(
        [(p / (leaf.detach() * s)).flatten() for p, leaf, s in zip(plain.values(), leaves.values(), slopes)]
    )
    assert float(ratio.max() / ratio.min()) - 1 < 1e-14
    deep = dense([30] * 400, 0, sigma_w=4.0)  # R is about 10^450
    scores = pruning.SynFlow().scores(deep)
    sums = list(pruning.layer_sums(scores).values())
    assert all(math.isfinite(value) for value in sums)
    assert sums == pytest.approx([sums[0]] * len(sums), rel=1e-9)
    assert all(bool((value > 0).all()) for value in scores.values())


def test_a_residual_network_beyond_the_range_is_refused() -> None:
    model = networks.ResNet(4, 30, 2, depth=400, sigma_w=8.0, dtype=torch.float64)
    with pytest.raises(ValueError, match="within the range of float64"):
        pruning.SynFlow().scores(model)
