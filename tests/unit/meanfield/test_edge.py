"""The edge of chaos against the variance map, differentiated numerically, and against its own scaling law."""

from __future__ import annotations

import re
import warnings

import pytest
import torch

from sgdsde import meanfield
from sgdsde.meanfield import UnstableEdgeWarning
from sgdsde.networks.activations import resolve_activation


def slope_of_the_map(activation, sigma_w: torch.Tensor | float, q: torch.Tensor) -> torch.Tensor:
    """F'(q) of F(q) = sigma_b^2 + sigma_w^2 E phi(sqrt q z)^2 by a central difference."""
    step = 1e-4 * q
    above, below = (meanfield.variance_map(activation, 1.0, 0.0, q + sign * step) for sign in (1, -1))
    return sigma_w**2 * (above - below) / (2 * step)


@pytest.mark.parametrize("activation", ["tanh", "erf", "gelu", "silu", "elu", "sin"])
def test_the_slope_along_the_edge_is_that_of_the_variance_map(activation):
    q = torch.tensor([0.05, 0.3, 1.0, 4.0], dtype=torch.float64)
    curve = meanfield.edge_of_chaos_curve(activation, q)
    expected = slope_of_the_map(activation, curve.sigma_w, q)
    torch.testing.assert_close(curve.slope, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(curve.is_stable, expected.abs() < 1)


@pytest.mark.parametrize(
    ("activation", "sigma_b"), [("tanh", 0.4), ("silu", 0.3), ("silu", 0.9), ("gelu", 0.2), ("gelu", 0.6)]
)
def test_a_point_is_stable_where_the_variance_map_is(activation, sigma_b):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = meanfield.edge_of_chaos(activation, sigma_b)
    slope = float(slope_of_the_map(activation, found.sigma_w, torch.tensor(found.q, dtype=torch.float64)))
    assert found.is_stable == (abs(slope) < 1) == (not caught)
    for warning in caught:
        assert warning.category is UnstableEdgeWarning
        told = float(re.search(r"F'\(q\)=(\S+) > 1", str(warning.message)).group(1))
        assert told == pytest.approx(slope, abs=1e-4)


@pytest.mark.parametrize("factor", [0.3, 4.0])
@pytest.mark.parametrize(("activation", "sigma_b"), [("tanh", 0.0), ("tanh", 0.5), ("gelu", 0.0), ("elu", 0.0)])
@pytest.mark.filterwarnings("ignore::sgdsde.meanfield.UnstableEdgeWarning")
def test_a_factor_of_the_activation_divides_sigma_w_and_changes_nothing_else(activation, sigma_b, factor):
    phi = resolve_activation(activation)
    plain = meanfield.edge_of_chaos(phi, sigma_b)
    scaled = meanfield.edge_of_chaos(lambda x: factor * phi(x), sigma_b)
    assert scaled.sigma_w == pytest.approx(plain.sigma_w / factor, rel=1e-9)
    assert scaled.q == pytest.approx(plain.q, rel=1e-6, abs=1e-9)
    assert scaled.is_stable == plain.is_stable
