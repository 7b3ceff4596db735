"""Maps, fixed points, depth scales, phases and the edge of chaos: published and checked numbers, laws, messages."""

import math
import warnings

import pytest
import torch
from torch.nn import functional

from sgdsde import meanfield
from sgdsde.meanfield import UnstableEdgeWarning

EDGE = [
    ("tanh", 1.304146, 0.512079),
    ("elu", 1.229251, 1.106931),
    ("erf", 1.152795, 0.465763),
]


@pytest.mark.parametrize(("name", "sigma_w", "q"), EDGE)
def test_edge_of_chaos_at_bias_one_fifth(name, sigma_w, q):
    found = meanfield.edge_of_chaos(name, 0.2)
    assert found == pytest.approx((sigma_w, q, True), abs=6e-7)


@pytest.mark.parametrize("name", ["tanh", "elu", "sin", functional.hardtanh, functional.softsign, functional.selu])
@pytest.mark.parametrize("sigma_b", [1e-3, 0.2, 2.0])
def test_both_conditions_hold_at_any_edge_point(name, sigma_b):
    activation = meanfield.Activation(name)
    found = meanfield.edge_of_chaos(activation, sigma_b)
    assert float(meanfield.chi(activation, found.sigma_w, sigma_b, found.q)) == pytest.approx(1, abs=1e-9)
    assert float(meanfield.variance_map(activation, found.sigma_w, sigma_b, found.q)) == pytest.approx(
        found.q, rel=1e-9
    )


def test_the_iteration_of_the_paper_reaches_the_same_point():
    activation, q = meanfield.Activation("tanh"), torch.tensor(0.5, dtype=torch.float64)
    for _ in range(60):
        square, slope, _ = meanfield.variance.second_moments(activation, q)
        q = 0.5**2 + square / slope
    assert meanfield.edge_of_chaos("tanh", 0.5).q == pytest.approx(float(q), rel=1e-9)


def test_piecewise_linear_activations_have_one_point():
    assert meanfield.edge_of_chaos("relu", 0.0).sigma_w == pytest.approx(math.sqrt(2), abs=1e-12)
    slope = torch.nn.LeakyReLU(0.3)
    assert meanfield.edge_of_chaos(slope, 0.0).sigma_w == pytest.approx(math.sqrt(2 / 1.09), abs=1e-12)
    with pytest.raises(ValueError, match=r"sigma_b of relu must be 0, got sigma_b=0.1; its only"):
        meanfield.edge_of_chaos("relu", 0.1)


def test_sigmoid_has_an_edge_and_softplus_has_none():
    assert meanfield.edge_of_chaos("sigmoid", 0.2).sigma_w == pytest.approx(10.154030, abs=1e-5)
    with pytest.raises(
        ValueError, match=r"softplus has no edge of chaos at sigma_b=0.2.*no edge of chaos at any sigma_b"
    ):
        meanfield.edge_of_chaos("softplus", 0.2)


@pytest.mark.parametrize(("name", "unstable", "stable"), [("silu", 0.744, 0.746), ("gelu", 0.415, 0.417)])
def test_unstable_points_are_announced(name, unstable, stable):
    with pytest.warns(UnstableEdgeWarning, match="unstable fixed point of the variance map"):
        assert not meanfield.edge_of_chaos(name, unstable).is_stable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert meanfield.edge_of_chaos(name, stable).is_stable


def test_silu_falls_below_its_unstable_point_and_diverges_above():
    with pytest.warns(UnstableEdgeWarning):
        edge = meanfield.edge_of_chaos("silu", 0.2)
    assert edge[:2] == pytest.approx((1.679532, 0.689453), abs=6e-7)
    assert float(meanfield.variance_slope("silu", edge.sigma_w, 0.2, edge.q)) == pytest.approx(1.0987, abs=5e-5)
    assert meanfield.limit_variance("silu", edge.sigma_w, 0.2, start=0.6) == pytest.approx(0.194, abs=5e-4)
    assert meanfield.limit_variance("silu", edge.sigma_w, 0.2, start=0.8) == math.inf


def test_the_curve_agrees_with_its_points():
    curve = meanfield.edge_of_chaos_curve("tanh", [0.1, 0.512078504233901])
    assert float(curve.sigma_b[1]) == pytest.approx(0.2, abs=1e-9)
    assert meanfield.edge_of_chaos("tanh", float(curve.sigma_b[0])).q == pytest.approx(0.1, rel=1e-8)
    assert bool(meanfield.edge_of_chaos_curve("softplus", [0.1, 1.0, 10.0]).sigma_b.isnan().all())


def test_depth_scales_in_the_chaotic_phase_are_taken_below_one():
    scales = meanfield.depth_scales("tanh", 2.5, 0.2)
    assert scales.correlation == pytest.approx(5.370, abs=5e-4)
    assert scales.limit_correlation == pytest.approx(0.0584, abs=5e-5)
    slope = meanfield.correlation_slope("tanh", 2.5, 0.2, scales.limit_correlation)
    assert float(slope) == pytest.approx(0.8301, abs=5e-5)


def test_depth_scales_are_the_rates_of_iteration():
    c, q = torch.tensor(0.5, dtype=torch.float64), meanfield.limit_variance("tanh", 1.0, 1.0)
    gaps = [1 - c]
    for _ in range(12):
        gaps.append(meanfield.correlation_gap_map("tanh", 1.0, 1.0, gaps[-1], q=q))
    rate = math.log(float(gaps[-2] / gaps[-1]))
    assert meanfield.depth_scales("tanh", 1.0, 1.0).correlation == pytest.approx(1 / rate, rel=1e-4)
    assert meanfield.depth_scales("tanh", *meanfield.edge_of_chaos("tanh", 0.2)[:1], 0.2).correlation == math.inf


def test_phases():
    edge = meanfield.edge_of_chaos("elu", 0.3)
    assert meanfield.phase("elu", edge.sigma_w, 0.3) == "edge"
    assert meanfield.phase("elu", edge.sigma_w - 0.01, 0.3) == "ordered"
    assert meanfield.phase("elu", edge.sigma_w + 0.01, 0.3) == "chaotic"
    assert [meanfield.phase("relu", w, 0.1) for w in (1.0, 2.0)] == ["ordered", "chaotic"]


def test_the_phase_diagram_is_made_of_phases():
    sigma_w, sigma_b, tanh = torch.tensor([0.8, 2.5]), torch.tensor([0.05, 0.7]), meanfield.Activation("tanh")
    chi, q = meanfield.phase_diagram(tanh, sigma_w, sigma_b)
    for i, bias in enumerate(sigma_b.double().tolist()):
        for j, weight in enumerate(sigma_w.double().tolist()):
            assert float(q[i, j]) == pytest.approx(meanfield.limit_variance(tanh, weight, bias), rel=1e-9)
            assert float(chi[i, j]) == pytest.approx(meanfield.limit_chi(tanh, weight, bias), rel=1e-9)


def test_correlation_map_of_relu_is_the_published_one():
    c = torch.linspace(-1, 1, 9, dtype=torch.float64)
    known = (c * c.arcsin() + (1 - c * c).sqrt()) / math.pi + c / 2
    torch.testing.assert_close(
        meanfield.correlation_map("relu", math.sqrt(2), 0.0, c, q=1.0), known, rtol=0, atol=1e-14
    )
    callable_relu = meanfield.correlation_map(lambda x: x.clamp_min(0) + 0 * x.sin(), math.sqrt(2), 0.0, c, q=1.0)
    torch.testing.assert_close(callable_relu, known, rtol=0, atol=1e-12)


def test_maps_keep_shapes_and_broadcast():
    q = torch.rand(2, 3, dtype=torch.float64) + 0.1
    assert meanfield.variance_map("tanh", 1.2, 0.1, q).shape == (2, 3)
    assert meanfield.chi("relu", 1.2, 0.1, 0.5).shape == ()
    assert meanfield.correlation_map("tanh", 1.2, 0.1, q.clamp(0, 1), q=0.4).shape == (2, 3)


def test_rounding_of_correlations_is_clamped_and_errors_are_refused():
    just_above = torch.tensor(1 + 1e-7, dtype=torch.float64)
    assert float(meanfield.correlation_map("relu", 1.0, 0.0, just_above, q=1.0)) == 1
    with pytest.raises(ValueError, match=r"c must be a correlation in \[-1, 1\], got 1.01; divide covariances"):
        meanfield.correlation_map("relu", 1.0, 0.0, 1.01, q=1.0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: meanfield.variance_map("relu", -1.0, 0.0, 1.0), "sigma_w must be positive, got -1.0"),
        (lambda: meanfield.variance_map("relu", 1.0, -0.1, 1.0), "sigma_b must be zero or positive, got -0.1"),
        (lambda: meanfield.variance_map("relu", 1.0, 0.1, -1.0), "q must be a finite variance"),
        (lambda: meanfield.edge_of_chaos("tanh", -0.1), "sigma_b must be zero or positive, got -0.1"),
        (lambda: meanfield.correlation_map("relu", 2.0, 0.1, 0.5), "the limit of the variance must be finite"),
        (
            lambda: meanfield.depth_sequence("relu", 1.0, 0.1, depth=0, correlation=0.5),
            "depth must be at least 1, got 0",
        ),
    ],
)
def test_bad_numbers_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
