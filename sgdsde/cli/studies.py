"""The commands ``diagnose`` and ``sweep``, which look at a problem before it is trained."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import sgdsde
from sgdsde import sweeps
from sgdsde._checks import complaint, positive_number, whole_number
from sgdsde.cli.builders import build_dynamics, build_problem, build_sgd, parse_lr, resolve_lr
from sgdsde.cli.costs import diagnosis_cost, sweep_cost
from sgdsde.cli.options import Diagnose, Sweep
from sgdsde.cli.results import ResultFolder, write_rows
from sgdsde.cli.work import Work, default_name, facts_of, say_cost, say_written
from sgdsde.linearization import as_linearization
from sgdsde.run_folder import write_manifest


def diagnose(command: Diagnose, argv: list[str]) -> dict[str, Any]:
    """Print the diagnosis and write its checks to a table."""
    names = ("diagnosis.csv",)
    training, work = command.training, Work(command.compute.quiet)
    n_steps = whole_number("--steps", training.steps, minimum=1)
    tolerance = positive_number("--tolerance", command.tolerance)
    folder = ResultFolder.prepared(command.output, default_name("diagnose", command), names)
    rate = parse_lr(training)
    sgd = build_sgd(training)
    problem = build_problem(command.data, command.network, command.compute, training.loss)
    if command.output.dry_run:
        return say_cost("diagnose", diagnosis_cost(problem, sgd, n_steps))
    linearization = work.stage("kernel", lambda bar: as_linearization(problem, progress=bar))
    lr, words = resolve_lr(rate, training, linearization)
    print(problem)
    print(f"{words}, batch size {training.batch_size}, {n_steps} steps\n", flush=True)
    sgd = build_sgd(training, lr)
    found = work.stage(
        "diagnosis", lambda bar: sgdsde.diagnose(linearization, sgd, n_steps, tolerance=tolerance, progress=bar)
    )
    rows = [vars(check) | {"grade": check.grade.value} for check in found.checks.values()]
    facts = {
        "problem": repr(problem),
        "problem_digest": problem.digest,
        "lr": lr,
        "advice": found.advice.name,
        "predictor": repr(found.predictor),
        "sentence": found.sentence,
        "frozen_error": found.frozen_error,
        "moving_error": found.moving_error,
        "wall_time_s": work.seconds,
    }
    with folder.writing() as target:
        write_rows(target / "diagnosis.csv", rows)
        manifest = write_manifest(target, names, facts_of("diagnose", command, argv, lr) | facts)
    print(found)
    return say_written(folder.path, manifest, checks=rows)


def sweep(command: Sweep, argv: list[str]) -> dict[str, Any]:
    """Print the predicted last loss over batch sizes (rows) and learning rates (columns), and the smallest."""
    names = ("sweep.csv",)
    training, work = command.training, Work(command.compute.quiet)
    n_steps = whole_number("--steps", training.steps, minimum=1)
    sizes = [whole_number("--batch-sizes", size, minimum=1) for size in command.batch_sizes]
    rates = [parse_lr(dataclasses.replace(training, lr=text), "--lrs") for text in command.lrs]
    for option, given in (("--batch-sizes", sizes), ("--lrs", rates)):
        if not given:
            raise ValueError(complaint(option, "one value at least", "none"))
    theory = build_dynamics(command.theory.dynamics)
    folder = ResultFolder.prepared(command.output, default_name("sweep", command), names)
    groups = [build_sgd(dataclasses.replace(training, batch_size=size)) for size in sizes]
    problem = build_problem(command.data, command.network, command.compute, training.loss)
    if command.output.dry_run:
        return say_cost("sweep", sweep_cost(problem, groups, len(rates), n_steps, theory))
    linearization = work.stage("kernel", lambda bar: as_linearization(problem, progress=bar))
    print(problem)
    print(f"{n_steps} steps", flush=True)
    words = dataclasses.asdict(build_sgd(training)) | {"lr": rates, "batch_size": sizes}
    del words["trained"]  # what an optimizer would hold
    found = work.stage(
        "sweep", lambda bar: sweeps.sweep(linearization, n_steps=n_steps, dynamics=theory, progress=bar, **words)
    )
    rows = list(found.rows)
    with folder.writing() as target:
        write_rows(target / "sweep.csv", rows)
        provenance = {"problem": repr(problem), "problem_digest": problem.digest, "wall_time_s": work.seconds}
        manifest = write_manifest(target, names, facts_of("sweep", command, argv) | provenance)
    print(_sweep_table(rows, sizes, list(command.lrs)))
    return say_written(folder.path, manifest, settings=rows)


def _sweep_table(rows: list[dict[str, Any]], sizes: list[int], rates: list[str]) -> str:
    side = "test_loss" if "test_loss" in rows[0] else "train_loss"
    lines = []
    for name in ("train_loss", "test_loss"):
        if name not in rows[0]:
            continue
        lines += [f"{name} after the last step", f"{'batch size':>11}" + "".join(f" {rate:>21}" for rate in rates)]
        for place, size in enumerate(sizes):
            row = rows[place * len(rates) : (place + 1) * len(rates)]
            lines.append(f"{size:>11}" + "".join(f" {_entry(cell, name):>21}" for cell in row))
    best = min(rows, key=lambda cell: cell[side])
    if math.isfinite(best[side]):
        lines.append(
            f"smallest {side.replace('_', ' ')}: {best[side]:.5g} with batch size {best['batch_size']}, "
            f"lr {best['lr']:.5g}"
        )
    return "\n".join(lines)


def _entry(cell: dict[str, Any], name: str) -> str:
    loss = "unstable" if cell["past_mean_square_limit"] else f"{cell[name]:.4g}"
    return f"{loss} (lr {cell['lr']:.3g})"
