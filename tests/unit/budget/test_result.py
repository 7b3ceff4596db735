"""Error budgets as a table, a data frame and a picture, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib import pyplot

import sgdsde
from sgdsde import dynamics
from sgdsde.budget import TERMS
from tests.problems import mlp_problem


@pytest.fixture(scope="module")
def budget() -> sgdsde.ErrorBudget:
    theory = dynamics.OrnsteinUhlenbeck()
    return sgdsde.error_budget(mlp_problem(), sgdsde.SGD(0.1, 3), 30, 6, dynamics=theory, record=[0, 1, 5, 30])


def test_the_table_holds_the_numbers_and_says_what_is_zero(budget: sgdsde.ErrorBudget) -> None:
    text = str(budget)
    assert budget.sentence in " ".join(text.split())
    assert "OrnsteinUhlenbeck(freeze='mean_path', rtol=1e-10) is at most" in budget.sentence
    gap, error = (100 * float(part[-1] / budget.train.measured[-1]) for part in (budget.gap, budget.gap_standard_error))
    assert f"{gap:+.2f} +- {error:.2f}" in text
    assert "non_gaussian: 0: the expected squared error depends on the first two moments of the noise only" in text
    assert "frozen_noise: MomentEquations(order=1, rtol=1e-06) - OrnsteinUhlenbeck(freeze='mean_path'" in text
    header = next(line for line in text.splitlines() if "measured" in line and "step" in line)
    assert "discretization" in header
    assert "kernel_motion" not in header


def test_the_sentence_names_the_largest_term_where_the_gap_is_largest(budget: sgdsde.ErrorBudget) -> None:
    relative = budget.gap / budget.train.measured
    at = int(relative.abs().argmax())
    largest = max(TERMS, key=lambda name: abs(float(budget.terms[name].value[at])))
    assert f"step {int(budget.steps[at])}; the largest term there is {largest}, " in budget.sentence
    assert ("below" if relative[at] > 0 else "above") in budget.sentence


def test_the_data_frame_has_a_row_for_every_step_and_curve(budget: sgdsde.ErrorBudget) -> None:
    frame = budget.to_dataframe()
    assert len(frame) == 8
    assert frame["curve"].tolist() == ["train"] * 4 + ["test"] * 4
    assert np.allclose(frame[list(TERMS)].sum(axis=1), frame["gap"], rtol=0, atol=1e-12)
    assert np.array_equal(frame["closure_standard_error"], np.zeros(8))


def heights(area, steps: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper edge of a filled area at each step."""
    corners = np.concatenate([path.vertices for path in area.get_paths()])
    at = [corners[corners[:, 0] == step, 1] for step in steps]
    return np.array([y.min() for y in at]), np.array([y.max() for y in at])


def test_the_picture_stacks_the_terms_up_to_the_gap(budget: sgdsde.ErrorBudget, tmp_path) -> None:
    """Every area is as high as its term and stands on those before it; upwards and downwards sum to the gap."""
    try:
        panels = budget.plot()
        assert len(panels) == 2
        for axes, curve in zip(panels, (budget.train, budget.test)):
            scale, steps = 100 / curve.measured.numpy(), budget.steps.tolist()
            shown = [scale * term.value.numpy() for term in curve.terms.values() if not term.is_zero]
            areas = axes.collections[: 2 * len(shown)]
            up, down = np.zeros(len(steps)), np.zeros(len(steps))
            for value, above, below in zip(shown, areas[::2], areas[1::2], strict=True):
                np.testing.assert_allclose(heights(above, steps), (up, up + value.clip(min=0)), atol=1e-12)
                np.testing.assert_allclose(heights(below, steps), (down + value.clip(max=0), down), atol=1e-12)
                up, down = up + value.clip(min=0), down + value.clip(max=0)
            gap = axes.containers[0].lines[0].get_ydata()
            np.testing.assert_allclose(gap, scale * curve.gap.numpy(), atol=1e-12)
            np.testing.assert_allclose(up + down, gap, atol=1e-10)
            assert up.max() > 0.1
            assert down.min() < -0.1
        labels = panels[0].get_legend_handles_labels()[1]
        assert "frozen noise" in labels
        assert "kernel motion" not in labels
    finally:
        pyplot.close("all")
    budget.plot(tmp_path / "budget.png")
    assert (tmp_path / "budget.png").stat().st_size > 10_000


def test_a_problem_without_a_test_set_has_one_curve() -> None:
    whole = mlp_problem()
    problem = sgdsde.Problem(whole.model, whole.x_train, whole.y_train, loss=whole.loss)
    budget = sgdsde.error_budget(problem, sgdsde.SGD(0.1, 3), 4, 3)
    assert budget.test is None
    assert list(budget.curves) == ["train"]
    assert torch.equal(budget.gap, budget.train.gap)
    assert budget.terms is budget.train.terms


def test_runs_that_diverge_are_named() -> None:
    problem = mlp_problem()
    message = (
        r"losses must be finite to be budgeted, got infinity at step \d+ in the train loss of .*; use a smaller lr"
    )
    with pytest.warns(sgdsde.UnstableWarning), pytest.raises(ValueError, match=message):
        sgdsde.error_budget(problem, sgdsde.SGD(1e4, 3), 200, 3)


def test_arguments_are_checked() -> None:
    problem, sgd = mlp_problem(), sgdsde.SGD(0.1, 3)
    with pytest.raises(ValueError, match="n_runs must be at least 2, got 1"):
        sgdsde.error_budget(problem, sgd, 4, 1)
    with pytest.raises(TypeError, match="dynamics must be an instance of"):
        sgdsde.error_budget(problem, sgd, 4, 2, dynamics="MomentRecursion")
    with pytest.raises(ValueError, match="OrnsteinUhlenbeck cannot represent shuffled epochs"):
        sgdsde.error_budget(
            problem, sgdsde.SGD(0.1, 3, sampling="shuffled"), 4, 2, dynamics=dynamics.OrnsteinUhlenbeck()
        )
