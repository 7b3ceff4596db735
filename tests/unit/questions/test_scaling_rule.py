"""Learning rates that keep a loss curve when the batch changes, against closed forms and ensembles."""

from __future__ import annotations

import math

import numpy as np
import pytest

import sgdsde
from sgdsde import dynamics
from sgdsde.recording import recorded_steps
from tests.problems import LARGER, mlp_problem
from tests.unit.questions import one_weight


def mismatch(lr: float, other: tuple[float, int], n_steps: int) -> float:
    """The largest relative difference of batch 1 at lr from another setting, at equal examples, in closed form."""
    rate, batch = other
    steps = recorded_steps(n_steps // batch).numpy()
    ratio = one_weight.expected_loss(rate, batch, steps) / one_weight.expected_loss(lr, 1, steps * batch)
    return float(abs(ratio - 1).max())


def test_one_weight_has_a_closed_form() -> None:
    found = sgdsde.scaling_rule(sgdsde.linearize(one_weight.problem()), sgdsde.SGD(0.05, 1), [4, 8, 16], n_steps=64)
    assert len(found.batches) == 3
    for row in found.batches:
        batch = row.batch_size
        rates = np.geomspace(0.01, 0.97, 4001)
        best = min(mismatch(0.05, (rate, batch), 64) for rate in rates)
        assert row.mismatch == pytest.approx(best, abs=0.006)
        assert row.mismatch == pytest.approx(mismatch(0.05, (row.lr, batch), 64), rel=1e-4)
        for name, power in {"linear": 1, "square root": 0.5, "constant": 0}.items():
            rule = row.rules[name]
            assert rule.lr == pytest.approx(0.05 * batch**power)
            assert rule.mismatch == pytest.approx(mismatch(0.05, (rule.lr, batch), 64), rel=1e-4)
    assert found.holds("square root") == []
    assert found.limit == pytest.approx(1.0, rel=1e-6)


def test_linear_scaling_becomes_exact_as_the_learning_rate_falls_and_the_root_does_not() -> None:
    """At a fixed time of training the mismatch of the linear rule falls in proportion to lr."""
    off = {}
    for lr, n_steps in ((0.02, 80), (0.005, 320)):
        found = sgdsde.scaling_rule(sgdsde.linearize(one_weight.problem()), sgdsde.SGD(lr, 1), [4], n_steps=n_steps)
        off[lr] = [found.batches[0].rules[name].mismatch for name in ("linear", "square root")]
    assert 3 < off[0.02][0] / off[0.005][0] < 5
    assert off[0.005][1] > 0.3


def test_the_same_batch_keeps_the_same_learning_rate() -> None:
    linear = sgdsde.linearize(LARGER.problem())
    for keep in ("examples", "steps"):
        found = sgdsde.scaling_rule(linear, sgdsde.SGD(0.02, 3), [3], keep=keep, n_steps=30)
        assert found.lrs[3] == pytest.approx(0.02, rel=1e-3)
        assert found.batches[0].mismatch < 1e-3
        assert found.holds("linear") == found.holds("constant") == found.kept == [3]


def test_at_equal_steps_a_larger_batch_keeps_the_learning_rate_of_a_quiet_curve() -> None:
    found = sgdsde.scaling_rule(
        sgdsde.linearize(one_weight.problem()), sgdsde.SGD(0.01, 4), [8], keep="steps", n_steps=40
    )
    (row,) = found.batches
    assert row.n_steps == 40
    assert row.lr == pytest.approx(0.01, rel=0.05)
    assert row.rules["constant"].mismatch < 0.05 < row.rules["linear"].mismatch


def test_past_the_limit_a_rule_is_unstable_and_its_curve_lost() -> None:
    linear = sgdsde.linearize(LARGER.problem())
    lr = 0.3 * sgdsde.stability.max_lr(linear, 1)
    found = sgdsde.scaling_rule(linear, sgdsde.SGD(lr, 1), [2, 16], n_steps=64)
    small, large = found.batches
    assert small.rules["linear"].is_stable
    assert not large.rules["linear"].is_stable
    assert large.rules["linear"].lr > large.limit == pytest.approx(sgdsde.stability.max_lr(linear, 16))
    assert math.isinf(large.rules["linear"].mismatch)
    assert found.is_stable("linear") == [2]
    assert "past the mean-square limit at batch 16" in found.sentence
    assert "unstable" in str(found)
    assert large.lr < large.limit


def test_runs_at_the_learning_rate_found_follow_the_reference() -> None:
    """800 runs of the linearized model each; their last losses agree to 4 standard errors, those of the root do not."""
    linear = sgdsde.linearize(LARGER.problem())
    sgd = sgdsde.SGD(0.08 * sgdsde.stability.max_lr(linear, 2), 2)
    found = sgdsde.scaling_rule(linear, sgd, [6], n_steps=60)
    assert found.batches[0].mismatch < 0.02

    def last(lr: float, batch: int, n_steps: int) -> tuple[float, float]:
        band = sgdsde.run_ensemble(linear, sgdsde.SGD(lr, batch), n_steps, 800, record=[0, n_steps]).train_loss
        return float(band.mean[-1]), float(band.standard_error[-1])

    reference, kept, root = last(sgd.lr_at(0), 2, 60), last(found.lrs[6], 6, 20), last(sgd.lr_at(0) * 3**0.5, 6, 20)
    error = math.hypot(reference[1], kept[1])
    assert abs(kept[0] - reference[0]) < 4 * error + 0.02 * reference[0]
    assert abs(root[0] - reference[0]) > 4 * error + 0.02 * reference[0]


@pytest.mark.filterwarnings("ignore:the kernel is kept:UserWarning")
def test_a_kernel_that_moves_is_said() -> None:
    problem = mlp_problem(n_outputs=1)
    sgd = sgdsde.SGD(0.3, 3)
    with pytest.warns(sgdsde.FrozenKernelWarning, match="use dynamics="):
        found = sgdsde.scaling_rule(problem, sgd, [6], n_steps=20)
    assert found.is_doubtful
    assert "Doubtful" in found.sentence
    assert "do not rely on it" in str(found)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sgdsde.dynamics.moving_kernel.KernelDriftWarning")
def test_a_moving_kernel_can_be_asked_for() -> None:
    found = sgdsde.scaling_rule(
        mlp_problem(n_outputs=1), sgdsde.SGD(0.1, 3), [3], n_steps=12, dynamics=dynamics.MovingKernel()
    )
    assert "MovingKernel" in found.kernel
    assert found.lrs[3] == pytest.approx(0.1, rel=0.3)
    assert found.batches[0].rules["linear"].mismatch == 0


def test_the_picture_shows_the_limit_and_each_rule(tmp_path) -> None:
    found = sgdsde.scaling_rule(sgdsde.linearize(one_weight.problem()), sgdsde.SGD(0.05, 1), [2, 4], n_steps=32)
    top, _ = found.plot(tmp_path / "scaling.png")
    labels = {line.get_label() for line in top.get_lines()}
    assert {"mean-square limit", "linear", "square root", "constant", "keeps the curve best"} <= labels


@pytest.mark.parametrize(
    ("sgd", "words", "error", "message"),
    [
        (sgdsde.SGD(lambda k: 0.1, 2), {}, ValueError, "constant lr and batch_size"),
        (sgdsde.SGD(1.5, 2), {}, ValueError, "below the mean-square limit 1"),
        (sgdsde.SGD(0.1, 2), {"batch_sizes": []}, ValueError, "one batch size at least"),
        (sgdsde.SGD(0.1, 2), {"batch_sizes": [2.5]}, ValueError, "a whole number"),
        (sgdsde.SGD(0.1, 2), {"batch_sizes": 4}, TypeError, "a sequence of batch sizes"),
        (sgdsde.SGD(0.1, 2), {"batch_sizes": [64], "n_steps": 50}, ValueError, "make two steps"),
        (sgdsde.SGD(0.1, 2), {"keep": "time"}, ValueError, "keep must be one of 'examples', 'steps'"),
        (sgdsde.SGD(0.1, 2), {"tolerance": 0}, ValueError, "tolerance must be positive"),
        (sgdsde.SGD(0.1, 2), {"side": "test"}, ValueError, "without a test set"),
        (sgdsde.SGD(0.1, 2, sampling="without_replacement"), {"batch_sizes": [9]}, ValueError, "at most n_train"),
    ],
)
def test_bad_input_is_refused(sgd: sgdsde.SGD, words: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        sgdsde.scaling_rule(one_weight.problem(), sgd, **{"batch_sizes": [4], **words})
