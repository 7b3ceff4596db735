"""The learning rate of the smallest predicted last loss, against closed forms and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest

import sgdsde
from sgdsde import dynamics
from sgdsde.questions import forecasts
from sgdsde.questions.search import refined
from tests.problems import LARGER, classification_problem, mlp_problem
from tests.unit.questions import one_weight


@pytest.mark.parametrize("batch_size", [1, 4])
def test_one_weight_has_a_closed_form(batch_size: int) -> None:
    n_steps = 7
    found = sgdsde.choose_lr(one_weight.problem(), sgdsde.SGD(9.0, batch_size), n_steps)
    rates = np.geomspace(0.003, 0.999, 20001)
    losses = one_weight.expected_loss(rates, batch_size, n_steps)
    assert found.limit == pytest.approx(1.0, rel=1e-6)  # the same input everywhere: no noise amplifies
    assert found.loss == pytest.approx(losses.min(), rel=2e-3)
    assert found.lr == pytest.approx(rates[losses.argmin()], rel=0.06)
    assert found.losses.numpy() == pytest.approx(
        one_weight.expected_loss(found.lrs.numpy(), batch_size, n_steps), rel=1e-6
    )
    within = rates[losses <= 1.05 * losses.min()]
    assert found.good_range == pytest.approx((within[0], within[-1]), rel=0.1)
    assert not found.is_at_edge
    wrong = rates[one_weight.expected_loss(rates, 8 * batch_size, n_steps).argmin()]
    assert abs(found.lr / wrong - 1) > 0.1  # of eight times the batch


@pytest.mark.parametrize("words", [{}, {"momentum": 0.8}, {"weight_decay": 0.1}], ids=str)
def test_brute_force_finds_no_better(words: dict) -> None:
    linear, sgd = sgdsde.linearize(LARGER.problem()), sgdsde.SGD(1.0, 3, **words)
    found = sgdsde.choose_lr(linear, sgd, 12, side="test")
    for lr in np.geomspace(found.limit / 200, 0.97 * found.limit, 60):
        other = sgdsde.predict(linear, sgdsde.SGD(lr, 3, **words), 12, dynamics=dynamics.MomentRecursion())
        assert other.test_loss is not None
        assert float(other.test_loss.mean[-1]) > 0.998 * found.loss
    assert found.limit == pytest.approx(sgdsde.stability.max_lr_of(linear, sgd))
    assert float(found.predicted.losses["test"].mean[-1]) == pytest.approx(found.loss, rel=1e-3)


def test_a_schedule_keeps_its_shape() -> None:
    linear, n_steps = sgdsde.linearize(LARGER.problem()), 12
    found = sgdsde.choose_lr(linear, sgdsde.SGD(lambda k: 0.01 / (1 + k), 3), n_steps)
    shape = [found.sgd.lr_at(k) for k in range(4)]
    assert shape == pytest.approx([found.lr / (1 + k) for k in range(4)])
    rates = np.geomspace(found.limit / 100, 0.97 * found.limit, 25)
    losses = [
        float(sgdsde.predict(linear, sgdsde.SGD(lambda k, r=r: r / (1 + k), 3), n_steps).train_loss.mean[-1])
        for r in rates
    ]
    assert found.loss < 1.002 * min(losses)


def test_only_what_is_given_is_tried() -> None:
    linear = sgdsde.linearize(LARGER.problem())
    found = sgdsde.choose_lr(linear, sgdsde.SGD(1.0, 3), 5, lrs=[0.02, 0.01])
    assert found.lrs.tolist() == [0.01, 0.02]
    assert found.is_at_edge
    assert "a better one may lie beyond" in str(found)


@pytest.mark.filterwarnings("ignore::sgdsde.dynamics.moving_kernel.KernelDriftWarning")
def test_a_kernel_that_moves_is_let_move_and_said() -> None:
    """Full batches, so that one run of the network is its expectation."""
    problem, sgd, n_steps = mlp_problem(n_outputs=1), sgdsde.SGD(1.0, 7, sampling="without_replacement"), 12
    found = sgdsde.choose_lr(problem, sgd, n_steps)
    assert found.predicted.dynamics.startswith("MovingKernel")
    assert "the kernel moves with the network" in str(found)
    assert not found.is_doubtful
    frozen = sgdsde.choose_lr(sgdsde.linearize(problem), sgd, n_steps)
    runs = [float(sgdsde.run_ensemble(problem, one.sgd, n_steps, 1).train_loss.mean[-1]) for one in (found, frozen)]
    assert runs[0] == pytest.approx(found.loss, rel=1e-6)
    assert runs[1] > 1.2 * runs[0]  # at the learning rate that the frozen kernel would have chosen


@pytest.mark.filterwarnings("ignore:the kernel is kept:UserWarning")
def test_a_frozen_answer_about_a_moving_kernel_is_never_silent() -> None:
    problem, sgd = mlp_problem(n_outputs=1), sgdsde.SGD(1.0, 7, sampling="without_replacement")
    with pytest.warns(sgdsde.FrozenKernelWarning, match="answer may be wrong"):
        found = sgdsde.choose_lr(problem, sgd, 12, dynamics=dynamics.MomentRecursion())
    assert found.is_doubtful
    assert "Doubtful: the kernel of the network moves" in found.sentence
    assert "do not rely on it" in str(found)


def test_a_network_that_stays_linear_keeps_the_frozen_kernel() -> None:
    """Warnings are errors here."""
    found = sgdsde.choose_lr(one_weight.problem(), sgdsde.SGD(1.0, 2), 5)
    assert "moves little" in found.kernel


def test_other_losses_are_sampled_and_may_pass_the_limit() -> None:
    theory = dynamics.SDEPaths(n_paths=64)
    linear = sgdsde.linearize(classification_problem())
    found = sgdsde.choose_lr(linear, sgdsde.SGD(1.0, 3), 4, dynamics=theory)
    assert float(found.lrs[-1]) == pytest.approx(4 * found.limit)
    assert "need not diverge" in found.sentence
    assert "standard error" in str(found)


def test_diverging_paths_have_no_loss_and_other_errors_come_through() -> None:
    linear, n_steps = sgdsde.linearize(one_weight.problem()), 60
    moving = forecasts.Forecasts(linear, dynamics.MovingKernel())
    small, huge = (sgdsde.SGD(lr, 6, sampling="without_replacement") for lr in (0.01, 1e9))
    near, far = moving.predict([small, huge], n_steps, [0, n_steps])
    assert near is not None
    assert far is None
    with pytest.raises(ValueError, match="at most n_train"):
        moving.predict([sgdsde.SGD(0.1, 99, sampling="without_replacement")], n_steps, [0, n_steps])


def test_the_search_follows_the_best_to_below_its_grid() -> None:
    rates, values = refined(lambda rates: [abs(math.log(r / 2e-4)) for r in rates], [0.1, 1.0], rounds=3, points=5)
    assert rates[values.argmin()] == pytest.approx(2e-4, rel=0.01)
    assert (np.diff(rates) > 0).all()
    rates, values = refined(lambda rates: [math.nan] * len(rates), [0.1, 1.0], rounds=1, points=2)
    assert np.isinf(values).all()


def test_the_picture_shows_limit_and_choice(tmp_path) -> None:
    found = sgdsde.choose_lr(one_weight.problem(), sgdsde.SGD(1.0, 2), 5)
    axes = found.plot(tmp_path / "lr.png")
    assert "mean-square limit" in [line.get_label() for line in axes.get_lines()]


@pytest.mark.parametrize(
    ("arguments", "words", "error", "message"),
    [
        ((0,), {}, ValueError, "n_steps must be at least 1"),
        ((5,), {"side": "test"}, ValueError, "without a test set"),
        ((5,), {"side": "both"}, ValueError, "'train' or 'test'"),
        ((5,), {"lrs": []}, ValueError, "one learning rate at least"),
        ((5,), {"lrs": [-1.0]}, ValueError, "lrs must be positive"),
        ((5,), {"lrs": 0.1}, TypeError, "a sequence of learning rates"),
        ((5,), {"dynamics": "frozen"}, TypeError, "an instance of sgdsde.dynamics.Dynamics"),
    ],
)
def test_bad_input_is_refused(arguments: tuple, words: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        sgdsde.choose_lr(one_weight.problem(), sgdsde.SGD(1.0, 2), *arguments, **words)


def test_no_limit_to_search_below_is_said() -> None:
    sgd = sgdsde.SGD(1.0, 2, momentum=0.5, dampening=1.0)
    with pytest.raises(ValueError, match=r"positive and finite, got inf; give lrs"):
        sgdsde.choose_lr(sgdsde.linearize(one_weight.problem()), sgd, 5)
