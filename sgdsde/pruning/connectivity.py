"""Which kept weights lie on a path from an input to an output, and which outputs no path reaches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgdsde._types import Params
from sgdsde.pruning.linear_pass import LinearPass, check_linear, linear_outputs, ones_input
from sgdsde.pruning.streamed_weights import LiveWeights
from sgdsde.pruning.weights import Subject


@dataclass(frozen=True)
class Connectivity:
    """Kept weights on a path of kept weights from an input to an output, and the outputs that no such path reaches."""

    n_live: int
    disconnected_outputs: tuple[int, ...]


class _Reached(torch.autograd.Function):
    """Forward and backward, 1 where a path arrives: no count of paths can overflow or underflow."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return (y > 0).to(y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return (gradient > 0).to(gradient)


def connectivity(subject: Subject, masks: Params, example: Tensor | None = None) -> Connectivity | None:
    """Exact, by one forward and one backward pass of zeros and ones; None for a network without a linear pass."""
    try:
        live, outputs = live_weights(subject, masks, example)
    except ValueError:
        return None
    reached = (outputs > 0).any(0)
    n_live = sum(int(mask.sum()) for mask in live.values())
    return Connectivity(n_live, tuple((~reached).nonzero().flatten().tolist()))


def live_weights(subject: Subject, masks: Params, example: Tensor | None = None) -> tuple[Params, Tensor]:
    """Bool by name: kept and on a complete path; and outputs [1, c] that are positive where a path arrives.

    A path goes through activations, poolings and skip connections; a bias starts none.

    Raises:
        ValueError: a layer without a linear pass, or an input shape that is not known.
    """
    x = ones_input(subject, example)
    check_linear(subject, x)
    weights, mode = LiveWeights(masks), LinearPass(1, _Reached.apply, sums_pools=True)
    with torch.enable_grad(), weights.recomputed():
        outputs = linear_outputs(subject, weights, x, mode)
    if outputs.requires_grad:
        outputs.sum().backward()
    return weights.live, outputs.detach().flatten(1)
