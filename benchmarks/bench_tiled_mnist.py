"""A kernel larger than memory is meant for: MNIST, ten outputs, from tiles on disk to a predicted loss curve.

    SGDSDE_DATA=... python benchmarks/bench_tiled_mnist.py FOLDER [--n-train 10000 --width 1024 --rank 500 ...]

Each stage appends its numbers to the result at once, so that a stage that fails or is stopped leaves those before it:
the kernel summed over outputs, killed by SIGKILL on the way and resumed, against one made at once, byte by byte; the
kernels of each class; the leading eigenpairs; predictions on them against real training.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

import sgdsde
from sgdsde import SGD, dynamics, stability
from sgdsde.kernel import KroneckerKernel, TiledKernel, leading_eigenpairs
from sgdsde.prediction import evolve

RESULT = Path(__file__).parent / "results" / "tiled_mnist.json"
STAGES = ("kernels", "spectrum", "curves")
MEMORY = 1_500_000_000
TILE = 1000


def problem(options: argparse.Namespace) -> sgdsde.Problem:
    data = sgdsde.datasets.mnist(options.n_train, options.n_test, target="onehot", flatten=True)
    model = sgdsde.networks.MLP(784, options.width, 10, generator=torch.Generator().manual_seed(0))
    return sgdsde.Problem(model, **data.tensors(), loss=nn.MSELoss())


def make(folder: Path, options: argparse.Namespace, outputs: str) -> TiledKernel:
    one = problem(options)
    return TiledKernel.create(
        folder, one.model, one.x_train, outputs=outputs, tile=TILE, dtype=torch.float32, memory=MEMORY, progress=True
    )


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def child(options: argparse.Namespace, folder: Path, outputs: str) -> subprocess.Popen[bytes]:
    words = [f"--n-train={options.n_train}", f"--width={options.width}", f"--make={outputs}"]
    return subprocess.Popen([sys.executable, __file__, str(folder), *words], stdout=subprocess.PIPE)


def kernels(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Seconds and peak memory of each kind, in a process of its own; one of them killed and resumed."""
    numbers: dict[str, object] = {}
    for outputs in ("trace", "per_class"):
        clock = time.perf_counter()
        answer = child(options, folder / outputs, outputs).communicate()[0]
        size = sum(path.stat().st_size for path in (folder / outputs).glob("tile*"))
        numbers[outputs] = json.loads(answer) | {"seconds": time.perf_counter() - clock, "bytes_on_disk": size}
        print(outputs, numbers[outputs], flush=True)
    killed = child(options, folder / "killed", "trace")
    while len(list((folder / "killed").glob("tile*"))) < 20 and killed.poll() is None:
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    numbers["tiles_when_killed"] = len(list((folder / "killed").glob("tile*")))
    numbers["exit_status"] = killed.wait()
    child(options, folder / "killed", "trace").communicate()
    names = [path.name for path in sorted((folder / "trace").glob("tile*"))]
    same = [(folder / "trace" / name).read_bytes() == (folder / "killed" / name).read_bytes() for name in names]
    return numbers | {"tiles": len(names), "same_bytes": bool(np.all(same))}


def spectrum(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    kernel = TiledKernel.open(folder / "trace")
    clock = time.perf_counter()
    pairs = leading_eigenpairs(kernel, options.rank, progress=True)
    seconds = time.perf_counter() - clock
    return {
        "rank": options.rank,
        "seconds": seconds,
        "products": pairs.n_products,
        "largest_residual": float(pairs.residuals.max() / pairs.values[0]),
        "share_of_trace": float(pairs.values.double().sum()) / kernel.trace(),
        "values": [float(pairs.values[i]) for i in (0, 1, 9, options.rank // 5, options.rank - 1)],
        "peak_bytes": peak_bytes(),
    }


def curves(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """The expected training and test loss, the tail followed, against real training; processor seconds of each."""
    one = problem(options)
    kernel = KroneckerKernel(TiledKernel.open(folder / "trace"), 10, scale=0.1)
    clock = time.process_time()
    linearization = sgdsde.linearize(one, kernel=kernel, rank=options.rank, memory=MEMORY)
    seconds = {"linearize": time.process_time() - clock}
    lr = options.lr or options.share * stability.max_lr(linearization, options.batch_size)
    sgd = SGD(lr, options.batch_size)
    record = sorted({0, 1, *np.geomspace(2, options.n_steps, 12).round().astype(int).tolist()})
    found: dict[str, object] = {
        "lr": lr,
        "batch_size": options.batch_size,
        "steps": record,
        "modes": len(linearization.basis.values) if linearization.basis else None,
    }

    def timed(name: str, work: Callable[[], sgdsde.Trajectory]) -> None:
        clock = time.process_time()
        made = work()
        seconds[name] = time.process_time() - clock
        found[name] = {"train": made.train_loss.mean.tolist(), "dynamics": made.dynamics}
        if made.test_loss is not None:
            found[name]["test"] = made.test_loss.mean.tolist()
        if made.truncation_error is not None:
            found[name]["truncation_error"] = made.truncation_error.tolist()
        if made.n_runs:
            found[name]["standard_error"] = made.train_loss.standard_error.tolist()
        print(name, seconds[name], found[name], flush=True)

    def predicted(one: sgdsde.Linearization, sgd: SGD, kind: dynamics.Dynamics) -> Callable[[], sgdsde.Trajectory]:
        return lambda: sgdsde.predict(one, sgd, options.n_steps, dynamics=kind, record=record)

    timed("predicted", predicted(linearization, sgd, dynamics.ModalMoments()))
    full_batch = SGD(lr, options.n_train, sampling="without_replacement")
    timed("descent", predicted(linearization, full_batch, dynamics.GradientDescent()))
    few = linearization.truncate(options.few, tail="frozen")
    timed("few_modal", lambda: evolve(dynamics.ModalMoments(), few, sgd, record))
    timed("few_recursion", lambda: evolve(dynamics.TracedRecursion(), few, sgd, record))
    timed(
        "measured",
        lambda: sgdsde.run_ensemble(
            one, sgd, options.n_steps, options.n_runs, seed=0, memory=MEMORY, record=record, progress=True
        ),
    )
    return found | {"seconds": seconds, "n_runs": options.n_runs, "few": options.few, "peak_bytes": peak_bytes()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    for name, value in [
        *(("n-train", 10_000), ("n-test", 2_000), ("width", 1024), ("rank", 500)),
        *(("batch-size", 64), ("n-steps", 1000), ("n-runs", 4)),
    ]:
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--share", type=float, default=0.25, help="of the mean-square limit")
    parser.add_argument("--lr", type=float, help="in place of the share; the limit takes as long as a prediction")
    parser.add_argument(
        "--few", type=int, default=64, help="eigenpairs, the rest frozen, on which the closure is held to the recursion"
    )
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--make", choices=("trace", "per_class"), help="only this kernel, in the folder itself")
    options = parser.parse_args()
    if options.make:
        make(options.folder, options, options.make)
        print(json.dumps({"peak_bytes": peak_bytes(), "threads": torch.get_num_threads()}))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    found = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    found["problem"] = {"n_train": options.n_train, "width": options.width, "n_outputs": 10, "torch": torch.__version__}
    for stage in options.stages:
        found[stage] = {"kernels": kernels, "spectrum": spectrum, "curves": curves}[stage](options, options.folder)
        print(stage, found[stage], flush=True)
        RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
