"""Time of the analytic kernel of 2000 x 2000 inputs, ReLU, depth 10, against the same recursion in JAX.

    python benchmarks/bench_analytic_kernel.py [--rounds 5] [--threads 2] [--json FILE]

JAX runs in an environment of its own, made on first use in a temporary folder (or named by --jax-python), in float64,
compiled, with the compilation left out of the times. Both processes take turns, so that load hits both alike;
the medians of their times are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

N, FEATURES, DEPTH = 2000, 100, 10

JAX_PROGRAM = """
import sys, time
import jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
import numpy as np

@jax.jit
def kernels(x1, x2):
    q1, q2 = 2 * (x1**2).mean(1), 2 * (x2**2).mean(1)
    scale = jnp.sqrt(q1[:, None] * q2)
    sigma = 2 * x1 @ x2.T / x1.shape[1]
    ntk = sigma
    for _ in range(DEPTH - 1):
        c = jnp.clip(sigma / scale, -1, 1)
        angle = jnp.arcsin(c)
        slopes = 0.5 + angle / jnp.pi
        sigma = scale * ((jnp.sqrt(1 - c * c) + c * angle) / jnp.pi + c / 2)
        ntk = ntk * slopes + sigma
    return ntk

rng = np.random.default_rng(0)
x = rng.normal(size=(2, N, FEATURES))
kernels(x[0], x[1]).block_until_ready()
for line in sys.stdin:
    start = time.perf_counter()
    result = kernels(x[0], x[1]).block_until_ready()
    print(time.perf_counter() - start, float(result.sum()), flush=True)
"""


def jax_python() -> Path:
    """The Python of an environment with JAX, made if it is not there."""
    folder = Path(tempfile.gettempdir()) / "sgdsde-benchmark-jax"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "jax[cpu]"], check=True)
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--jax-python", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    import numpy as np
    import torch

    from sgdsde import meanfield, networks

    torch.set_num_threads(options.threads)
    flags = f"--xla_cpu_multi_thread_eigen={'true' if options.threads > 1 else 'false'}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "OMP_NUM_THREADS": str(options.threads)}
    program = JAX_PROGRAM.replace("DEPTH", str(DEPTH)).replace("N, FEATURES", f"{N}, {FEATURES}")
    command = ["taskset", "-c", ",".join(map(str, range(options.threads)))] if sys.platform == "linux" else []
    command += [str(options.jax_python or jax_python()), "-c", program]
    peer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert peer.stdin
    assert peer.stdout
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, N, FEATURES)))
    # JAX's program has DEPTH affine maps, the read-out included.
    network = networks.MLP(FEATURES, 1, 1, depth=DEPTH - 1)
    ours, theirs = [], []
    for _ in range(options.rounds):
        start = time.perf_counter()
        kernel = meanfield.analytic_ntk(x[0], x[1], network)
        ours.append(time.perf_counter() - start)
        peer.stdin.write("\n")
        peer.stdin.flush()
        seconds, total = map(float, peer.stdout.readline().split())
        theirs.append(seconds)
        assert abs(float(kernel.sum()) / total - 1) < 1e-10, "the two programs must compute the same kernel"
    peer.stdin.close()
    peer.wait()
    mine, other = statistics.median(ours), statistics.median(theirs)
    result = {"sgdsde_s": mine, "jax_s": other, "ratio": mine / other, "threads": options.threads, "ours": ours}
    result |= {"theirs": theirs, "torch": torch.__version__}
    print(f"sgdsde {mine:.3f} s, JAX {other:.3f} s, ratio {mine / other:.2f} ({options.threads} threads)")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
