"""Ensembles of SGD runs against torch.optim, vmap(grad) and JAX: run-steps a processor second, one pinned thread.

Every contestant trains the same runs on the same batches, in turns, round after round; final losses are compared run by
run before anything is timed. Ours draws its batches and evaluates the loss inside the clock, the others find the
batches drawn. JAX runs in a fresh process each round, its compilation before the clock; its environment is that of
``make bench-peers``, or ``JAX=/path/to/python``; without one its rows are left out.

    .venv/bin/python -m benchmarks.bench_ensembles            # three minutes; writes benchmarks/results/ensembles.json
    .venv/bin/python -m benchmarks.bench_ensembles CNN        # cases by the start of their names, the others kept
    .venv/bin/python -m benchmarks.bench_ensembles --device cuda    # results/ensembles_cuda.json, docs/benchmarks.md

On a device rates are those of the clock, JAX is left out, and the library takes part a second time without CUDA graphs.
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
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import sgdsde
from benchmarks.ensembles import on_device, torch_runs
from benchmarks.ntk import machine
from benchmarks.ntk.page import write_page
from sgdsde import provenance

HERE = Path(__file__).parent
RESULT = HERE / "results" / "ensembles.json"
JAX = Path(os.environ.get("JAX", HERE.parent / "build" / "peers" / "jax" / "bin" / "python"))
ROUNDS, LOOPED = 3, 8
"""Rounds of a case, and runs of the optimizer loop, whose time is that of one run times their number."""

GOALS = {
    ("MLP", "optimizer_loop"): 4.0,
    ("MLP, 64 runs", "vmapped"): 1.4,
    ("MLP, 256 runs", "vmapped"): 2.5,
    ("MLP", "jax"): 0.7,
    ("CNN", "vmapped"): 2.0,
    ("linearized", "embedding_bags"): 0.6,
}


@dataclass(frozen=True)
class Case:
    """Runs to train: what, how many, how long, and who takes part beside the library."""

    name: str
    trained: sgdsde.Problem | sgdsde.Linearization
    lr: float
    n_runs: int
    n_steps: int
    others: tuple[str, ...]
    batch_size: int = 32
    compiled: bool = False

    @property
    def problem(self) -> sgdsde.Problem:
        return self.trained.problem if isinstance(self.trained, sgdsde.Linearization) else self.trained

    def batches(self) -> Tensor:
        """The library's own, [runs, steps, B]."""
        sgd = sgdsde.SGD(self.lr, self.batch_size)
        n = self.problem.n_train
        runs = [sgdsde.sampling.batch_indices(sgd, n, self.n_steps, seed=0, run=run) for run in range(self.n_runs)]
        return torch.stack(runs)

    def ours(self) -> Tensor:
        sgd = sgdsde.SGD(self.lr, self.batch_size)
        words = {"record": [self.n_steps], "compiled": self.compiled}
        return sgdsde.run_ensemble(self.trained, sgd, self.n_steps, self.n_runs, **words).train_loss.samples[:, -1]


def cases(device: str = "cpu") -> list[Case]:
    data = {name: value.to(device) for name, value in sgdsde.datasets.digits(512, 64).tensors().items()}
    generator = torch.Generator().manual_seed(0)
    mlp = sgdsde.Problem(sgdsde.networks.MLP(64, 512, 1, generator=generator).to(device), **data, loss=nn.MSELoss())
    mlp = replace(mlp, x_test=None, y_test=None)
    x = torch.randn(128, 1, 14, 14, generator=generator).to(device)
    y = torch.randn(128, 1, generator=generator).to(device)
    cnns = {c: sgdsde.networks.CNN(1, 14, c, 1, depth=2, generator=generator) for c in (8, 16)}
    transformer = sgdsde.Problem(_transformer().to(device), mlp.x_train, mlp.y_train, loss=nn.MSELoss())
    small = replace(mlp, x_train=mlp.x_train[:256], y_train=mlp.y_train[:256])
    made = sgdsde.linearize(small)
    single = replace(made, kernel=made.kernel.float(), outputs=made.outputs.float(), weight_outputs=None)
    real, linear = ("optimizer_loop", "vmapped"), ("embedding_bags", "gathers")
    found = [
        Case(f"MLP, {runs} runs", mlp, 0.1, runs, steps, (*real, "jax", "products"))
        for runs, steps in ((64, 100), (256, 50))
    ]
    for channels, model in cnns.items():
        problem = sgdsde.Problem(model.to(device), x, y, loss=nn.MSELoss())
        found.append(Case(f"CNN, {channels} channels, 64 runs", problem, 0.01, 64, 30, real))
    for kind, steps, compiled in (("", 40, False), (", compiled", 200, True))[: 2 if device == "cpu" else 1]:
        found.append(Case(f"transformer, 64 runs{kind}", transformer, 0.05, 64, steps, real, compiled=compiled))
    for kind, linearization in (("float32", single), ("float64", made)):
        found += [Case(f"linearized, {kind}, {r} runs", linearization, 0.05, r, 2000, linear) for r in (64, 256)]
    return found


def _transformer() -> nn.Module:
    """A layer of attention over the eight rows of a digit, between two linear ones: no stack of layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        rows = nn.Sequential(nn.Unflatten(1, (8, 8)), nn.Linear(8, 32), layer, nn.Flatten(), nn.Linear(256, 1))
    return rows


def contestants(case: Case, batches: Tensor) -> dict[str, Callable[[], tuple[float, Tensor]]]:
    """Functions that train the runs once and return run-steps a processor second and final losses."""

    def timed(train: Callable[[], Tensor], n_runs: int) -> tuple[float, Tensor]:
        start = time.process_time()
        losses = train()
        return n_runs * case.n_steps / (time.process_time() - start), losses

    found = {"sgdsde": lambda: timed(case.ours, case.n_runs)}
    for name in case.others:
        if name == "jax":
            if JAX.exists():
                found[name] = lambda: in_jax(case, batches)
            continue
        rows = batches[:LOOPED] if name == "optimizer_loop" else batches
        train = getattr(torch_runs, name)
        found[name] = lambda train=train, rows=rows: timed(lambda: train(case.trained, case.lr, rows), len(rows))
    return found


def in_jax(case: Case, batches: Tensor) -> tuple[float, Tensor]:
    values = dict(case.problem.model.named_parameters())
    arrays = {"W1": values["hidden.0.weight"].mT, "W2": values["read_out.weight"].mT}
    arrays |= {"x": case.problem.x_train, "y": case.problem.y_train, "indices": batches.int()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arrays.npz"
        np.savez(path, lr=case.lr, **{name: value.detach().numpy() for name, value in arrays.items()})
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        words = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}
        command = [str(JAX), str(HERE / "ensembles" / "jax_runs.py"), str(path)]
        said = subprocess.run(command, capture_output=True, text=True, check=True, env=words).stdout
    found = json.loads(said.strip().splitlines()[-1])
    return case.n_runs * case.n_steps / min(found["seconds"]), torch.tensor(found["losses"], dtype=torch.float64)


def measured(case: Case, functions: dict[str, Callable[[], tuple[float, Tensor]]]) -> dict[str, object]:
    """Rates of all contestants, the ratios of ours round by round, and the largest difference of a run's loss."""
    reference = functions["sgdsde"]()[1]  # warms up, too
    rates: dict[str, list[float]] = {name: [] for name in functions}
    errors = {}
    for _ in range(ROUNDS):
        for name, function in functions.items():
            rate, losses = function()
            rates[name].append(rate)
            if not len(losses):  # products alone
                continue
            errors[name] = float((losses.double() / reference[: len(losses)] - 1).abs().max())
            if errors[name] > (1e-9 if "float64" in case.name else 1e-3):
                raise SystemExit(f"{case.name}: {name} trained other runs, losses differ by {errors[name]:.1e}")
    ratios = {
        name: statistics.median(a / b for a, b in zip(rates["sgdsde"], values))
        for name, values in rates.items()
        if name != "sgdsde"
    }
    spread = {name: [statistics.median(values), min(values), max(values)] for name, values in rates.items()}
    return {"run_steps_per_second": spread, "ratio": ratios, "relative_difference": errors}


def peak_of(n_runs: int, memory: int) -> int:
    """Bytes that a process takes above what it held, for these runs of the MLP within this memory."""
    code = (
        "import torch; torch.set_num_threads(1); import sgdsde; from benchmarks import bench_ensembles as b\n"
        "from benchmarks.ntk import machine; p = b.cases()[0].trained; s = sgdsde.SGD(0.1, 32, momentum=0.9)\n"
        "sgdsde.run_ensemble(p, s, 2, 2); machine.reset_peak(); held = machine.resident_bytes()\n"
        f"sgdsde.run_ensemble(p, s, 3, {n_runs}, memory={memory}); print(machine.peak_bytes() - held)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HERE.parent)
    return int(said.stdout.strip().splitlines()[-1])


def measured_on_cuda(wanted: list[str]) -> None:
    """The cases of these names, or all, in float32 as it is: convolutions without TF32, as products are."""
    torch.backends.cudnn.allow_tf32 = False
    device, path = torch.device("cuda", torch.cuda.current_device()), RESULT.with_name("ensembles_cuda.json")
    found = json.loads(path.read_text())["cases"] if wanted and path.exists() else {}
    for case in cases("cuda"):
        if not wanted or case.name.startswith(tuple(wanted)):
            case = replace(case, n_steps=on_device.N_STEPS)
            found[case.name] = measured(case, on_device.contestants(case, device))
            print(case.name, {name: f"{ratio:.2f}" for name, ratio in found[case.name]["ratio"].items()}, flush=True)
    environment = {**provenance.machine(), "device": torch.cuda.get_device_name(), "versions": provenance.versions()}
    content = {"environment": environment, "rounds": ROUNDS, "cases": found}
    path.write_text(json.dumps(content, indent=1) + "\n")
    write_page(on_device.page_blocks(content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help="starts of the names of cases, default all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    wanted = options.names
    if options.device == "cuda":
        measured_on_cuda(wanted)
        return
    torch.set_num_threads(1)
    machine.pin(machine.last_core())
    old = json.loads(RESULT.read_text()) if wanted and RESULT.exists() else {"cases": {}}
    found = old["cases"]
    for case in cases():
        if wanted and not case.name.startswith(tuple(wanted)):
            continue
        found[case.name] = measured(case, contestants(case, case.batches()))
        rates = found[case.name]["run_steps_per_second"]
        print(case.name, {name: f"{values[0]:.3g}" for name, values in rates.items()}, flush=True)  # type: ignore[attr-defined]
        for (start, other), goal in GOALS.items():
            ratio = found[case.name]["ratio"].get(other)  # type: ignore[attr-defined]
            if case.name.startswith(start) and ratio is not None:
                print(f"    {ratio:.2f} times {other}, asked {goal:g}", flush=True)
        write(found, old.get("peak_bytes_within"))
    peaks = {f"{memory >> 20} MiB": peak_of(512, memory) for memory in (2**25, 2**26, 2**27)}
    print("peak within", {key: f"{value / 2**20:.0f} MiB" for key, value in peaks.items()})
    write(found, peaks)


def write(found: dict[str, object], peaks: dict[str, int] | None) -> None:
    environment = {**provenance.machine(), "versions": provenance.versions(), "products": machine.product_rates()}
    record = {"environment": environment, "rounds": ROUNDS, "cases": found, "peak_bytes_within": peaks}
    RESULT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
