"""Every criterion's score is what its formula says, by finite differences or enumeration; counts are exact."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import sgdsde
from sgdsde import networks, pruning
from tests.pruning_problems import classification, dense, digits_classes, paths_by_enumeration, standard_mlp, weights_of

QUIET = pytest.mark.filterwarnings("ignore::sgdsde.pruning.PruningWarning")
SGD = sgdsde.SGD(0.1, 8)
ALL = (
    pruning.Random(),
    pruning.Magnitude(),
    pruning.SNIP(),
    pruning.GraSP(),
    pruning.SynFlow(n_rounds=5),
    pruning.SynFlow(n_rounds=5, power=2),
    pruning.SynFlow(n_rounds=5, example="data"),
    pruning.PathKernelTrace(n_rounds=5),
    pruning.IterativeMagnitude(SGD, 3, n_rounds=2),
)


def small_problem(seed: int = 1) -> sgdsde.Problem:
    return classification(dense((6, 9, 8, 3), seed, sigma_b=0.7), 20, in_features=6, classes=3)


def loss_of(problem: sgdsde.Problem, change: Callable[[dict[str, torch.Tensor]], None]) -> tuple[float, float]:
    """Loss and squared gradient norm over the weights of layers, after a change of the parameters."""
    params = {name: value.clone() for name, value in problem.params.items()}
    change(params)
    leaves = {name: value.requires_grad_() for name, value in params.items()}
    loss = nn.functional.cross_entropy(problem.forward(leaves, problem.x_train), problem.y_train)
    slopes = torch.autograd.grad(loss, [value for value in leaves.values() if value.ndim == 2])
    return loss.item(), sum(slope.square().sum().item() for slope in slopes)


def test_snip_is_the_derivative_with_respect_to_the_mask() -> None:
    problem = small_problem()
    masks = {name: torch.ones_like(v).requires_grad_() for name, v in problem.params.items() if v.ndim == 2}
    params = {name: v * masks[name] if name in masks else v for name, v in problem.params.items()}
    loss = nn.functional.cross_entropy(problem.forward(params, problem.x_train), problem.y_train)
    slopes = torch.autograd.grad(loss, list(masks.values()))
    for score, slope in zip(pruning.SNIP().scores(problem).values(), slopes):
        assert torch.allclose(score, slope.abs(), rtol=1e-13, atol=1e-18)


def test_grasp_score_is_how_the_gradient_norm_changes() -> None:
    problem, step = small_problem(), 1e-5
    scores = pruning.GraSP().scores(problem)

    def shrink(factor: float) -> Callable[[dict[str, torch.Tensor]], None]:
        def change(params: dict[str, torch.Tensor]) -> None:
            params["2.weight"][3, 4] *= 1 - factor

        return change

    measured = (loss_of(problem, shrink(step))[1] - loss_of(problem, shrink(-step))[1]) / (2 * step)
    assert measured == pytest.approx(-2 * float(scores["2.weight"][3, 4]), rel=1e-5)


def test_grasp_removes_the_weights_whose_removal_raises_the_gradient() -> None:
    problem = small_problem()
    scores = pruning.GraSP().scores(problem)
    masks = pruning.prune(problem, pruning.GraSP(), 0.3)
    removed = torch.cat([scores[name][~mask] for name, mask in masks.items()])
    kept = torch.cat([scores[name][mask] for name, mask in masks.items()])
    assert removed.max() <= kept.min()


def test_grasp_in_halves_ranks_alike_and_temperature_changes_the_ranking() -> None:
    problem = digits_classes(dense((64, 50, 10), 0), 64)
    flat = {
        temperature: torch.cat([v.flatten() for v in pruning.GraSP(temperature).scores(problem).values()])
        for temperature in (1.0, 200.0)
    }
    k = len(flat[1.0]) // 10
    top = {temperature: set(values.topk(k).indices.tolist()) for temperature, values in flat.items()}
    overlap = len(top[1.0] & top[200.0]) / k
    assert 0.5 < overlap < 0.75  # .63 on other draws of the same problem: the choice of T is a choice of masks


def test_blocks_of_examples_do_not_change_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = small_problem()
    whole = {c: c.scores(problem) for c in (pruning.SNIP(), pruning.GraSP())}
    monkeypatch.setattr("sgdsde.pruning.data_criteria.ROWS", 7)
    for criterion, scores in whole.items():
        for name, value in criterion.scores(problem).items():
            assert torch.allclose(value, scores[name], rtol=1e-11, atol=1e-17)


@pytest.mark.parametrize("power", [1, 2])
def test_synflow_is_the_sum_over_paths_through_the_weight(power: int) -> None:
    model = dense((3, 4, 3, 2), 3, activation="tanh", sigma_b=0.5)
    expected = [torch.zeros_like(w) for w in weights_of(model)]
    for value, edges in paths_by_enumeration(weights_of(model)):
        for layer, i, j in edges:
            expected[layer][i, j] += abs(value) ** power
    for score, twin in zip(pruning.SynFlow(power=power).scores(model).values(), expected):
        assert torch.allclose(score, twin, rtol=1e-13)


@pytest.mark.parametrize("power", [1, 2])
def test_synflow_with_data_weighs_paths_by_their_inputs(power: int) -> None:
    model = dense((3, 4, 2), 3)
    x = torch.randn(7, 3, dtype=torch.float64)
    first, second = weights_of(model)
    inputs = x.abs().pow(power).mean(0)
    through = second.abs().pow(power).sum(0)[:, None] * first.abs().pow(power) * inputs
    problem = sgdsde.Problem(model, x, torch.zeros(7, 2, dtype=torch.float64), loss=nn.MSELoss())
    for criterion in (pruning.SynFlow(power=power, example=x), pruning.SynFlow(power=power, example="data")):
        assert torch.allclose(criterion.scores(problem)["0.weight"], through, rtol=1e-13)


def test_path_kernel_trace_is_the_exact_loss_of_the_trace() -> None:
    model = dense((5, 6, 4, 3), 0, sigma_w=1.4)
    full = pruning.path_kernel_trace(model)
    for name, score in pruning.PathKernelTrace().scores(model).items():
        for place in np.ndindex(*score.shape):
            mask = torch.ones_like(score, dtype=torch.bool)
            mask[place] = False
            without = pruning.path_kernel_trace(pruning.Masks({name: mask}).apply(model))
            assert float(score[place]) == pytest.approx(full - without, abs=1e-12 * full)


def test_magnitude_sees_the_scale_of_the_layer() -> None:
    words = {"depth": 2, "dtype": torch.float64}
    standard = standard_mlp((64, 30, 30, 10), 0)
    ntk = networks.MLP(64, 30, 10, generator=torch.Generator().manual_seed(0), **words)
    by_parametrization = [pruning.prune(model, pruning.Magnitude(), 0.9) for model in (standard, ntk)]
    assert by_parametrization[0] == by_parametrization[1]
    problems = [digits_classes(model, 64) for model in (standard, ntk)]
    assert pruning.prune(problems[0], pruning.SNIP(), 0.9) == pruning.prune(problems[1], pruning.SNIP(), 0.9)
    assert pruning.prune(standard, pruning.SynFlow(), 0.9) == pruning.prune(ntk, pruning.SynFlow(), 0.9)
    raw = [v.abs().flatten() for v in ntk.parameters()]  # what forgetting the factor would rank
    chosen = torch.cat(raw) >= torch.cat(raw).topk(by_parametrization[1].n_kept).values[-1]
    right = torch.cat([mask.flatten() for mask in by_parametrization[1].values()])
    assert (chosen & right).sum() < 0.95 * right.sum()


@QUIET
def test_iterative_magnitude_without_training_is_magnitude() -> None:
    problem = small_problem()
    iterated = pruning.prune(problem, pruning.IterativeMagnitude(SGD, 0, n_rounds=3), 0.7)
    assert iterated == pruning.prune(problem, pruning.Magnitude(), 0.7)
    trained = pruning.prune(problem, pruning.IterativeMagnitude(sgdsde.SGD(1.0, 8), 40, n_rounds=3), 0.7)
    assert trained != iterated


def test_iterative_magnitude_is_a_torch_loop() -> None:
    problem = small_problem()
    sgd = sgdsde.SGD(0.2, 5, momentum=0.9, weight_decay=0.01)
    scores = pruning.IterativeMagnitude(sgd, 6).scores(problem, seed=4)
    model = copy.deepcopy(problem.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=0.01)
    for batch in sgdsde.sampling.batch_indices(sgd, 20, 6, seed=4, run=0):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(problem.x_train[batch]), problem.y_train[batch]).backward()
        optimizer.step()
    for name, value in scores.items():
        assert torch.allclose(value, model.get_parameter(name).detach().abs(), rtol=1e-12)


@QUIET
@pytest.mark.parametrize("criterion", ALL, ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_counts_are_exact_and_scores_are_float64(criterion: pruning.Criterion, scope: str) -> None:
    model = dense((6, 9, 8, 3), 1, sigma_b=0.1).float()
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 6, generator=generator), torch.randint(3, (20,), generator=generator)
    problem = sgdsde.Problem(model, x, y, loss=nn.CrossEntropyLoss())
    assert all(score.dtype == torch.float64 for score in criterion.scores(problem).values())
    masks = pruning.prune(problem, criterion, 0.83, scope=scope)  # type: ignore[arg-type]
    if scope == "global":
        assert masks.n_kept == round(0.17 * 150)
    else:
        assert [int(mask.sum()) for mask in masks.values()] == [round(0.17 * n) for n in (54, 72, 24)]


@QUIET
def test_equal_scores_are_kept_by_position() -> None:
    model = dense((4, 4, 4), 0)
    with torch.no_grad():
        for value in model.parameters():
            value.fill_(0.5)
    masks = pruning.prune(model, pruning.Magnitude(), 0.7)
    flat = torch.cat([mask.flatten() for mask in masks.values()]).tolist()
    assert flat == [True] * round(0.3 * 32) + [False] * (32 - round(0.3 * 32))


@QUIET
@pytest.mark.parametrize("schedule", ["exponential", "linear"])
def test_rounds_follow_their_schedule(schedule: str) -> None:
    seen = []

    class Watched(pruning.Magnitude):
        def _score(self, subject, kept, draw):
            seen.append(sum(int(mask.sum()) for mask in kept.values()))
            return super()._score(subject, kept, draw)

    model = dense((10, 20, 10), 0)
    pruning.prune(model, Watched(n_rounds=4, schedule=schedule), 0.9)  # type: ignore[arg-type]
    densities = [0.1 ** (k / 4) if schedule == "exponential" else 1 - 0.9 * k / 4 for k in range(4)]
    assert seen == [round(d * 400) for d in densities]


def test_a_random_mask_shares_nothing_with_weights_of_its_seed() -> None:
    model = dense((100, 100), 5)
    masks = [pruning.prune(model, pruning.Random(), 0.5, seed=seed) for seed in (5, 5, 6)]
    assert masks[0] == masks[1]
    assert masks[0] != masks[2]
    kept = model[0].weight.detach()[masks[0]["0.weight"]]
    assert abs(float(kept.mean())) < 4 * float(model[0].weight.detach().std()) / math.sqrt(len(kept))


def test_few_examples_are_drawn_by_the_seed() -> None:
    problem = small_problem()
    one = pruning.SNIP().scores(problem, n_examples=5, seed=1)["0.weight"]
    assert torch.equal(one, pruning.SNIP().scores(problem, n_examples=5, seed=1)["0.weight"])
    assert not torch.equal(one, pruning.SNIP().scores(problem, n_examples=5, seed=2)["0.weight"])
    assert torch.equal(
        pruning.SNIP().scores(problem, n_examples=20)["0.weight"], pruning.SNIP().scores(problem)["0.weight"]
    )


def test_scores_are_those_of_the_weights_that_are_left() -> None:
    problem = small_problem()
    masks = pruning.prune(problem, pruning.Random(), 0.5)
    for criterion in ALL:
        scores = criterion.scores(problem, masks)
        inside = criterion.scores(masks.apply(problem))
        for name, mask in masks.items():
            assert (scores[name][~mask] == -math.inf).all()
            assert torch.equal(scores[name], inside[name])


BAD = {
    "sparsity of one": (dense((4, 3), 0), pruning.Magnitude(), 1.0, r"sparsity must be in \[0, 1\), got 1.0"),
    "negative sparsity": (dense((4, 3), 0), pruning.Magnitude(), -0.1, r"sparsity must be in \[0, 1\)"),
    "nothing left": (dense((4, 3), 0), pruning.Magnitude(), 0.99, "such that a weight is kept"),
    "no prunable layer": (nn.Sequential(nn.LayerNorm(4)), pruning.Magnitude(), 0.5, "weights of linear or convolution"),
    "no linear pass": (
        nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)),
        pruning.SynFlow(),
        0.5,
        r"layer '1' \(LayerNorm\), which calls layer_norm",
    ),
    "shape unknown": (nn.Sequential(nn.Conv2d(1, 2, 3)), pruning.SynFlow(), 0.5, "tells the shape of its inputs"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_error(case: str) -> None:
    model, criterion, sparsity, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        pruning.prune(model, criterion, sparsity)


def test_a_product_of_activations_is_no_linear_pass() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) * torch.sigmoid(self.b(x))

    with pytest.raises(ValueError, match="whose outputs do not double with its input"):
        pruning.prune(Gated(), pruning.SynFlow(), 0.5)
    assert pruning.prune(Gated(), pruning.Magnitude(), 0.5).live_density is None


@pytest.mark.parametrize("criterion", [c for c in ALL if c.needs_data or c == pruning.SNIP()], ids=repr)
def test_criteria_with_data_refuse_a_bare_model(criterion: pruning.Criterion) -> None:
    with pytest.raises(TypeError, match="asked of a Problem, it needs data and a loss, got a bare model"):
        pruning.prune(dense((6, 9, 3), 0), criterion, 0.5)


def test_a_loss_that_is_not_finite_gives_an_error_and_no_score() -> None:
    problem = small_problem()
    with torch.no_grad():
        problem.params["4.weight"].fill_(1e200)
        problem.params["2.weight"].fill_(1e200)
    with pytest.raises(ValueError, match="scores of SNIP must be finite, got NaN or infinite ones in"):
        pruning.prune(problem, pruning.SNIP(), 0.5)


def test_a_function_has_no_layers_to_prune() -> None:
    params = {"w": torch.ones(3, 1)}
    problem = sgdsde.Problem((lambda p, x: x @ p["w"], params), torch.ones(4, 3), torch.ones(4, 1), loss=nn.MSELoss())
    with pytest.raises(TypeError, match=r"wrap the function in an nn.Module"):
        pruning.prune(problem, pruning.Random(), 0.5)


def test_warnings_say_what_went_wrong() -> None:
    model = standard_mlp((64, *[100] * 6, 10), 0)
    with pytest.warns(pruning.PruningWarning, match="only 0 of 574 kept weights lie on a path.*no path reaches output"):
        masks = pruning.prune(model, pruning.Magnitude(), 0.99)
    assert masks.empty_layers == ()
    deep = digits_classes(standard_mlp((64, *[60] * 10, 10), 0))
    with pytest.warns(pruning.PruningWarning, match="the threshold lies among scores of zero"):
        pruning.prune(deep, pruning.SNIP(), 0.2, n_examples=1)
