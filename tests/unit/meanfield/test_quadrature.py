"""Gaussian expectations by panels: against closed forms, series and each other, kinks anywhere, any scale."""

import math

import pytest
import torch
from torch.nn import functional

from sgdsde.meanfield.activation import Activation
from sgdsde.meanfield.chebyshev_tables import dual_at, polar_moments
from sgdsde.meanfield.closed_forms import Erf, Homogeneous, closed_form
from sgdsde.meanfield.gauss_panels import nodes_and_weights
from sgdsde.meanfield.hermite import hermite_series
from sgdsde.meanfield.quadrature import density, moments, pair_moments

SCALES = torch.tensor([1e-4, 0.03, 0.7, 1.0, 3.0, 50.0, 1000.0], dtype=torch.float64)
CORRELATIONS = torch.tensor([-1.0, -0.999, -0.4, 0.0, 0.3, 0.9, 0.9999, 1.0], dtype=torch.float64)


def test_moments_of_relu_and_erf_are_exact():
    for name, exact in (("relu", Homogeneous(0.0, 1.0)), ("erf", Erf())):
        found = moments(Activation(name), SCALES)
        for value, closed in zip((found.square, found.slope_square, found.cross), exact.single(SCALES**2)):
            torch.testing.assert_close(value, closed, rtol=1e-12, atol=0)


def test_moments_of_hardtanh_are_exact_although_its_kinks_are_off_zero():
    s = torch.tensor([0.2, 1.0, 4.0], dtype=torch.float64)
    found = moments(Activation(functional.hardtanh), s)
    inside = torch.special.erf(1 / (s * math.sqrt(2)))
    density = torch.exp(-1 / (2 * s * s)) / math.sqrt(2 * math.pi)
    torch.testing.assert_close(found.slope_square, inside, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.square, s * s * inside - 2 * s * density + 1 - inside, rtol=1e-11, atol=0)


@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.3, 2.0), (30.0, 20.0)])
@pytest.mark.parametrize("name", ["relu", "erf"])
def test_pairs_are_exact(name, scales):
    activation = Activation(name)
    s1, s2 = (torch.tensor(s, dtype=torch.float64) for s in scales)
    found = pair_moments(activation, s1, s2, CORRELATIONS)
    covariance = (CORRELATIONS * s1 * s2)[:, None, None].clone()
    product, slopes = closed_form(activation).pair_(covariance, s1.expand(8, 1), s2.expand(8, 1))
    torch.testing.assert_close(found.product, product.flatten(), rtol=1e-11, atol=1e-13 * float(s1 * s2))
    torch.testing.assert_close(found.slope_product, slopes.flatten(), rtol=1e-11, atol=1e-13)


def test_pairs_of_sine_are_exact():
    s1, s2 = torch.tensor(0.8, dtype=torch.float64), torch.tensor(1.7, dtype=torch.float64)
    found = pair_moments(Activation("sin"), s1, s2, CORRELATIONS)
    damping = torch.exp(-(s1**2 + s2**2) / 2)
    torch.testing.assert_close(found.product, damping * (CORRELATIONS * s1 * s2).sinh(), rtol=1e-11, atol=1e-14)


def test_pairs_of_hardtanh_agree_with_hermite_coefficients_where_those_converge():
    # |c| <= 0.4: 60 coefficients leave out less than 0.4^60 = 1e-24.
    activation, c = Activation(functional.hardtanh), torch.tensor([-0.4, 0.0, 0.25, 0.4], dtype=torch.float64)
    edges = torch.tensor([-9, -4, -1, -0.5, 0, 0.5, 1, 4, 9], dtype=torch.float64)
    z, weight = nodes_and_weights(torch.cat([edges, torch.arange(-9, 10).double()]).unique(), 40)
    h = [torch.ones_like(z), z]
    for k in range(1, 60):
        h.append((z * h[-1] - k**0.5 * h[-2]) / (k + 1) ** 0.5)
    coefficients = torch.stack([(weight * density(z) * functional.hardtanh(z) * row).sum() for row in h])
    series = (coefficients**2 * c[:, None] ** torch.arange(61)).sum(1)
    one = torch.tensor(1.0, dtype=torch.float64)
    torch.testing.assert_close(pair_moments(activation, one, one, c).product, series, rtol=0, atol=1e-12)


def test_a_small_gap_keeps_its_digits():
    # E (phi(u) - phi(v))^2 -> 2 gap q E phi'^2, of relative accuracy although the difference is 1e-7 of phi.
    gap = torch.tensor([1e-6, 1e-10, 1e-13], dtype=torch.float64)
    one = torch.tensor(1.0, dtype=torch.float64)
    for name in ("tanh", "elu"):
        activation = Activation(name)
        found = pair_moments(activation, one, one, torch.ones(3, dtype=torch.float64), gap=gap)
        slope = moments(activation, one).slope_square
        torch.testing.assert_close(found.squared_difference / gap, (2 * slope).expand(3), rtol=3e-6, atol=0)


@pytest.mark.parametrize("name", ["tanh", "gelu", "softplus"])
def test_hermite_series_agree_with_quadrature(name):
    activation, (low, high) = Activation(name), (0.6, 1.2)
    series = hermite_series(activation, low, high)
    s1, s2 = (torch.tensor([s], dtype=torch.float64) for s in (low, high))
    found = pair_moments(activation, s1, s2, CORRELATIONS)
    for index, c in enumerate(CORRELATIONS):
        product, slopes = series.pair_((c * s1 * s2)[:, None].clone(), s1, s2)
        assert abs(float(product) - float(found.product[index])) < 1e-10
        assert abs(float(slopes) - float(found.slope_product[index])) < 1e-10


def test_a_table_of_elu_agrees_with_quadrature_between_its_nodes():
    activation = Activation("elu")
    table = dual_at(activation, 0.9, 1.1)
    s1, s2 = torch.tensor([0.913], dtype=torch.float64), torch.tensor([1.087], dtype=torch.float64)
    found = pair_moments(activation, s1, s2, CORRELATIONS)
    for index, c in enumerate(CORRELATIONS):
        product, slopes = table.pair_((c * s1 * s2)[:, None].clone(), s1, s2)
        assert abs(float(product) - float(found.product[index])) < 2e-9
        assert abs(float(slopes) - float(found.slope_product[index])) < 2e-9


def test_polar_and_plane_rules_agree_for_selu():
    theta = torch.linspace(0, math.pi, 5, dtype=torch.float64)
    s1, s2 = torch.full_like(theta, 0.8), torch.full_like(theta, 1.3)
    found = pair_moments(Activation(functional.selu), s1, s2, theta.cos())
    polar = polar_moments(Activation(functional.selu), s1, s2, theta, (14, 15))
    torch.testing.assert_close(polar, torch.stack([found.product, found.slope_product]), rtol=1e-10, atol=1e-12)


def test_growth_beyond_all_moments_is_refused():
    with pytest.raises(ValueError, match=r"at most exponential growth, got .* at standard deviation 1"):
        moments(Activation(lambda x: torch.exp(x * x)), torch.ones(1, dtype=torch.float64))
