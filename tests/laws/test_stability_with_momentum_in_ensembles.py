"""Claim: with momentum 0.9 ensembles of the linearized network converge in mean at 0.9 ``max_lr`` and grow at 1.1.

Beyond the limit the mean is carried by ever fewer runs: most runs still converge, and after a few hundred steps no
ensemble holds the run that decides. So the horizon is fixed where the exact second moments already tell the two sides
apart by tens of standard errors and 1000 runs still estimate the mean to about a tenth.
"""

from __future__ import annotations

import pytest
import torch

import sgdsde
from sgdsde.stability import max_lr, max_lr_full_batch, mean_square_radius
from tests.problems import digits_problem
from tests.statistics import assert_mean_is

N_RUNS = 1000
EARLY, LATE = 25, 100
FAR = 1000


@pytest.mark.filterwarnings("ignore::sgdsde.UnstableWarning")
@pytest.mark.parametrize(("fraction", "grows"), [(0.9, False), (1.1, True)])
def test_linearized_runs_of_digits(fraction: float, grows: bool) -> None:
    linearization, batch_size = sgdsde.linearize(digits_problem(24)), 8
    limit = max_lr(linearization, batch_size, momentum=0.9)
    assert limit < 0.5 * max_lr_full_batch(linearization, momentum=0.9), "noise sets the limit here, not curvature"
    sgd = sgdsde.SGD(fraction * limit, batch_size, momentum=0.9)
    samples = sgdsde.run_ensemble(linearization, sgd, LATE, N_RUNS, record=(0, EARLY, LATE)).train_loss.samples
    change = samples[:, 2] - samples[:, 1]
    z = float(change.mean() / change.std() * N_RUNS**0.5)
    assert z > 5 if grows else z < -5
    assert (float(samples[:, 2].mean()) > float(samples[0, 0])) == grows
    exact = sgdsde.predict(linearization, sgd, LATE, record=(EARLY, LATE)).train_loss.mean
    assert_mean_is(exact, samples[:, 1:])


@pytest.mark.filterwarnings("ignore::sgdsde.UnstableWarning")
@pytest.mark.parametrize(("fraction", "grows"), [(0.9, False), (0.99, False), (1.01, True), (1.1, True)])
@pytest.mark.parametrize("words", [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}], ids=str)
def test_in_the_end_the_exact_loss_follows_the_radius(words: dict, fraction: float, grows: bool) -> None:
    linearization = sgdsde.linearize(digits_problem(24))
    sgd = sgdsde.SGD(fraction * max_lr(linearization, 8, **words), 8, **words)
    radius = mean_square_radius(linearization, sgd)
    loss = sgdsde.predict(linearization, sgd, FAR, record=(FAR // 2, FAR)).train_loss.mean
    rate = float(loss[1] / loss[0]) ** (2 / FAR)
    assert rate - 1 == pytest.approx(radius - 1, rel=0.02)
    assert (radius > 1) == grows


@pytest.mark.filterwarnings("ignore::sgdsde.UnstableWarning")
def test_most_runs_converge_beyond_the_limit() -> None:
    """Why the mean is asked for: the median run says nothing about the limit of the mean."""
    linearization = sgdsde.linearize(digits_problem(24))
    sgd = sgdsde.SGD(1.1 * max_lr(linearization, 8, momentum=0.9), 8, momentum=0.9)
    loss = sgdsde.run_ensemble(linearization, sgd, LATE, N_RUNS, record=(0, LATE)).train_loss
    assert float(loss.quantile(0.5)[1]) < float(loss.mean[0]) < float(loss.mean[1])


def test_past_the_limit_a_prediction_warns_with_the_limit() -> None:
    linearization = sgdsde.linearize(digits_problem(24))
    limit = max_lr(linearization, 8, momentum=0.9)
    with pytest.warns(
        sgdsde.UnstableWarning, match=rf"beyond the mean-square limit {limit:.6g} of SGD with batch_size=8"
    ):
        predicted = sgdsde.predict(linearization, sgdsde.SGD(1.01 * limit, 8, momentum=0.9), 3)
    assert predicted.is_past_limit
    assert predicted.mean_square_limit == pytest.approx(limit, rel=1e-9)
    beyond = sgdsde.SGD(1.01 * max_lr_full_batch(linearization, momentum=0.9), 8, momentum=0.9)
    with pytest.warns(sgdsde.UnstableWarning, match="beyond the full-batch limit"):
        sgdsde.predict(linearization, beyond, 3)
    assert not sgdsde.predict(linearization, sgdsde.SGD(0.99 * limit, 8, momentum=0.9), 3).is_past_limit
    assert torch.isfinite(predicted.train_loss.mean).all()
