"""When a layer is emptied: the critical sparsity of given scores, and the compression that no criterion exceeds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from sgdsde._checks import complaint
from sgdsde.problem import Problem
from sgdsde.pruning.weights import Subject, Where


def critical_sparsity(scores: Mapping[str, Tensor]) -> float:
    """The smallest sparsity at which one-shot global pruning by these scores empties a layer.

        s_cr = 1 - (r - 1) / n,    r = the rank of the best weight of the layer whose best weight ranks last

    so that r weights can be kept without an empty layer and r - 1 cannot; rho_cr = n / r is the critical compression.

    Args:
        scores: by parameter name, as ``Criterion.scores`` returns them.
    Exactness: exact, ties by position as in ``prune``. Iterative pruning has no such formula: run its rounds.
    Source: Hayou et al., arXiv:2002.08797; the rank formula is derived in docs/pruning.md.
    """
    layers = _checked(scores)
    flat = np.concatenate(layers)
    largest = [float(layer.max()) for layer in layers]
    threshold = min(largest)
    rank = int((flat > threshold).sum())
    ends = np.cumsum([len(layer) for layer in layers])
    first = [
        int(end - len(layer) + layer.argmax()) for end, layer, top in zip(ends, layers, largest) if top == threshold
    ]
    rank += int((flat[: max(first) + 1] == threshold).sum())
    return 1 - (rank - 1) / len(flat)


def maximal_critical_compression(problem_or_model: Problem | nn.Module, *, where: Where = None) -> float:
    """rho_max = n / L: no criterion compresses L layers of n weights further without an empty one.

    Args:
        where: which layers are prunable, by name; default all linear and convolution layers.
    Source: Tanaka et al., arXiv:2006.05467.
    """
    weights = Subject.of(problem_or_model, where).weights
    return sum(weight.numel for weight in weights.values()) / len(weights)


def layer_sums(scores: Mapping[str, Tensor]) -> dict[str, float]:
    """The sum of the scores of each layer, those of removed weights (-inf) left out.

    SynFlow's are all equal to R_p where every path passes every layer, and then the mean score of a layer is R_p / n_l.
    """
    _checked(scores)
    return {name: float(value[torch.isfinite(value)].sum()) for name, value in scores.items()}


def _checked(scores: Mapping[str, Tensor]) -> list[np.ndarray]:
    if not scores:
        raise ValueError(complaint("scores", "those of at least one layer", "none"))
    layers = [value.detach().double().cpu().flatten().numpy() for value in scores.values()]
    for name, layer in zip(scores, layers):
        if np.isnan(layer).any():
            raise ValueError(complaint(f"scores of {name!r}", "numbers", "NaN"))
    return layers
