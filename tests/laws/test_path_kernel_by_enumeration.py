"""The tangent kernel factors through paths: every path of small networks is written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import sgdsde
from sgdsde import networks, pruning
from tests.pruning_problems import dense, paths_by_enumeration, weights_of

SIZES = (3, 4, 3, 2)


def path_jacobian(weights: list[Tensor]) -> Tensor:
    """J_theta v, [paths, weights], by the product rule."""
    offsets = [0]
    for w in weights:
        offsets.append(offsets[-1] + w.numel())
    paths = paths_by_enumeration(weights)
    jacobian = torch.zeros(len(paths), offsets[-1], dtype=torch.float64)
    for row, (_, edges) in enumerate(paths):
        for layer, i, j in edges:
            others = [float(weights[k][a, b]) for k, a, b in edges if k != layer]
            jacobian[row, offsets[layer] + i * weights[layer].shape[1] + j] = math.prod(others)
    return jacobian


def output_path_jacobian(model: nn.Sequential, x: Tensor) -> Tensor:
    """J_v f, [n c, paths]: the input at a path's start times whether all of its units are on."""
    weights, h = weights_of(model), x
    on = []
    for w in weights[:-1]:
        y = h @ w.T
        on.append((y > 0).double())
        h = torch.relu(y)
    paths = paths_by_enumeration(weights)
    result = torch.zeros(len(x), len(weights[-1]), len(paths), dtype=torch.float64)
    for row, (_, edges) in enumerate(paths):
        value = x[:, edges[0][2]].clone()
        for layer, i, _ in edges[:-1]:
            value = value * on[layer][:, i]
        result[:, edges[-1][1], row] = value
    return result.flatten(0, 1)


def test_the_kernel_is_the_path_kernel_between_path_features() -> None:
    model = dense(SIZES, 3, sigma_w=1.5)
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    features, paths = output_path_jacobian(model, x), path_jacobian(weights_of(model))
    kernel = sgdsde.empirical_ntk(model, x)
    assert (kernel - features @ (paths @ paths.T) @ features.T).abs().max() < 1e-13 * kernel.abs().max()
    bound = torch.linalg.eigvalsh(features @ features.T).max() * pruning.path_kernel_trace(model)
    assert kernel.trace() <= bound


def test_its_trace_in_one_pass_and_its_rank() -> None:
    model = dense(SIZES, 3, sigma_w=1.5)
    paths = path_jacobian(weights_of(model))
    assert paths.shape == (72, 30)
    assert pruning.path_kernel_trace(model) == pytest.approx(float(paths.square().sum()), rel=1e-13)
    assert pruning.path_kernel_trace(model) == pytest.approx(39.84293259, abs=1e-7)
    assert int(torch.linalg.matrix_rank(paths)) == 30 - 7
    squares = sum(value**2 for value, _ in paths_by_enumeration(weights_of(model)))
    assert pruning.path_norm(model, 2) == pytest.approx(squares, rel=1e-13)


def test_columns_of_removed_weights_do_not_count() -> None:
    model = dense(SIZES, 3, sigma_w=1.5)
    masks = pruning.prune(model, pruning.SynFlow(n_rounds=5), 0.5)
    pruned = masks.apply(model)
    weights = [value.detach() for value in pruned.masked_weights().values()]
    kept = torch.cat([mask.flatten() for mask in masks.values()])
    columns = path_jacobian(weights).square().sum(0)
    assert pruning.path_kernel_trace(pruned) == pytest.approx(float(columns[kept].sum()), rel=1e-13)
    assert float(columns[~kept].sum()) > 0.01 * float(columns[kept].sum())


def test_counting_removed_columns_is_ten_times_off_after_magnitude() -> None:
    """Share of Tr Pi left at 90 %: .025 over kept weights, .245 with the columns of removed ones."""
    model = dense((64, 100, 50, 10), 1)
    pruned = pruning.prune(model, pruning.Magnitude(), 0.9).apply(model)
    sparse = dense((64, 100, 50, 10), 1)
    with torch.no_grad():
        for value, name in zip(sparse.parameters(), pruned.mask_tensors()):
            value.mul_(pruned.mask_tensors()[name])
    full = pruning.path_kernel_trace(model)
    assert pruning.path_kernel_trace(pruned) / full == pytest.approx(0.025, abs=0.001)
    assert pruning.path_kernel_trace(sparse) / full == pytest.approx(0.245, abs=0.001)


def test_expected_trace_of_gaussian_weights() -> None:
    """E Tr Pi = prod N x sum over l of prod over k != l of sigma_w^2 / N_{k-1}, to 3 standard errors of 40 draws."""
    sizes = (64, 100, 50, 10)
    variance = [2 / n for n in sizes[:-1]]
    expected = math.prod(sizes) * sum(math.prod(v for k, v in enumerate(variance) if k != layer) for layer in range(3))
    assert expected == pytest.approx(8560)
    drawn = torch.tensor([pruning.path_kernel_trace(dense(sizes, seed)) for seed in range(40)])
    assert abs(float(drawn.mean()) - expected) < 3 * float(drawn.std()) / math.sqrt(40)


def test_sums_of_the_derivative_of_the_trace() -> None:
    """Layer sums of a dT/da are T - T_l: T has degree one in a layer's a but for its own columns."""
    model = dense((5, 6, 4, 3), 0, sigma_w=1.4)
    squares = [w.square().requires_grad_() for w in weights_of(model)]
    h = torch.ones(5, dtype=torch.float64)
    for a in squares:
        h = a @ h
    own = torch.autograd.grad(h.sum(), squares, create_graph=True)
    trace = sum(g.sum() for g in own)
    slopes = torch.autograd.grad(trace, squares)
    scores = pruning.PathKernelTrace().scores(model)
    for score, g, a, slope in zip(scores.values(), own, squares, slopes):
        assert torch.allclose(score, (g + a * slope).detach(), rtol=1e-12)
        assert float((a * slope).sum().detach()) == pytest.approx(float((trace - g.sum()).detach()), rel=1e-12)


@pytest.mark.slow
def test_no_reading_of_synflow_keeps_most_of_the_trace() -> None:
    """Share of Tr Pi kept at 90 %, 30 rounds: the exact loss .1017, SynFlow .0927, power 2 .0766."""
    model = dense((64, 100, 50, 10), 1)
    full = pruning.path_kernel_trace(model)
    stated = {
        pruning.PathKernelTrace(n_rounds=30): 0.1017,
        pruning.SynFlow(n_rounds=30): 0.0927,
        pruning.SynFlow(n_rounds=30, power=2): 0.0766,
    }
    for criterion, share in stated.items():
        kept = pruning.path_kernel_trace(pruning.prune(model, criterion, 0.9).apply(model))
        assert kept / full == pytest.approx(share, abs=2e-4)


def test_a_layer_called_twice_has_no_path_kernel() -> None:
    shared = nn.Linear(4, 4, bias=False).double()
    model = nn.Sequential(shared, nn.ReLU(), shared)
    with pytest.raises(ValueError, match=r"weight '0.weight' must be met once on every path, got a layer called again"):
        pruning.path_kernel_trace(model)
    residual = networks.ResNet(4, 4, 2, depth=3, dtype=torch.float64)
    assert pruning.path_kernel_trace(residual) > 0
