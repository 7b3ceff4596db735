"""A comparison's numbers by hand, its verdicts, its words, and what it refuses to compare."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import nn

import sgdsde
from sgdsde import LossBand, Trajectory, Verdict, compare
from sgdsde.comparison import ERROR_RATE

STEPS = torch.tensor([0, 1, 4, 10])
CURVE = torch.tensor([1.0, 0.8, 0.5, 0.2], dtype=torch.float64)
N_RUNS = 4


def trajectory(loss: LossBand, *, n_runs: int = 0, lr: float = 0.1, **words: object) -> Trajectory:
    return Trajectory(
        **{
            "steps": STEPS,
            "times": lr * STEPS.double(),
            "train_loss": loss,
            "test_loss": None,
            "train_outputs": None,
            "test_outputs": None,
            "n_runs": n_runs,
            "dynamics": "GradientDescent()",
            "problem_digest": "a",
            "diverged_at": torch.full((n_runs,), 11),
        }
        | words
    )


def predicted(mean: torch.Tensor = CURVE, std: float = 0.0, **words: object) -> Trajectory:
    spread = std * (STEPS > 0)
    return trajectory(LossBand(mean, spread.double(), torch.zeros(4, dtype=torch.float64)), **words)


def measured(mean: torch.Tensor = CURVE, half: float = 0.1, **words: object) -> Trajectory:
    """Four runs, two above and two below the mean by ``half`` after step 0: standard deviation 2 half / sqrt(3)."""
    signs = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]], dtype=torch.float64)
    return trajectory(LossBand.from_samples(mean + half * signs * (STEPS > 0)), n_runs=N_RUNS, **words)


STD = 0.1 * 2 / 3**0.5


def test_errors_scores_and_coverage_by_hand():
    curve = compare(predicted(CURVE + 0.05, std=0.1), measured()).train
    torch.testing.assert_close(curve.relative_error, 0.05 / CURVE)
    assert curve.max_relative_error == pytest.approx(0.05 / 0.2)
    assert curve.z_score[0] == 0
    torch.testing.assert_close(curve.z_score[1:], torch.full((3,), 0.05 / (STD / 2), dtype=torch.float64))
    inside = [[low <= loss <= high for loss in (m - 0.1, m + 0.1)] for m, low, high in gamma_bounds(CURVE[1:] + 0.05)]
    assert curve.coverage[0].isnan()
    assert curve.coverage[1:].tolist() == [sum(pair) / 2 for pair in inside]


def gamma_bounds(means: torch.Tensor) -> list[tuple[float, float, float]]:
    laws = [(float(m) - 0.05, stats.gamma(a=(float(m) / 0.1) ** 2, scale=0.01 / float(m))) for m in means]
    return [(m, law.ppf(0.025), law.ppf(0.975)) for m, law in laws]


def test_the_score_takes_the_larger_spread():
    torch.testing.assert_close(
        compare(predicted(CURVE + 0.05, std=1.0), measured()).train.z_score[1:],
        torch.full((3,), 0.05 / (1.0 / 2), dtype=torch.float64),
    )


def test_curves_are_joined_on_their_common_steps():
    keep = torch.tensor([0, 2])
    band = measured().train_loss
    sparse = replace(
        measured(),
        steps=STEPS[keep],
        times=measured().times[keep],
        train_loss=LossBand.from_samples(band.samples[:, keep]),
    )
    curve = compare(predicted(2 * CURVE), sparse).train
    assert curve.steps.tolist() == [0, 4]
    torch.testing.assert_close(curve.relative_error, torch.ones(2, dtype=torch.float64))


def test_the_test_loss_is_compared_where_both_have_one():
    both = compare(predicted(test_loss=predicted().train_loss), measured(test_loss=measured(2 * CURVE).train_loss))
    torch.testing.assert_close(both.test.relative_error, torch.full((4,), -0.5, dtype=torch.float64))
    assert both.verdict is Verdict.DISAGREES
    assert set(both.curves) == {"train", "test"}
    assert compare(predicted(), measured(test_loss=measured().train_loss)).test is None


THRESHOLD = stats.norm.isf(ERROR_RATE / 2 / 4)


def later(mean: torch.Tensor) -> torch.Tensor:
    """The mean after step 0, where every prediction starts from the same loss."""
    return torch.where(STEPS == 0, CURVE, mean)


@pytest.mark.parametrize(
    ("left", "right", "verdict", "sentence"),
    [
        (predicted(1.02 * CURVE), measured(), Verdict.AGREES, "Agrees within 3 % at every step. GradientDescent()"),
        (predicted(later(CURVE + 0.15)), measured(half=0.1), Verdict.WITHIN_NOISE, "Within the noise of 4 runs"),
        (predicted(later(CURVE + 0.15)), measured(half=0.01), Verdict.DISAGREES, "beyond noise: train from step 1"),
        (predicted(CURVE * torch.tensor([1, 1, 2, 1])), measured(half=1e-3), Verdict.DISAGREES, "train from step 4"),
        (predicted(later(CURVE + 0.99 * THRESHOLD * STD / 2)), measured(), Verdict.WITHIN_NOISE, "error rate 1%"),
        (predicted(mean_square_limit=0.05), measured(), Verdict.OUT_OF_RANGE, "past the mean-square limit 0.05"),
        (predicted(CURVE * math.inf), measured(), Verdict.OUT_OF_RANGE, "a loss is not finite"),
        (predicted(), measured(CURVE * math.inf), Verdict.OUT_OF_RANGE, "so no agreement can be claimed"),
        (predicted(), measured(0 * CURVE, half=0), Verdict.DISAGREES, "train inf %"),
    ],
)
def test_verdicts(left, right, verdict, sentence):
    result = compare(left, right)
    assert result.verdict is verdict
    assert sentence in result.sentence


def test_just_past_the_threshold_is_disagreement():
    assert compare(predicted(later(CURVE + 1.01 * THRESHOLD * STD / 2)), measured()).verdict is Verdict.DISAGREES


def test_a_comparison_prints_as_its_sentence_and_a_table():
    result = compare(
        predicted(1.02 * CURVE, test_loss=predicted().train_loss), measured(test_loss=measured().train_loss)
    )
    lines = str(result).splitlines()
    assert result.sentence in " ".join(str(result).split())
    assert "4 runs" in result.sentence
    header = next(i for i, line in enumerate(lines) if "(train loss)" in line)
    assert len([line for line in lines[header:] if line.rstrip()[-1:].isdigit()]) == 8
    assert "2.00 %" in lines[header + 1]
    assert "What to do: use the prediction" in str(result)


@pytest.mark.parametrize(
    ("left", "right", "error", "message"),
    [
        (
            predicted(problem_digest="b"),
            measured(),
            ValueError,
            "of the same problem, got digests b and a; predict and",
        ),
        (
            predicted(lr=0.2),
            measured(),
            ValueError,
            "of the same learning rates, got different times; predict and measure",
        ),
        (predicted(lr=1e-9), measured(lr=2e-9), ValueError, "of the same learning rates"),
        (
            measured(),
            predicted(),
            ValueError,
            r"measured must be an ensemble of runs, got GradientDescent\(\); swap the",
        ),
        (predicted(steps=STEPS + 100), measured(), ValueError, r"recorded at two common steps at least, got \[\]"),
        (predicted(steps=10 * STEPS), measured(), ValueError, r"got \[0, 10\]|different times"),
        (
            predicted(steps=STEPS + 10),
            measured(),
            ValueError,
            r"two common steps at least, got \[10\]; use the same record",
        ),
        (predicted().train_loss, measured(), TypeError, "predicted must be a Trajectory, got LossBand"),
        (predicted(), None, TypeError, "measured must be a Trajectory, got NoneType"),
    ],
)
def test_what_cannot_be_compared_is_refused(left, right, error, message):
    with pytest.raises(error, match=message):
        compare(left, right)


def test_measured_may_be_compared_with_measured():
    assert compare(measured(), measured()).verdict is Verdict.AGREES


def test_one_run_is_scored_by_the_predicted_spread():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 3, generator=generator), torch.randn(6, 1, generator=generator)
    problem = sgdsde.Problem(nn.Linear(3, 1), x, y, loss=nn.MSELoss())
    sgd = sgdsde.SGD(0.02, 2)
    result = compare(sgdsde.predict(problem, sgd, 5), sgdsde.run_ensemble(problem, sgd, 5, 1))
    assert torch.isfinite(result.train.z_score).all()
    assert result.train.z_score[0] == 0


def test_the_table_says_what_an_interpolated_curve_is():
    between = predicted(1.2 * CURVE, dynamics="interpolated between ensembles")
    table = str(compare(between, measured()))
    assert "interpolated     measured" in table
    assert "predicted" not in table
    assert "   predicted     measured" in str(compare(predicted(), measured()))


def test_an_interpolated_mean_has_an_error_of_its_own():
    own = torch.full((4,), 0.03, dtype=torch.float64)
    between = trajectory(LossBand(CURVE + 0.05, 0 * own, own), dynamics="interpolated between ensembles")
    z = compare(between, measured()).train.z_score
    torch.testing.assert_close(z[1:], torch.full((3,), 0.05 / ((STD / 2) ** 2 + 0.03**2) ** 0.5, dtype=torch.float64))
