"""Masks are ranked by what is predicted of the pruned networks; disconnected ones stay where they are."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

import sgdsde
from sgdsde import networks, pruning, stability
from tests.pruning_problems import dense

pytestmark = pytest.mark.filterwarnings("ignore::sgdsde.pruning.PruningWarning")


def parity(seed: int, *, width: int = 128, n: int = 64) -> sgdsde.Problem:
    """Odd and even digits as -1 and 1, two hidden ReLU layers, the read-out shrunk to .3."""
    data = sgdsde.datasets.digits(n, n, dtype=torch.float64)
    assert data.labels_train is not None
    assert data.labels_test is not None
    y, v = (2.0 * (labels % 2)[:, None].double() - 1 for labels in (data.labels_train, data.labels_test))
    model = dense((64, width, width, 1), seed)
    with torch.no_grad():
        model[-1].weight.mul_(0.3)
    return sgdsde.Problem(model, data.x_train, y, loss=nn.MSELoss(), x_test=data.x_test, y_test=v)


def fifteen_masks(problem: sgdsde.Problem, seed: int) -> dict[str, pruning.Masks]:
    """Five criteria at three sparsities; Magnitude, which empties the small read-out, is left out."""
    criteria = {
        "random": pruning.Random(),
        "SNIP": pruning.SNIP(),
        "GraSP": pruning.GraSP(),
        "SynFlow": pruning.SynFlow(n_rounds=30),
        "SynFlow 2": pruning.SynFlow(n_rounds=30, power=2),
    }
    return {
        f"{name} {sparsity}": pruning.prune(problem, criterion, sparsity, seed=seed)
        for name, criterion in criteria.items()
        for sparsity in (0.8, 0.9, 0.95)
    }


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_predicted_loss_ranks_fifteen_masks_and_the_trace_of_the_path_kernel_does_not(seed: int) -> None:
    """One learning rate, .3 of the stiffest network's limit, 300 steps of 16: Spearman above .95 with eight runs."""
    problem = parity(seed)
    masks = fifteen_masks(problem, seed + 3)
    limits = {name: stability.max_lr(mask.apply(problem), 16) for name, mask in masks.items()}
    sgd = sgdsde.SGD(0.3 * min(limits.values()), 16)
    ranking = pruning.rank(problem, masks, sgd, 300)
    rows = {row.name: row for row in ranking.rows}
    runs = {n: sgdsde.run_ensemble(m.apply(problem), sgd, 300, 8, record=[0, 300]) for n, m in masks.items()}
    train = [float(runs[name].train_loss.mean[-1]) for name in masks]
    test = [float(runs[name].test_loss.mean[-1]) for name in masks]
    by_prediction = spearmanr([rows[name].train_loss for name in masks], train)[0]
    by_path_kernel = spearmanr([-pruning.path_kernel_trace(mask.apply(problem)) for mask in masks.values()], train)[0]
    assert by_prediction > 0.95
    assert spearmanr([rows[name].test_loss for name in masks], test)[0] > 0.95
    assert by_path_kernel < by_prediction - 0.1
    errors = [abs(rows[name].train_loss / loss - 1) for name, loss in zip(masks, train)]
    assert max(errors) < 0.16


@pytest.mark.slow
def test_at_its_own_learning_rate_a_pruned_network_is_no_linear_model() -> None:
    """The failure: .3 of each network's own limit; at some masks the prediction is off by a factor of two and more."""
    problem = parity(0)
    masks = fifteen_masks(problem, 3)
    ratios, pairs = [], []
    for mask in masks.values():
        pruned = mask.apply(problem)
        linearization = sgdsde.linearize(pruned)
        sgd = sgdsde.SGD(0.3 * stability.max_lr(linearization, 16), 16)
        predicted = float(sgdsde.predict(linearization, sgd, 300, record=[0, 300]).train_loss.mean[-1])
        measured = float(sgdsde.run_ensemble(pruned, sgd, 300, 8, record=[0, 300]).train_loss.mean[-1])
        ratios.append(abs(math.log(predicted / measured)))
        pairs.append((predicted, measured))
    assert max(ratios) > math.log(2)
    assert spearmanr(*zip(*pairs))[0] < 0.9


@pytest.mark.slow
def test_a_moving_kernel_follows_a_pruned_network_that_a_frozen_one_does_not() -> None:
    """Random mask at 80 %, .3 of its own limit, rescaled: .21 predicted by the frozen kernel, .026 by the moving one,
    .029 measured."""
    problem = parity(0)
    pruned = pruning.prune(problem, pruning.Random(), 0.8, seed=3).apply(problem)
    sigmas = {"0.weight": 2**0.5, "2.weight": 2**0.5, "4.weight": 0.3 * 2**0.5}
    rescaled = pruning.rescale_to_edge_of_chaos(pruned, sigma_w=sigmas)
    linearization = sgdsde.linearize(rescaled)
    sgd, record = sgdsde.SGD(0.3 * stability.max_lr(linearization, 16), 16), [0, 300]
    measured = float(sgdsde.run_ensemble(rescaled, sgd, 300, 8, record=record).train_loss.mean[-1])
    errors = []
    for dynamics in (None, sgdsde.dynamics.MovingKernel()):
        predicted = sgdsde.predict(linearization, sgd, 300, record=record, dynamics=dynamics)
        errors.append(abs(math.log(float(predicted.train_loss.mean[-1]) / measured)))
    assert errors[0] > math.log(3)
    assert errors[1] < math.log(1.5)


def small() -> tuple[sgdsde.Problem, dict[str, pruning.Masks]]:
    problem = parity(0, width=12, n=12)
    criteria = {"SynFlow": pruning.SynFlow(), "Random": pruning.Random()}
    return problem, {name: pruning.prune(problem, criterion, 0.7) for name, criterion in criteria.items()}


def test_a_row_is_what_predict_says() -> None:
    problem, masks = small()
    sgd = sgdsde.SGD(0.01, 4)
    ranking = pruning.rank(problem, masks, sgd, 12, moving=True, n_runs=2)
    assert ranking.names == sorted(masks, key=lambda name: {r.name: r.train_loss for r in ranking.rows}[name])
    for row in ranking.rows:
        pruned = masks[row.name].apply(problem)
        linearization = sgdsde.linearize(pruned)
        predicted = sgdsde.predict(linearization, sgd, 12)
        assert row.train_loss == float(predicted.train_loss.mean[-1])
        assert row.test_loss == float(predicted.test_loss.mean[-1])
        assert row.max_lr == pytest.approx(stability.max_lr(pruned, 4), rel=1e-12)
        assert row.kernel_trace == pytest.approx(float(sgdsde.empirical_ntk(pruned.model, problem.x_train).trace()))
        moved = sgdsde.predict(linearization, sgd, 12, record=[0, 12], dynamics=sgdsde.dynamics.MovingKernel())
        assert row.moving_train_loss == pytest.approx(float(moved.train_loss.mean[-1]), rel=1e-12)
        assert row.budget is not None
        assert float(row.budget.train.predicted[-1]) == pytest.approx(row.train_loss, rel=1e-9)
    assert ranking.dense.density == 1
    text = str(ranking)
    assert all(word in text for word in ("SynFlow", "Random", "dense", "moving train", "limit / dense"))
    assert len(ranking.to_dataframe()) == 3


def test_masks_past_their_limit_come_last() -> None:
    problem, masks = small()
    limits = {name: stability.max_lr(mask.apply(problem), 4) for name, mask in masks.items()}
    assert limits["Random"] > 2 * limits["SynFlow"]
    ranking = pruning.rank(problem, masks, sgdsde.SGD(1.5 * limits["SynFlow"], 4), 20, by="test")
    assert ranking.names == ["Random", "SynFlow"]
    assert ranking.rows[1].train_loss == math.inf


def test_rescaled_networks_are_ranked_as_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    model = networks.MLP(64, 20, 1, depth=2, dtype=torch.float64, generator=generator)
    data = sgdsde.datasets.digits(16, 8, dtype=torch.float64)
    problem = sgdsde.Problem(model, **data.tensors(), loss=nn.MSELoss())
    mask, sgd = pruning.prune(problem, pruning.Random(), 0.6), sgdsde.SGD(0.01, 4)
    row = pruning.rank(problem, {"random": mask}, sgd, 10, rescale="neuron").rows[0]
    rescaled = pruning.rescale_to_edge_of_chaos(mask.apply(problem))
    assert row.train_loss == float(sgdsde.predict(sgdsde.linearize(rescaled), sgd, 10).train_loss.mean[-1])


def test_a_network_without_a_path_keeps_its_loss() -> None:
    problem, masks = small()
    empty = dict(masks["SynFlow"])
    empty["2.weight"] = torch.zeros_like(empty["2.weight"])
    broken = pruning.Masks(empty)
    pruned = broken.apply(problem)
    sgd = sgdsde.SGD(0.1, 4)
    with pytest.warns(UserWarning, match="the kernel is zero"):
        linearization = sgdsde.linearize(pruned)
    assert stability.max_lr(linearization, 4) == math.inf
    predicted = sgdsde.predict(linearization, sgd, 20)
    assert (predicted.train_loss.mean == predicted.train_loss.mean[0]).all()
    measured = sgdsde.run_ensemble(pruned, sgd, 20, 2)
    assert torch.allclose(predicted.test_loss.mean, measured.test_loss.mean, rtol=1e-12)
    ranking = pruning.rank(problem, {"broken": broken, **masks}, sgdsde.SGD(0.01, 4), 5, moving=True)
    rows = {row.name: row for row in ranking.rows}
    assert rows["broken"].max_lr == math.inf
    assert rows["broken"].train_loss == pytest.approx(float(predicted.train_loss.mean[0]))
    assert "inf" in str(ranking)


def test_bad_questions_are_refused() -> None:
    problem, masks = small()
    sgd = sgdsde.SGD(0.01, 4)
    with pytest.raises(TypeError, match="a mapping of names to Masks"):
        pruning.rank(problem, list(masks.values()), sgd, 10)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 2 for an error budget"):
        pruning.rank(problem, masks, sgd, 10, n_runs=1)
    bare = sgdsde.Problem(problem.model, problem.x_train, problem.y_train, loss=nn.MSELoss())
    with pytest.raises(ValueError, match="'train' for a problem without a test set"):
        pruning.rank(bare, masks, sgd, 10, by="test")
    with warnings.catch_warnings(), pytest.raises(AttributeError, match="no attribute 'rang'"):
        _ = pruning.rang  # type: ignore[attr-defined]
