"""The surface between anchors: exact where its form holds, and its errors those of the random part that it assumes."""

from __future__ import annotations

import numpy as np
import pytest

from sgdsde.surface.anchors import PLACES
from sgdsde.surface.kriging import LEAST_MISFIT, Kriging, features, missing

WHERE = [(1.0, 1.0), (0.7, 1.5), (0.9, 3.0), (0.6, 3.7)]
KRIGING = Kriging([(float(x), float(b)) for x, b in PLACES])
ANCHORS = np.stack([features(*place) for place in PLACES])
BEYOND = np.stack([missing(*place) for place in PLACES])


@pytest.mark.parametrize("place", WHERE)
def test_a_surface_of_its_form_is_met(place):
    weights, _ = KRIGING.predict(place, 0.3, np.full(5, 0.01))
    np.testing.assert_allclose(weights @ ANCHORS, features(*place), atol=1e-9)


def test_the_contrast_sees_what_is_missing_and_nothing_else():
    assert KRIGING.contrast[-1] == 1
    np.testing.assert_allclose(KRIGING.contrast @ ANCHORS, 0, atol=1e-9)
    assert np.linalg.norm(KRIGING.contrast @ BEYOND) > 0.01


def test_with_exact_anchors_the_surface_passes_through_them():
    for i, place in enumerate(PLACES):
        weights, error = KRIGING.predict(place, 0.3, np.full(5, 1e-14))
        np.testing.assert_allclose(weights, np.eye(5)[i], atol=1e-5)
        assert error < 1e-10


@pytest.mark.parametrize("place", WHERE)
def test_the_variance_is_that_of_what_is_assumed(place):
    """Over draws of the missing part and of the anchors' noise; the variance of 20000 draws is known to 1 %."""
    stream, tau, variance = np.random.default_rng(0), 0.05, np.array([1, 2, 1, 3, 2]) * 1e-4
    weights, expected = KRIGING.predict(place, tau, variance)
    g = tau * stream.standard_normal((20000, 3))
    anchors = g @ BEYOND.T + np.sqrt(variance) * stream.standard_normal((20000, 5))
    errors = anchors @ weights - g @ missing(*place)
    assert errors.var() == pytest.approx(expected, rel=0.05)
    corners = np.append(np.linalg.solve(ANCHORS[:-1].T, features(*place)), 0.0)
    assert errors.var() < (anchors @ corners - g @ missing(*place)).var()  # better than the four alone


def test_the_misfit_sets_the_scale_of_what_is_missing():
    misfit = np.array([[0.0, 0.0], [0.06, 0.0], [0.0, 0.0], [0.0, 0.0]])
    tau = KRIGING.tau(misfit)
    unit = np.linalg.norm(KRIGING.contrast @ BEYOND)
    np.testing.assert_allclose(tau[3] * unit, LEAST_MISFIT)
    np.testing.assert_allclose(tau[:3] * unit, (0.06**2 / 6 + LEAST_MISFIT**2) ** 0.5)
