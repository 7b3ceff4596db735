"""Paths that stay finite are told from those that do not, by the step at which they stopped being finite."""

import pytest
import torch

import sgdsde
from sgdsde.dynamics import SDEPaths
from sgdsde.stability import UnstableWarning
from tests.problems import BY_NAME


def test_finite_paths_diverge_after_the_last_step():
    problem = BY_NAME["two outputs"].problem()
    for record in ([0, 7], [0, 3]):
        predicted = sgdsde.predict(problem, sgdsde.SGD(0.05, 2), 7, dynamics=SDEPaths(16), record=record)
        assert predicted.diverged_at.tolist() == [8] * 16


def test_infinite_paths_diverge_where_they_are_first_seen_to_be():
    linearization = sgdsde.linearize(BY_NAME["two outputs"].problem())
    record = [0, 5, 400, 2000, 2500]
    with pytest.warns(UnstableWarning):
        predicted = sgdsde.predict(linearization, sgdsde.SGD(30.0, 2), 2500, dynamics=SDEPaths(8), record=record)
    finite = torch.isfinite(predicted.train_loss.samples)
    assert not finite.all()
    assert finite[:, :2].all()
    for path, diverged in zip(finite, predicted.diverged_at.tolist()):
        assert diverged == next((step for step, fine in zip(record, path) if not fine), 2501)
