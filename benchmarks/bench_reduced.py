"""Cost and error of reduced predictions against the plain recursion, and of what ``expected_cost`` foretells.

Everything is in processor seconds of one process and one thread, every ratio against the plain recursion in the same
process. Results with their environment go to benchmarks/results/reduced.json.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.bench_reduced                  # everything, about six minutes
    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.bench_reduced horizons_1024    # one of ``PARTS`` anew
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

import sgdsde
from sgdsde.dynamics import GradientDescent, ModalMoments, MomentRecursion, ReducedMoments, Volterra

Found = TypeVar("Found")
RESULT = Path(__file__).parent / "results" / "reduced.json"
BATCH = 4
DOWN_TO = 1e-4
COMPARED_STEPS = {256: 4_000, 1024: 400}
SWEEP_STEPS, CHECKED = 1_000, 10
MOMENTA, MOMENTUM_STEPS = ((0.5, 0.5), (0.9, 0.25), (0.9, 0.5), (0.9, 0.8), (0.99, 0.5)), 2_500
EPOCHS = {32: 50, 8: 20}


def problem(n: int, *, n_outputs: int = 1, width: int = 1024) -> sgdsde.Problem:
    data = sgdsde.datasets.digits(n, 16, target="sign" if n_outputs == 1 else "onehot")
    model = sgdsde.networks.MLP(64, width, n_outputs, generator=torch.Generator().manual_seed(0))
    return sgdsde.Problem(model, data.x_train.flatten(1), data.y_train, loss=torch.nn.MSELoss())


def seconds_of(work: Callable[[], Found]) -> tuple[float, Found]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def plain_step(linearization: sgdsde.Linearization, sgd: sgdsde.SGD) -> float:
    """Processor seconds of one step of the recursion, from two horizons."""

    def go(steps: int) -> float:
        return seconds_of(
            lambda: sgdsde.predict(linearization, sgd, steps, dynamics=MomentRecursion(), record=[steps])
        )[0]

    return (go(22) - go(2)) / 20


def worst(ours: sgdsde.Trajectory, theirs: sgdsde.Trajectory) -> float:
    relevant = theirs.train_loss.mean > DOWN_TO * theirs.train_loss.mean[0]
    return float((ours.train_loss.mean / theirs.train_loss.mean - 1).abs()[relevant].max())


def horizons(linearization: sgdsde.Linearization) -> list[dict[str, object]]:
    """Cost at several horizons in plain steps measured before and after, and error where the recursion goes."""
    n, limit = linearization.problem.n_train, sgdsde.stability.max_lr(linearization, BATCH)
    rows: list[dict[str, object]] = []
    for share in (0.25, 0.5, 0.8) if n <= 256 else (0.5,):
        sgd, compared = sgdsde.SGD(share * limit, BATCH), COMPARED_STEPS[n]
        record = sorted({0, *(round(x) for x in np.geomspace(1, compared, 60))})
        plain = sgdsde.predict(linearization, sgd, compared, dynamics=MomentRecursion(), record=record)
        reduced = sgdsde.predict(linearization, sgd, compared, dynamics=ReducedMoments(), record=record)
        row: dict[str, object] = {"n": n, "share": share, "steps_compared": compared, "error": worst(reduced, plain)}
        assert reduced.estimated_error is not None
        relevant = plain.train_loss.mean > DOWN_TO * plain.train_loss.mean[0]
        row["estimated_error"] = float(reduced.estimated_error[relevant].max())
        for n_steps in (10**4, 10**7):
            before = plain_step(linearization, sgd)
            seconds, _ = seconds_of(
                lambda k=n_steps, sgd=sgd: sgdsde.predict(linearization, sgd, k, dynamics=ReducedMoments())
            )
            step = (before + plain_step(linearization, sgd)) / 2
            row[f"plain_steps_at_{n_steps:.0e}"] = seconds / step
        rows.append(row)
        sys.stdout.write(f"{row}\n")
    return rows


def momenta(linearization: sgdsde.Linearization) -> list[dict[str, object]]:
    """Cost in steps of the recursion with momentum, and error against it."""
    rows: list[dict[str, object]] = []
    for momentum, share in MOMENTA:
        limit = sgdsde.stability.max_lr(linearization, BATCH, momentum=momentum)
        sgd = sgdsde.SGD(share * limit, BATCH, momentum=momentum)
        record = sorted({0, *(round(x) for x in np.geomspace(1, MOMENTUM_STEPS, 60))})
        taken, plain = seconds_of(
            lambda sgd=sgd, record=record: sgdsde.predict(
                linearization, sgd, MOMENTUM_STEPS, dynamics=MomentRecursion(), record=record
            )
        )
        found: dict[int, sgdsde.Trajectory] = {}
        row: dict[str, object] = {"momentum": momentum, "share": share, "steps_compared": MOMENTUM_STEPS}
        for n_steps in (MOMENTUM_STEPS, 10**7):
            to = [k for k in record if k < MOMENTUM_STEPS] + [n_steps]
            seconds, found[n_steps] = seconds_of(
                lambda sgd=sgd, to=to: sgdsde.predict(linearization, sgd, to[-1], dynamics=ReducedMoments(), record=to)
            )
            row[f"steps_at_{n_steps:.0e}"] = seconds / (taken / MOMENTUM_STEPS)
        reduced = found[MOMENTUM_STEPS]
        relevant = plain.train_loss.mean > DOWN_TO * plain.train_loss.mean[0]
        row |= {"error": worst(reduced, plain), "dynamics": reduced.dynamics}
        if reduced.estimated_error is not None:
            row["estimated_error"] = float(reduced.estimated_error[relevant].max())
        rows.append(row)
        sys.stdout.write(f"{row}\n")
    return rows


def sweeps(linearization: sgdsde.Linearization) -> dict[str, object]:
    """100 settings from one basis; some of them against the recursion."""
    sizes = (1, 2, 4, 8, 16, 32, 64, 128)
    limits = {size: sgdsde.stability.max_lr(linearization, size) for size in sizes}
    grid = [sgdsde.SGD(float(share) * limits[size], size) for size in sizes for share in np.linspace(0.05, 0.85, 12)]

    def cosine(size: int) -> sgdsde.SGD:
        return sgdsde.SGD(lambda k: 0.35 * limits[size] * (1 + np.cos(np.pi * k / SWEEP_STEPS)), size)

    sgds = [*grid, *(cosine(size) for size in (2, 8, 32, 128))]
    some, _ = seconds_of(lambda: sgdsde.predict_many(linearization, sgds[:4] + sgds[92:96], SWEEP_STEPS))
    everything, found = seconds_of(lambda: sgdsde.predict_many(linearization, sgds, SWEEP_STEPS))
    assert isinstance(found, list)
    chosen = np.random.default_rng(20).choice(len(sgds), CHECKED, replace=False).tolist()
    errors = [
        worst(found[i], sgdsde.predict(linearization, sgds[i], SWEEP_STEPS, dynamics=MomentRecursion())) for i in chosen
    ]
    each = (everything - some) / (len(sgds) - 8)
    row = {"settings": len(sgds), "seconds": everything, "milliseconds_each": 1e3 * each, "worst_error": max(errors)}
    sys.stdout.write(f"{row}\n")
    return row


def shuffled(linearization: sgdsde.Linearization) -> list[dict[str, object]]:
    """Shuffled epochs against sampled runs of the linearized model, from the second epoch on."""
    rows: list[dict[str, object]] = []
    for size, epochs in EPOCHS.items():
        limit = sgdsde.stability.max_lr(linearization, size, sampling="without_replacement")
        sgd = sgdsde.SGD(0.3 * limit, size, sampling="shuffled")
        steps = linearization.problem.n_train // size
        record = [steps * e + steps // 2 * (e % 2) for e in (2, 3, 5, 8, 12, 19)] + [epochs * steps]
        runs = sgdsde.run_ensemble(linearization, sgd, epochs * steps, 1000, record=record)
        start = time.process_time()
        found = sgdsde.predict(linearization, sgd, epochs * steps, dynamics=ReducedMoments(), record=record)
        seconds = time.process_time() - start
        assert found.estimated_error is not None
        row: dict[str, object] = {"batch_size": size, "epochs": epochs, "seconds": seconds, "dynamics": found.dynamics}
        row["error"] = float((found.train_loss.mean / runs.train_loss.mean - 1).abs().max())
        row["standard_error"] = float((runs.train_loss.standard_error / runs.train_loss.mean).max())
        row["estimated_error"] = float(found.estimated_error.max())
        rows.append(row)
        sys.stdout.write(f"{row}\n")
    return rows


def costs() -> list[dict[str, object]]:
    """Foretold and measured seconds of ten predictions; ``expected_cost`` is given the processor's clock."""
    small, wide = sgdsde.SGD(0.2, 4), sgdsde.SGD(0.2, 16, sampling="without_replacement")
    cases = [
        (300, 1, small, 400, MomentRecursion()),
        (600, 1, small, 100, MomentRecursion()),
        (256, 1, sgdsde.SGD(0.02, 4, momentum=0.9), 400, MomentRecursion()),
        (400, 1, wide, 100_000, ReducedMoments()),
        (600, 1, small, 10_000, None),
        (40, 10, sgdsde.SGD(0.5, 4), 150, MomentRecursion()),
        (500, 1, small, 1000, ModalMoments()),
        (500, 1, sgdsde.SGD(0.1, 4), 1000, Volterra()),
        (500, 1, small, 1000, GradientDescent()),
        (256, 1, wide, 1000, ModalMoments()),
    ]
    rows: list[dict[str, object]] = []
    clock, time.perf_counter = time.perf_counter, time.process_time
    try:
        for n, c, sgd, n_steps, dynamics in cases:
            one = problem(n, n_outputs=c, width=256 if c > 1 else 1024)
            sgdsde.predict(one, sgd, 2, dynamics=GradientDescent())
            foretold = sgdsde.expected_cost(one, sgd, n_steps, dynamics=dynamics)
            taken, _ = seconds_of(lambda: sgdsde.predict(one, sgd, n_steps, dynamics=dynamics))  # noqa: B023
            rows.append({"dynamics": foretold.dynamics, "n": n, "foretold": foretold.seconds, "taken": taken})
            sys.stdout.write(f"{rows[-1]}\n")
    finally:
        time.perf_counter = clock
    return rows


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    wanted = sys.argv[1:] or [*PARTS]
    results: dict[str, object] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    results["environment"] = {"torch": torch.__version__, "machine": platform.processor(), "cores": os.cpu_count()}
    prepared: dict[int, sgdsde.Linearization] = {}
    for name in wanted:
        n, part = PARTS[name]
        if n and n not in prepared:
            prepared[n] = sgdsde.linearize(problem(n))
        results[name] = part(prepared.get(n))
        RESULT.write_text(json.dumps(results, indent=1) + "\n")


PARTS: dict[str, tuple[int, Callable[..., object]]] = {
    "horizons_256": (256, horizons),
    "sweep": (256, sweeps),
    "shuffled": (256, shuffled),
    "momentum": (256, momenta),
    "horizons_1024": (1024, horizons),
    "expected_cost": (0, lambda _: costs()),
}


if __name__ == "__main__":
    main()
