"""neural-tangents' empirical kernel by structured derivatives, compiled; its mean over outputs becomes a sum."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import neural_tangents as nt
import numpy as np

from benchmarks.ntk.cases import Case
from benchmarks.ntk.contestants import Prepared, matrix

COMPILES = True


def prepare(case: Case) -> Prepared:
    params = {name: jnp.asarray(_layout(value)) for name, value in case.weights().items()}
    x = jnp.asarray(case.inputs())
    full = case.outputs == "full"
    ntk = nt.empirical_ntk_fn(
        lambda values, inputs: _apply(case, values, inputs),
        trace_axes=() if full else (-1,),
        vmap_axes=0,
        implementation=nt.NtkImplementation.STRUCTURED_DERIVATIVES,
    )
    compiled = jax.jit(lambda inputs, values: ntk(inputs, None, values))

    def call() -> Any:
        return compiled(x, params).block_until_ready()

    def convert(result: Any) -> np.ndarray:
        array = np.asarray(result)
        return matrix(array.transpose(0, 2, 1, 3) if full else array * case.n_outputs)

    return call, convert


def _layout(value: np.ndarray) -> np.ndarray:
    """Linear weights as [in, out]: a transposition inside the function hides the layer's structure from the rules."""
    return np.ascontiguousarray(value.T) if value.ndim == 2 else value


def _apply(case: Case, params: dict[str, Any], x: Any) -> Any:
    for layer in case.layers:
        if layer.kind == "relu":
            x = jnp.maximum(x, 0)
        elif layer.kind == "pool":
            x = x.mean((2, 3))
        elif layer.kind == "linear":
            x = x @ params[layer.weight] + params[layer.bias]
        else:
            x = jax.lax.conv_general_dilated(x, params[layer.weight], (1, 1), "SAME")
            x = x + params[layer.bias].reshape(1, -1, 1, 1)
    return x
