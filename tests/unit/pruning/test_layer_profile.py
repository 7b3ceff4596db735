"""The predicted share of each layer is the measured one, on and off the edge of chaos."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import sgdsde
from sgdsde import networks, pruning
from sgdsde.pruning.layer_profile import _product_of_two
from tests.pruning_problems import dense

pytestmark = pytest.mark.filterwarnings("ignore::sgdsde.pruning.PruningWarning")
PHASES = {
    "tanh ordered": ("tanh", 1.0, 1.0, 4.84e-8),
    "tanh edge": ("tanh", 1.304146, 0.2, 1.56),
    "tanh chaotic": ("tanh", 2.5, 0.2, 8.8e3),
    "relu ordered with bias": ("relu", 1.0, 1.0, 1.91e-6),
    "relu chaotic with bias": ("relu", 2.0, 1.0, 0.67),
    "relu edge": ("relu", 2**0.5, 0.0, 1.0),
    "relu chaotic": ("relu", 2.0, 0.0, 1.0),
}


def network(activation: str, sigma_w: float, sigma_b: float, *, depth: int = 19, width: int = 100, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    words = {"depth": depth, "activation": activation, "sigma_w": sigma_w, "sigma_b": sigma_b}
    return networks.MLP(width, width, width, dtype=torch.float64, generator=generator, **words)


def at_random_gradient(model: nn.Module, width: int, seed: int) -> sgdsde.Problem:
    """One example whose gradient at the outputs is random: targets so far away that outputs do not matter."""
    generator = torch.Generator().manual_seed(1000 + seed)
    x = torch.randn(1, width, dtype=torch.float64, generator=generator)
    y = 1e9 * torch.randn(1, width, dtype=torch.float64, generator=generator)
    return sgdsde.Problem(model, x, y, loss=nn.MSELoss())


@pytest.mark.parametrize("phase", PHASES)
def test_first_to_last_moment(phase: str) -> None:
    activation, sigma_w, sigma_b, ratio = PHASES[phase]
    moments = pruning.score_moments(network(activation, sigma_w, sigma_b))
    assert len(moments) == 20
    assert moments[0].moment == pytest.approx(ratio, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_kept_shares_of_twenty_layers(phase: str) -> None:
    """Width 100, 90 %, mean of 20 seeds: no layer off by more than .05, nor the first moment by a factor of three."""
    activation, sigma_w, sigma_b, ratio = PHASES[phase]
    shares, moments = [], []
    for seed in range(20):
        model = network(activation, sigma_w, sigma_b, seed=seed)
        scores = pruning.SNIP().scores(at_random_gradient(model, 100, seed))
        moments.append([float(value.square().mean()) for value in scores.values()])
        masks = pruning.prune(at_random_gradient(model, 100, seed), pruning.SNIP(), 0.9)
        shares.append(list(masks.layer_densities.values()))
    predicted = list(pruning.layer_densities(model, pruning.SNIP(), 0.9).values())
    measured = np.mean(shares, axis=0)
    assert np.abs(measured - predicted).max() < 0.05
    first_to_last = np.mean(moments, axis=0)[0] / np.mean(moments, axis=0)[-1]
    assert ratio / 3 < first_to_last < 3 * ratio


def test_kept_shares_of_a_wide_network() -> None:
    """Eight layers of 300 ordered tanh neurons: within .02 of one draw (the control, equal shares, is not)."""
    model = network("tanh", 1.0, 1.0, depth=7, width=300)
    masks = pruning.prune(at_random_gradient(model, 300, 0), pruning.SNIP(), 0.9)
    predicted = pruning.layer_densities(model, pruning.SNIP(), 0.9)
    errors = [abs(share - predicted[name]) for name, share in masks.layer_densities.items()]
    assert max(errors) < 0.02
    assert max(abs(share - 0.1) for share in masks.layer_densities.values()) > 0.2


def test_predicted_shares_add_up() -> None:
    for activation, sigma_w, sigma_b, _ in PHASES.values():
        model = network(activation, sigma_w, sigma_b)
        for sparsity in (0.8, 0.9, 0.999):
            shares = pruning.layer_densities(model, pruning.SNIP(), sparsity)
            assert np.mean(list(shares.values())) == pytest.approx(1 - sparsity, rel=1e-6)


def test_without_biases_the_mask_of_a_relu_network_ignores_sigma_w() -> None:
    """Against what is often said: SNIP is well conditioned in every phase of bias-free ReLU. Tanh is the control."""
    for activation, same in (("relu", True), ("tanh", False)):
        masks = []
        for sigma_w in (1.0, 2**0.5, 2.0):
            model = network(activation, sigma_w, 0.0, width=40)
            masks.append(pruning.prune(at_random_gradient(model, 40, 0), pruning.SNIP(), 0.9))
        assert (masks[0] == masks[1] == masks[2]) is same


def test_magnitude_empties_the_widest_fan_in_first() -> None:
    """64-400-200-100-50-10 at 90 %: .3375 .0165 .0900 .2306 .3966 predicted; the last layer has 500 weights."""
    model = dense((64, 400, 200, 100, 50, 10), 0)
    predicted = pruning.layer_densities(model, pruning.Magnitude(), 0.9)
    assert list(predicted.values()) == pytest.approx([0.3375, 0.0165, 0.0900, 0.2306, 0.3966], abs=0.02)
    masks = pruning.prune(model, pruning.Magnitude(), 0.9)
    assert list(masks.layer_densities.values()) == pytest.approx([0.3388, 0.0162, 0.0887, 0.2300, 0.4300], abs=5e-5)
    for name, share in masks.layer_densities.items():
        error = math.sqrt(share * (1 - share) / masks[name].numel())
        assert abs(share - predicted[name]) < 4 * error + 0.002
    wide = networks.CNN(1, 8, 40, 10, depth=2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shares = pruning.layer_densities(wide, pruning.Magnitude(), 0.9)
    masks = pruning.prune(wide, pruning.Magnitude(), 0.9)
    for name, share in shares.items():  # four standard errors of a share of so many weights: 2e-4 for all three layers
        error = math.sqrt(share * (1 - share) / masks[name].numel())
        assert abs(masks.layer_densities[name] - share) < 4 * error + 0.002


def test_the_stable_residual_network_treats_all_depths_alike() -> None:
    """L N m_l: the same for all blocks and depths with L^-1/2, and not without."""
    totals, ratios = [], {"stable": [], "none": []}
    for depth in (10, 30, 60):
        for scaling, found in ratios.items():
            words = {"depth": depth, "scaling": scaling, "activation": "tanh", "sigma_w": 1.0, "sigma_b": 1.0}
            blocks = [m.moment for m in pruning.score_moments(networks.ResNet(60, 60, 60, **words))[1:-1]]
            found.append(max(blocks) / min(blocks))
            if scaling == "stable":
                totals.append(depth * float(np.mean(blocks)))
    assert max(totals) < 1.1 * min(totals)
    assert max(ratios["stable"]) < 1.3
    # Measured at width 60: 2.6, 10, 138; at width 200 the last is 72.0.
    assert ratios["none"] == pytest.approx([2.48, 13.2, 72.1], rel=0.01)


@pytest.mark.parametrize("scaling", ["stable", "none"])
def test_moments_of_a_residual_network_are_measured(scaling: str) -> None:
    """Mean of 12 draws at width 100, depth 10: every block within 35 % (five standard errors of their spread)."""
    measured = []
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        words = {"depth": 10, "scaling": scaling, "activation": "tanh", "sigma_w": 1.0, "sigma_b": 1.0}
        model = networks.ResNet(100, 100, 100, dtype=torch.float64, generator=generator, **words)
        scores = pruning.SNIP().scores(at_random_gradient(model, 100, seed))
        measured.append([float(value.square().mean()) for value in scores.values()])
    means = np.mean(measured, axis=0)
    predicted = np.array([m.moment for m in pruning.score_moments(model)])
    assert np.abs(np.log(means / means[-1] / predicted)).max() < math.log(1.35)


def test_the_law_of_a_product_of_two_normals() -> None:
    rng = np.random.default_rng(0)
    draws = np.abs(rng.standard_normal(400_000) * rng.standard_normal(400_000))
    for u in (0.01, 0.3, 1.0, 4.0):
        expected = float(_product_of_two(np.array([u]))[0])
        assert abs((draws > u).mean() - expected) < 4 * math.sqrt(expected * (1 - expected) / 400_000)


def test_what_has_no_law_is_refused() -> None:
    with pytest.raises(TypeError, match=r"SNIP\(\), Magnitude\(\) or Random\(\), got GraSP"):
        pruning.layer_densities(networks.MLP(4, 4, 4), pruning.GraSP(), 0.5)
    with pytest.raises(ValueError, match=r"sparsity must be at least 0.7\d+, got 0.5"):
        pruning.layer_densities(network("relu", 1.0, 0.0), pruning.SNIP(), 0.5)
    with pytest.raises(TypeError, match=r"an MLP or a ResNet of sgdsde.networks for SNIP, got CNN"):
        pruning.layer_densities(networks.CNN(1, 4, 4, 4), pruning.SNIP(), 0.5)
