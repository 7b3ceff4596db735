"""One file per contestant: ``prepare(case)`` returns what is timed, and what brings its result into sample-major order.

Building the model, copying weights and that last reordering are not timed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

NAMES = ("ours", "layer_structure", "neural_tangents", "nngeometry", "torch_func", "backpack")
"""In the order of the table; each is a module of this package."""
TITLES = {
    "ours": "sgdsde",
    "layer_structure": "layer structure, hand-written in torch",
    "neural_tangents": "neural-tangents, structured derivatives",
    "nngeometry": "nngeometry",
    "torch_func": "torch.func vmap(jacrev) and contraction",
    "backpack": "BackPACK, per-example gradients and contraction",
}

Call = Callable[[], Any]
Prepared = tuple[Call, Callable[[Any], np.ndarray]]


def matrix(result: Any) -> np.ndarray:
    """A result that is sample-major already, as [rows, rows]."""
    array = np.asarray(result.detach() if hasattr(result, "detach") else result)
    rows = int(array.size**0.5)
    return array.reshape(rows, rows)
