"""Runs of an MLP without biases in JAX, as a user of JAX writes them: a scan over steps, mapped over runs, compiled.

    python jax_runs.py arrays.npz            # W1 [in, h], W2 [h, 1], x, y, indices [runs, steps, B], lr; needs jax only

Prints one line of JSON: processor seconds of each call after compilation, and the final training losses of all runs.
Weights are stored as [in, out].
"""

from __future__ import annotations

import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

CALLS = 2


def main(path: str) -> None:
    arrays = np.load(path)
    x, y = jnp.asarray(arrays["x"]), jnp.asarray(arrays["y"])
    start = {name: jnp.asarray(arrays[name]) for name in ("W1", "W2")}
    lr, indices = float(arrays["lr"]), jnp.asarray(arrays["indices"])
    scales = [2**0.5 / len(start[name]) ** 0.5 for name in ("W1", "W2")]

    def loss(params: dict, x: jax.Array, y: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(scales[0] * (x @ params["W1"]))
        return jnp.mean((scales[1] * (hidden @ params["W2"]) - y) ** 2)

    def step(params: dict, batch: jax.Array) -> tuple[dict, None]:
        gradient = jax.grad(loss)(params, x[batch], y[batch])
        return {name: value - lr * gradient[name] for name, value in params.items()}, None

    def run(batches: jax.Array) -> jax.Array:
        return loss(jax.lax.scan(step, start, batches)[0], x, y)

    ensemble = jax.jit(lambda indices: jax.lax.map(run, indices))
    losses = ensemble(indices).block_until_ready()
    seconds = []
    for _ in range(CALLS):
        begun = time.process_time()
        ensemble(indices).block_until_ready()
        seconds.append(time.process_time() - begun)
    print(json.dumps({"seconds": seconds, "losses": np.asarray(losses).tolist(), "version": jax.__version__}))


if __name__ == "__main__":
    main(sys.argv[1])
