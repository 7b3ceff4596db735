"""Critical sparsity is exact by brute force; SynFlow reaches the largest compression; paths break before layers."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from sgdsde import networks, pruning
from sgdsde.pruning.selection import keep_largest
from tests.pruning_problems import RowByRow, dense, digits_classes

QUIET = pytest.mark.filterwarnings("ignore::sgdsde.pruning.PruningWarning")
SEVEN = (64, *[100] * 6, 10)


@pytest.mark.parametrize("seed", range(6))
def test_critical_sparsity_by_trying_every_count(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(shape, generator=generator).double() for name, shape in (("a", (4, 5)), ("b", (3, 4)))}
    if seed >= 2:  # ties, within a layer and between layers
        scores = {name: (4 * value).round() / 4 for name, value in scores.items()}
    if seed >= 4:
        scores["c"] = torch.zeros(2, 3, dtype=torch.float64)
    everything = {name: torch.ones_like(value, dtype=torch.bool) for name, value in scores.items()}
    n = sum(value.numel() for value in scores.values())
    fits = []
    for count in range(1, n + 1):
        masks = keep_largest(scores, everything, count / n, "global")
        assert sum(int(mask.sum()) for mask in masks.values()) == count
        fits.append(all(bool(mask.any()) for mask in masks.values()))
    smallest = 1 + fits.index(True)
    assert fits == [False] * (smallest - 1) + [True] * (n - smallest + 1)
    assert pruning.critical_sparsity(scores) == pytest.approx(1 - (smallest - 1) / n, abs=1e-15)


def test_largest_compression() -> None:
    model = dense(SEVEN, 0)
    assert pruning.maximal_critical_compression(model) == 57400 / 7


@QUIET
@pytest.mark.parametrize("seed", range(2))
def test_synflow_keeps_one_path_at_the_largest_compression(seed: int) -> None:
    model = dense(SEVEN, seed)
    masks = pruning.prune(model, pruning.SynFlow(), 1 - 7 / 57400)
    assert [int(mask.sum()) for mask in masks.values()] == [1] * 7
    assert masks.n_live == 7
    collapsed = pruning.prune(model, pruning.Magnitude(n_rounds=100), 1 - 14 / 57400)
    assert len(collapsed.empty_layers) >= 2


@pytest.mark.slow
@QUIET
def test_synflow_needs_more_rounds_in_deeper_networks() -> None:
    """21 maps: 100 rounds end without a path for one seed of five, 300 for none."""
    sizes = (64, *[100] * 20, 10)
    n = 64 * 100 + 19 * 100**2 + 1000
    paths = {
        rounds: [
            pruning.prune(dense(sizes, seed, sigma_w=1.0), pruning.SynFlow(n_rounds=rounds), 1 - 21 / n).n_live
            for seed in range(5)
        ]
        for rounds in (100, 300)
    }
    assert sorted(paths[100]) == [0, 21, 21, 21, 21]
    assert paths[300] == [21] * 5


@QUIET
def test_paths_break_before_layers_are_empty() -> None:
    """64-100x6-10 at 99 %, 574 kept, no layer empty: on a complete path 573 under SynFlow and none by magnitude."""
    problem = digits_classes(dense(SEVEN, 0))
    expected = {
        pruning.Random(): (20, 100),
        pruning.Magnitude(): (0, 0),
        pruning.SNIP(): (150, 330),
        pruning.GraSP(): (150, 400),
        pruning.SynFlow(): (573, 573),
    }
    for criterion, (low, high) in expected.items():
        masks = pruning.prune(problem, criterion, 0.99, seed=1)
        assert masks.n_kept == 574
        assert masks.empty_layers == ()
        assert masks.n_live is not None
        assert low <= masks.n_live <= high, criterion


@QUIET
def test_live_weights_by_graph_search() -> None:
    model = dense((5, 6, 6, 3), 0)
    masks = pruning.prune(model, pruning.Random(), 0.7, seed=3)
    matrices = [mask.numpy() for mask in masks.values()]
    reached = [np.ones(5, dtype=bool)]
    for m in matrices:
        reached.append((m & reached[-1]).any(1))
    leads = [np.ones(3, dtype=bool)]
    for m in reversed(matrices):
        leads.append((m & leads[-1][:, None]).any(0))
    leads.reverse()
    live = sum(int((m & reached[k] & leads[k + 1][:, None]).sum()) for k, m in enumerate(matrices))
    assert masks.n_live == live
    assert masks.disconnected_outputs == tuple(np.flatnonzero(~reached[-1]))
    assert 0 < live < masks.n_kept


@QUIET
def test_an_empty_block_of_a_residual_network_is_no_end() -> None:
    model = networks.ResNet(4, 6, 3, depth=3, dtype=torch.float64)
    empty = torch.zeros(6, 6, dtype=torch.bool)
    known = pruning.Masks({"blocks.0.weight": empty}).with_paths_of(model)
    assert known.empty_layers == ("blocks.0.weight",)
    assert known.disconnected_outputs == ()
    ends = pruning.Masks({"first.weight": torch.zeros(6, 4, dtype=torch.bool)}).with_paths_of(model)
    assert ends.disconnected_outputs == (0, 1, 2)


def test_a_larger_path_hides_no_smaller_one_behind_max_pooling() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 1)).double()
    masks = pruning.prune(model, pruning.SynFlow(example=torch.ones(1, 1, 4, 4)), 0.0)
    assert masks.n_live == masks.n_weights


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "sigma_w", "sigma_b", "scale", "stated"),
    [
        ("tanh", 1.0, 1.0, 1.46, (0.939, 0.852, 0.513, 0.271)),
        ("tanh", 1.304146, 0.2, 0.512, (0.999, 0.998, 0.995, 0.990)),
        ("tanh", 2.5, 0.2, 5.0, (0.997, 0.972, 0.760, 0.419)),
        ("relu", 1.0, 1.0, 1.0, (0.967, 0.909, 0.850, 0.800)),
        ("relu", 2**0.5, 0.0, 1.0, (0.997, 0.992, 0.992, 0.992)),
    ],
    ids=["tanh ordered", "tanh edge", "tanh chaotic", "relu ordered with bias", "relu edge"],
)
def test_critical_sparsity_of_snip_by_depth_and_phase(
    activation: str, sigma_w: float, sigma_b: float, scale: float, stated: tuple[float, ...]
) -> None:
    """Digits, width 60, depths 5, 10, 20, 40, mean of three seeds: off the edge it falls with depth, on it it stays."""
    for depth, expected in zip((5, 10, 20, 40), stated):
        found = []
        for seed in range(3):
            words = {"activation": activation, "sigma_w": sigma_w, "sigma_b": sigma_b}
            problem = digits_classes(dense((64, *[60] * depth, 10), seed, kind=RowByRow, **words), scale=scale**0.5)
            found.append(pruning.critical_sparsity(pruning.SNIP().scores(problem)))
        spread = 0.005 if expected > 0.98 else 0.08
        assert float(np.mean(found)) == pytest.approx(expected, abs=spread)


def test_shares_of_exact_zeros_fall_with_examples() -> None:
    """Ten ReLU layers: of SNIP's scores between them .73 are zero with one example, .29 with 16, .14 with 256."""
    problem = digits_classes(dense((64, *[100] * 10, 10), 0))
    shares = []
    for n in (1, 16, 256):
        inner = list(pruning.SNIP().scores(problem, n_examples=n).values())[1:-1]
        shares.append(sum(int((s == 0).sum()) for s in inner) / sum(s.numel() for s in inner))
    assert shares == pytest.approx([0.73, 0.29, 0.14], abs=0.06)


def test_scores_must_be_numbers() -> None:
    with pytest.raises(ValueError, match="scores of 'a' must be numbers, got NaN"):
        pruning.critical_sparsity({"a": torch.tensor([1.0, torch.nan])})
    with warnings.catch_warnings(), pytest.raises(ValueError, match="at least one layer"):
        pruning.critical_sparsity({})
