"""Several SGDs as one ensemble: every run is what it is alone, whatever stands beside it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sgdsde
from sgdsde import SGD, SVAG, _progress
from sgdsde.kernel import DenseKernel
from sgdsde.sampling import PADDING, batch_indices
from tests.problems import BY_NAME, classification_problem, mlp_problem

MIXED = [
    SGD(0.1, 2),
    SGD(0.05, 2),
    SGD(0.1, 3),
    SGD(0.1, 2, momentum=0.9),
    SGD(0.05, 2, momentum=0.5, dampening=0.3),
    SGD(0.05, 2, momentum=0.7, nesterov=True, weight_decay=0.2),
    SGD(0.05, 2, momentum=0.3, nesterov=True, weight_decay=0.4),
    SGD(0.1, 2, weight_decay=0.3),
    SGD(0.1, 2, sampling="shuffled"),
    SGD(lambda k: 0.1 / (1 + k), lambda k: 1 + k % 2),
    SGD(0.02, 2),
]
"""Settings that are stepped together and settings that are not, mixed up."""


def looped(problem: sgdsde.Problem, sgd: SGD, n_steps: int, *, seed: int, run: int) -> Tensor:
    """Outputs after torch's own loop."""
    model: Any = copy.deepcopy(problem.model)
    named = dict(model.named_parameters())
    words = {"momentum": sgd.momentum, "dampening": sgd.dampening, "nesterov": sgd.nesterov}
    optimizer = torch.optim.SGD(named.values(), lr=1.0, weight_decay=sgd.weight_decay, **words)
    for k, batch in enumerate(batch_indices(sgd, problem.n_train, n_steps, seed=seed, run=run)):
        rows = batch[batch != PADDING]
        optimizer.param_groups[0]["lr"] = sgd.lr_at(k)
        optimizer.zero_grad()
        problem.loss(model(problem.x_train[rows]), problem.y_train[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        return model(problem.x_train)


@pytest.mark.parametrize("make", [mlp_problem, classification_problem])
def test_every_run_of_every_setting_is_torchs_loop(make):
    problem = make()
    found = sgdsde.run_ensembles(problem, MIXED, 5, 3, seed=4, record=[5], observe=("outputs",))
    assert len(found) == len(MIXED)
    for sgd, trajectory in zip(MIXED, found):
        for run in (0, 2):
            expected = looped(problem, sgd, 5, seed=4, run=run)
            torch.testing.assert_close(trajectory.train_outputs.samples[run, 0], expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("linearized", [False, True])
@pytest.mark.parametrize("memory", [None, 2**13])
def test_a_setting_among_others_is_the_setting_alone(linearized, memory):
    problem = BY_NAME["two outputs"].problem()
    trained = sgdsde.linearize(problem) if linearized else problem
    words: dict[str, Any] = {"seed": 1, "observe": ("outputs", "loss")}
    found = sgdsde.run_ensembles(trained, MIXED, 4, 67, memory=memory, **words)
    for sgd, trajectory in zip(MIXED, found):
        alone = sgdsde.run_ensemble(trained, sgd, 4, 67, **words)
        assert torch.equal(trajectory.times, alone.times)
        assert torch.equal(trajectory.steps, alone.steps)
        assert trajectory.dynamics == alone.dynamics
        for name in ("train_loss", "train_outputs", "test_outputs"):
            both = (getattr(each, name).samples for each in (trajectory, alone))
            torch.testing.assert_close(*both, rtol=1e-11, atol=1e-13)


def test_settings_of_one_batch_size_share_their_batches_and_differ_in_their_numbers():
    """The first step moves the outputs of a linear model by the learning rate times the same number."""
    problem = BY_NAME["one output"].problem()
    pair = [SGD(0.1, 2), SGD(0.025, 2)]
    first, second = sgdsde.run_ensembles(problem, pair, 1, 5, record=[0, 1], observe=("outputs",))
    moves = [found.train_outputs.samples[:, 1] - found.train_outputs.samples[:, 0] for found in (first, second)]
    torch.testing.assert_close(moves[0], 4 * moves[1], rtol=1e-9, atol=1e-12)
    assert moves[0].std(0).max() > 1e-3 * moves[0].abs().max(), "all runs on the same batches"


def test_label_noise_of_each_setting_has_its_own_size():
    problem = BY_NAME["one output"].problem()
    clean = sgdsde.run_ensemble(problem, SGD(0.1, 2), 1, 6, record=[1], observe=("outputs",)).train_outputs.samples
    sgds = [SGD(0.1, 2, label_noise_std=std) for std in (0.5, 1.0)]
    found = sgdsde.run_ensembles(problem, sgds, 1, 6, record=[1], observe=("outputs",))
    moved = [each.train_outputs.samples - clean for each in found]
    torch.testing.assert_close(2 * moved[0], moved[1], rtol=1e-9, atol=1e-12)
    assert moved[0].abs().max() > 1e-3


def test_a_setting_that_diverges_leaves_the_others_alone():
    problem = mlp_problem()
    calm, wild, third = sgdsde.run_ensembles(problem, [SGD(0.1, 2), SGD(1e30, 2), SGD(0.05, 2)], 12, 4)
    assert (wild.diverged_at <= 12).all()
    for sgd, found in ((SGD(0.1, 2), calm), (SGD(0.05, 2), third)):
        alone = sgdsde.run_ensemble(problem, sgd, 12, 4)
        torch.testing.assert_close(found.train_loss.samples, alone.train_loss.samples, rtol=1e-12, atol=0)


def test_variants_of_several_settings():
    problem = BY_NAME["one output"].problem()
    pair = [SGD(0.1, 2), SGD(0.05, 2)]
    found = sgdsde.run_ensembles(problem, pair, 3, 4, variant=SVAG(2))
    for sgd, each in zip(pair, found):
        alone = sgdsde.run_ensemble(problem, sgd, 3, 4, variant=SVAG(2))
        torch.testing.assert_close(each.train_loss.samples, alone.train_loss.samples, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="momentum"):
        sgdsde.run_ensembles(problem, [*pair, SGD(0.1, 2, momentum=0.5)], 3, 4, variant=SVAG(2))


@pytest.mark.parametrize("variant", [None, SVAG(3)])
def test_progress_counts_every_step_of_every_run_once(variant):
    problem, seen = BY_NAME["one output"].problem(), []

    def progress(items):
        seen.append(0)
        for item in items:
            seen[-1] += 1
            yield item

    sgds = [SGD(0.1, 2), SGD(0.1, 3), SGD(0.05, 2)]
    sgdsde.run_ensembles(problem, sgds, 7, 70, variant=variant, progress=progress, record=[0, 2, 7])
    assert seen == [7 * 70 * 3]


def test_what_is_no_list_of_sgds_is_refused():
    problem = BY_NAME["one output"].problem()
    for wrong in (SGD(0.1, 2), [], "sgd", None):
        with pytest.raises(TypeError, match="sgds must be a sequence of one SGD at least"):
            sgdsde.run_ensembles(problem, wrong, 1, 1)
    with pytest.raises(TypeError, match="sgd must be an SGD"):
        sgdsde.run_ensembles(problem, [SGD(0.1, 2), 0.1], 1, 1)
    with pytest.raises(ValueError, match="batch_size"):
        sgdsde.run_ensembles(problem, [SGD(0.1, 2), SGD(0.1, 10**6, sampling="shuffled")], 1, 1)


# ----------------------------------------------------------------------------------------- the linearized model's step


@pytest.mark.parametrize("batch_size", [1, 2, 9])
@pytest.mark.parametrize("words", [{}, {"momentum": 0.6, "weight_decay": 0.3}])
@pytest.mark.parametrize("case", ["one output", "two outputs, constant part"])
def test_linearized_runs_are_runs_of_the_linear_model(case, words, batch_size):
    """Columns of the kernel summed one by one, for small batches, or a product with all of them, for large ones."""
    problem = BY_NAME[case].problem()
    sgd = SGD(0.05, batch_size, **words)
    found, expected = (
        sgdsde.run_ensemble(trained, sgd, 5, 4, seed=3, observe=("outputs",))
        for trained in (sgdsde.linearize(problem), problem)
    )
    for side in ("train_outputs", "test_outputs"):
        both = (getattr(each, side).samples for each in (found, expected))
        torch.testing.assert_close(*both, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("has_test", [False, True])
def test_a_kernel_that_is_not_quite_symmetric_is_used_by_columns(has_test):
    problem = BY_NAME["one output"].problem()
    problem = problem if has_test else replace(problem, x_test=None, y_test=None)
    made = sgdsde.linearize(problem)
    kernel = made.kernel + 0.1 * torch.triu(made.kernel, 1)
    skew = replace(made, kernel=kernel)
    sgd = SGD(0.05, 1)
    moved = sgdsde.run_ensemble(skew, sgd, 1, 1, observe=("outputs",)).train_outputs.samples[0]
    drawn = int(batch_indices(sgd, problem.n_train, 1, seed=0, run=0)[0, 0])
    residual = float(problem.criterion.gradient(made.outputs, problem.y_train)[drawn, 0])
    torch.testing.assert_close(moved[1] - moved[0], -0.05 * residual * kernel[:, [drawn]], rtol=1e-9, atol=1e-12)
    if has_test:
        cross = sgdsde.run_ensemble(skew, sgd, 1, 1, observe=("outputs",)).test_outputs.samples[0]
        expected = -0.05 * residual * made.cross_kernel[:, [drawn]]
        torch.testing.assert_close(cross[1] - cross[0], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("operators", [("kernel",), ("cross_kernel",), ("kernel", "cross_kernel")], ids=str)
def test_a_kernel_by_its_products_is_that_of_its_matrix(operators):
    """Of the training set, of the test set, or of both."""
    made = sgdsde.linearize(BY_NAME["two outputs"].problem())
    by_products = replace(made, **{name: DenseKernel(getattr(made, name)) for name in operators})
    sgd = SGD(0.05, 2, momentum=0.5)
    found, expected = (sgdsde.run_ensemble(each, sgd, 4, 3, observe=("outputs",)) for each in (by_products, made))
    torch.testing.assert_close(found.train_outputs.samples, expected.train_outputs.samples)
    torch.testing.assert_close(found.test_outputs.samples, expected.test_outputs.samples)


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.HuberLoss()])
def test_divergence_of_the_linearized_model_is_seen_at_every_example(loss):
    """An output overflows at an example that is not drawn: the step at which it does, not the one that draws it."""
    x = torch.tensor([[1e200]] + [[1.0]] * 30, dtype=torch.float64)
    problem = sgdsde.Problem(nn.Linear(1, 1, bias=False).double(), x[1:], x[1:] * 3, loss=loss)
    made = sgdsde.linearize(problem)
    kernel = made.kernel.clone()
    kernel[0] *= 1e300
    sgd = SGD(1e9, 1)
    found = sgdsde.run_ensemble(replace(made, kernel=kernel), sgd, 4, 5, record=[0, 4])
    assert (found.diverged_at <= 2).all()


@pytest.mark.parametrize("linearized", [False, True], ids=["real", "linearized"])
@pytest.mark.parametrize(("variant", "record"), [(None, [0, 5, 6]), (None, [3]), (SVAG(3), [2, 9])], ids=str)
def test_each_step_of_each_run_is_one_unit_of_the_bar(
    linearized: bool, variant: Any, record: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Up to the last step that is recorded, where the training ends; of a block that is kept its steps at once."""
    counts: list[int] = []
    monkeypatch.setattr(_progress._Wrapped, "update", lambda self, n: counts.append(n))
    problem = mlp_problem()
    trained = sgdsde.linearize(problem) if linearized else problem
    sgds = [SGD(0.05, 2), SGD(0.02, 2), SGD(0.02, 3)] + ([] if variant else [SGD(0.1, 2, momentum=0.5)])
    runs = 70 * len(sgds)
    for words, steps in (({}, record[-1]), ({"memory": 10**6}, record[-1]), ({"checkpoint": tmp_path / "runs"}, 9)):
        counts.clear()
        totals: list[int] = []

        def counted(items: Any, totals: list[int] = totals) -> Any:
            totals.append(len(items))
            return iter(items)

        sgdsde.run_ensembles(trained, sgds, 9, 70, variant=variant, record=record, progress=counted, **words)
        assert totals == [9 * runs]
        assert sum(counts) == steps * runs
        assert min(counts) >= 0
