"""diffrax's Euler on all paths at once, compiled: one product a step, normal numbers without storing a path.

Time is counted in steps, whose sums are exact in float32: no last step is cut short.

    python -m benchmarks.paths.worker diffrax result.json       # an environment with diffrax and numpy is enough
"""

from __future__ import annotations

import math
from collections.abc import Callable

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.paths.setting import BATCH_SIZE, N_PATHS, Setting

jax.config.update("jax_default_prng_impl", "unsafe_rbg")


class Product(diffrax.ControlTerm):
    """Noise as a function of the state and the increment, without a matrix for each path."""

    def prod(self, vf: Callable, control: jax.Array) -> jax.Array:
        return vf(control)


def diffrax_euler(setting: Setting, device: str) -> Callable[[int], np.ndarray]:
    d, lr = setting.d, setting.lr
    kernel, start, rate = (jnp.asarray(value, jnp.float32) for value in (setting.K, setting.e0, setting.h))
    factor, x0 = jnp.asarray(setting.S_modal.T, jnp.float32), jnp.asarray(setting.x0, jnp.float32)
    spread = lr * math.sqrt(1 / BATCH_SIZE / d)
    constant = setting.kind == "constant"

    def gradient(w: jax.Array) -> jax.Array:
        return 2 * (start + w @ kernel)

    def drift(t: float, y: jax.Array, args: None) -> jax.Array:
        return -lr * rate * y if constant else gradient(y) * (-lr / d)

    def noise(t: float, y: jax.Array, args: None) -> Callable:
        if constant:
            return lambda v: v @ factor * math.sqrt(lr)
        return lambda v: -spread * gradient(y) * (v - v.mean(1, keepdims=True))

    @jax.jit
    def end(n_steps: jax.Array, key: jax.Array) -> jax.Array:
        motion = diffrax.UnsafeBrownianPath(jax.ShapeDtypeStruct((N_PATHS, d), jnp.float32), key)
        begin = jnp.tile(x0, (N_PATHS, 1)) if constant else jnp.zeros((N_PATHS, d), jnp.float32)
        solution = diffrax.diffeqsolve(
            diffrax.MultiTerm(diffrax.ODETerm(drift), Product(noise, motion)),
            diffrax.Euler(), 0.0, n_steps, 1.0, begin,
            saveat=diffrax.SaveAt(t1=True), max_steps=None, adjoint=diffrax.ForwardMode(), throw=False,
            stepsize_controller=diffrax.ConstantStepSize(),
        )  # fmt: skip
        return solution.ys[-1] if constant else start + solution.ys[-1] @ kernel

    keys = iter(jax.random.split(jax.random.key(0), 1000))
    return lambda n_steps: np.asarray(end(jnp.float32(n_steps), next(keys)))
