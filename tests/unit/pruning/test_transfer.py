"""The student's kernel is that of its kept weights, and both distances fall."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde import pruning
from tests.pruning_problems import digits_classes


def glorot(sizes: tuple[int, ...], seed: int) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layer = nn.Linear(before, after)
        with torch.no_grad():
            layer.weight.normal_(0, math.sqrt(2 / (before + after)), generator=generator)
            layer.bias.normal_(0, 0.01, generator=generator)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_distances_are_those_of_outputs_and_kernels() -> None:
    problem = digits_classes(glorot((64, 20, 10), 0).double(), 64, 16)
    pruned, history = pruning.transfer(problem, 0.2, n_steps=3, redraw=1, batch_size=8)
    x = problem.x_test
    assert x is not None
    difference = pruned(x).detach() - problem.model(x).detach()
    assert float(history.output_distance[-1]) == pytest.approx(float(difference.square().mean()), rel=1e-10)
    student = sgdsde.empirical_ntk(pruned, x[:8], x[8:])
    teacher = sgdsde.empirical_ntk(problem.model, x[:8], x[8:])
    assert float(history.kernel_distance[-1]) == pytest.approx(float((student - teacher).square().mean()), rel=1e-10)
    assert [int(mask.sum()) for mask in history.masks.values()] == [round(0.2 * 1280), round(0.2 * 200)]
    assert pruning.Masks.of(pruned) == history.masks
    assert pruned.network[0].weight.requires_grad


def test_all_columns_counts_removed_weights_too() -> None:
    """At density .1 the trace over kept weights is about a tenth of that over all, layer by layer by magnitude."""
    problem = digits_classes(glorot((64, 60, 40, 10), 0).double(), 64, 16)
    distances = {}
    for all_columns in (False, True):
        words = {"n_steps": 1, "lr": 1e-12, "batch_size": 8, "all_columns": all_columns}
        pruned, history = pruning.transfer(problem, 0.1, **words)
        distances[all_columns] = float(history.kernel_distance[0])
    assert problem.x_test is not None
    kept = sgdsde.empirical_ntk(pruned, problem.x_test, where=lambda name: "weight" in name).trace()
    everything = sgdsde.empirical_ntk(pruned.network, problem.x_test, where=lambda name: "weight" in name).trace()
    assert 0.05 < float(kept / everything) < 0.2
    assert distances[True] != pytest.approx(distances[False], rel=0.01)


def test_density_one_is_the_teacher() -> None:
    problem = digits_classes(glorot((64, 20, 10), 0), 32, 8)
    _, history = pruning.transfer(problem, 1.0, n_steps=1, l2=0.0, batch_size=8)
    assert float(history.output_distance[0]) == 0
    assert float(history.kernel_distance[0]) == 0


def test_gamma_none_starts_the_kernel_term_at_five_times_the_other() -> None:
    problem = digits_classes(glorot((64, 20, 10), 0), 32, 8)
    _, history = pruning.transfer(problem, 0.3, n_steps=1, batch_size=8, gamma=None)
    assert history.gamma * float(history.kernel_distance[0]) == pytest.approx(5 * float(history.output_distance[0]))


def test_bad_arguments_are_named() -> None:
    problem = digits_classes(glorot((64, 20, 10), 0), 32, 8)
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\], got 0"):
        pruning.transfer(problem, 0.0)
    with pytest.raises(ValueError, match="pass the dense Problem"):
        pruning.transfer(pruning.prune(problem, pruning.Magnitude(), 0.3).apply(problem), 0.1)


@pytest.mark.slow
def test_both_distances_fall() -> None:
    """64-100-10 at 5 %, 1500 iterations: the output term to about a third, the kernel term to less than half."""
    problem = digits_classes(glorot((64, 100, 10), 0), 1200, 256)
    words = {"n_steps": 1500, "lr": 2e-3, "gamma": 0.1, "batch_size": 24}
    _, history = pruning.transfer(problem, 0.05, **words)
    assert float(history.output_distance[-1] / history.output_distance[0]) < 0.4
    assert float(history.kernel_distance[-1] / history.kernel_distance[0]) < 0.5
