"""Pruning at initialization: masks, criteria, and what theory says of the network that is left.

    masks = pruning.prune(problem, pruning.SynFlow(), 0.9)
    pruned = masks.apply(problem)                     # a Problem again: linearize, predict, run_ensemble, compare

Sparsity = 1 - density over the prunable weights: those of linear and convolution layers, no biases, no normalizations.
"""

from __future__ import annotations

import importlib
from typing import Any

from sgdsde.pruning.collapse import critical_sparsity, layer_sums, maximal_critical_compression
from sgdsde.pruning.criteria import Criterion, Magnitude, Random
from sgdsde.pruning.data_criteria import SNIP, GraSP
from sgdsde.pruning.flow_criteria import PathKernelTrace, SynFlow
from sgdsde.pruning.layer_profile import LayerMoment, layer_densities, score_moments
from sgdsde.pruning.masks import Masks
from sgdsde.pruning.network import PrunedNetwork
from sgdsde.pruning.paths import path_kernel_trace, path_norm
from sgdsde.pruning.pruner import PruningWarning, prune
from sgdsde.pruning.rescaling import rescale_to_edge_of_chaos
from sgdsde.pruning.rewinding import IterativeMagnitude
from sgdsde.pruning.transfer import TransferHistory, transfer

__all__ = [
    "SNIP",
    "Criterion",
    "GraSP",
    "IterativeMagnitude",
    "LayerMoment",
    "Magnitude",
    "Masks",
    "PathKernelTrace",
    "PrunedNetwork",
    "PruningWarning",
    "Random",
    "RankedNetwork",
    "Ranking",
    "SynFlow",
    "TransferHistory",
    "critical_sparsity",
    "layer_densities",
    "layer_sums",
    "maximal_critical_compression",
    "path_kernel_trace",
    "path_norm",
    "prune",
    "rank",
    "rescale_to_edge_of_chaos",
    "score_moments",
    "transfer",
]


def __getattr__(name: str) -> Any:
    """``rank`` predicts, and prediction is downstream of pruning: it is imported when it is first asked for."""
    if name in ("rank", "Ranking", "RankedNetwork"):
        return getattr(importlib.import_module("sgdsde.ranking"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
