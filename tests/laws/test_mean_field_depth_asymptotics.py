"""Law: what depth does to correlations and kernels, with the constants and the rates of the theory."""

import math

import numpy as np
import pytest

from sgdsde import meanfield

EDGE = meanfield.EdgeOfChaos(1.30414584005651, 0.512078504233901, True)


def test_relu_correlations_approach_one_like_the_inverse_square_of_depth():
    sequence = meanfield.depth_sequence("relu", math.sqrt(2), 0.0, depth=200_000, correlation=0.0)
    assert sequence.gap[-1] * 200_000**2 == pytest.approx(4.5 * math.pi**2, rel=5e-4)
    assert meanfield.power_law(sequence.layer, sequence.gap).value == pytest.approx(-2, abs=1e-3)


def test_the_sequence_is_the_kernel_of_a_network():
    sequence = meanfield.depth_sequence("relu", math.sqrt(2), 0.0, depth=10, correlation=0.0)
    assert sequence.off_diagonal[[1, 2, 4, 9]] == pytest.approx(
        [0.31830989, 0.68570864, 1.43039050, 3.15594745], abs=5e-9
    )
    assert sequence.diagonal == pytest.approx(np.arange(1, 11), abs=1e-12)


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_the_next_term_of_relu_is_three_eighths_log_depth(correlation):
    sequence = meanfield.depth_sequence("relu", math.sqrt(2), 0.0, depth=100_000, correlation=correlation)
    slope = meanfield.log_slope(sequence, 1 / 4)
    assert slope.value == pytest.approx(3 / 8, abs=1e-3)
    assert slope.low < 3 / 8 < slope.high
    # A rate 1/L, as printed, would leave no slope at all.
    assert slope.low > 0.3


def test_smooth_activations_tend_to_one_third():
    sequence = meanfield.depth_sequence("tanh", EDGE.sigma_w, 0.2, depth=5_000, correlation=0.3, q=EDGE.q)
    curvature = meanfield.second_derivative_at_one("tanh", EDGE.sigma_w, EDGE.q)
    assert 2 / curvature == pytest.approx(7.08374, abs=5e-6)
    assert sequence.gap[-1] * 5_000 == pytest.approx(2 / curvature, rel=0.01)
    assert sequence.ratio[-1] == pytest.approx(1 / 3, abs=0.002)


def test_the_ordered_kernel_becomes_constant():
    sequence = meanfield.depth_sequence("relu", 1.0, 1.0, depth=100, correlation=0.3)
    q = meanfield.limit_variance("relu", 1.0, 1.0)
    assert q * sequence.diagonal[-1] == pytest.approx(4, abs=1e-9)
    assert q * sequence.off_diagonal[-1] == pytest.approx(4, abs=1e-9)


def test_the_chaotic_kernel_loses_its_off_diagonal():
    sequence = meanfield.depth_sequence("tanh", 2.5, 0.2, depth=60, correlation=0.3)
    assert sequence.ratio[-1] < 1e-6
    growth = sequence.diagonal[-1] / sequence.diagonal[-2]
    assert growth == pytest.approx(meanfield.limit_chi("tanh", 2.5, 0.2), rel=1e-6)


@pytest.mark.parametrize(("scaling", "value"), [("none", 0.25059), ("stable", 0.32709)])
def test_residual_networks(scaling, value):
    depth = 10_000
    sequence = meanfield.depth_sequence("relu", math.sqrt(2), 0.0, depth=depth, correlation=0.3, scaling=scaling)
    assert sequence.ratio[-1] == pytest.approx(value, abs=1e-5)
