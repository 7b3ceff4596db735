"""The command that prunes: masks by several criteria, and what is predicted of the networks that they leave."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import sgdsde
from sgdsde import pruning
from sgdsde._checks import complaint, fraction_below_one, whole_number
from sgdsde._types import Progress
from sgdsde.cli.builders import build_problem, build_sgd, parse_lr, resolve_lr
from sgdsde.cli.costs import pruning_cost
from sgdsde.cli.options import Prune
from sgdsde.cli.results import ResultFolder, write_rows
from sgdsde.cli.work import Work, default_name, facts_of, say_cost, say_written
from sgdsde.run_folder import write_manifest

CRITERIA: dict[str, pruning.Criterion] = {
    "random": pruning.Random(),
    "magnitude": pruning.Magnitude(),
    "snip": pruning.SNIP(),
    "grasp": pruning.GraSP(),
    "synflow": pruning.SynFlow(),
    "synflow2": pruning.SynFlow(power=2),
    "pathkernel": pruning.PathKernelTrace(),
}


def prune(command: Prune, argv: list[str]) -> dict[str, Any]:
    """Writes a file of masks for every criterion and sparsity; prints the ranking of the pruned networks."""
    training, work, masks = command.training, Work(command.compute.quiet), {}
    n_steps = whole_number("--steps", training.steps, minimum=1)
    sparsities = [fraction_below_one("--sparsities", sparsity) for sparsity in command.sparsities]
    for option, given in (("--criteria", command.criteria), ("--sparsities", sparsities)):
        if not given:
            raise ValueError(complaint(option, "one value at least", "none"))
    cells = {
        f"{name}-{sparsity:g}": (name, sparsity) for name, sparsity in itertools.product(command.criteria, sparsities)
    }
    names = ("ranking.csv", *(f"masks-{cell}.npz" for cell in cells))
    folder = ResultFolder.prepared(command.output, default_name("prune", command), names)
    rate = parse_lr(training)
    sgd = build_sgd(training, rate if isinstance(rate, float) else 1.0)
    problem = build_problem(command.data, command.network, command.compute, training.loss)
    if command.output.dry_run:
        rounds = sum(command.rounds or CRITERIA[name].n_rounds for name, _ in cells.values())
        return say_cost("prune", pruning_cost(problem, sgd, n_steps, len(cells), rounds))
    print(problem, flush=True)
    for cell, (name, sparsity) in cells.items():
        criterion = CRITERIA[name]
        if command.rounds:
            criterion = dataclasses.replace(criterion, n_rounds=whole_number("--rounds", command.rounds))
        made = partial(pruning.prune, problem, criterion, sparsity, scope=command.scope, seed=command.compute.seed)
        masks[cell] = work.stage(f"masks {cell}", _with_bar(made))
    rescale = None if command.rescale == "none" else command.rescale
    # A part is one of the stiffest network's limit, so that all are trained alike.
    lr = (
        rate
        if isinstance(rate, float)
        else min(_rate(problem, mask, rescale, rate, training) for mask in masks.values())
    )
    words = f"lr = {lr:.6g}" if isinstance(rate, float) else f"lr = {lr:.6g}, that part of the smallest limit"
    print(f"{words}, batch size {training.batch_size}, {n_steps} steps\n", flush=True)
    ranking = work.stage(
        "ranking",
        lambda bar: pruning.rank(problem, masks, build_sgd(training, lr), n_steps, rescale=rescale, progress=bar),
    )
    provenance = {"problem": repr(problem), "problem_digest": problem.digest, "lr": lr, "wall_time_s": work.seconds}
    rows = [_row(row) for row in (*ranking.rows, ranking.dense)]
    with folder.writing() as target:
        write_rows(target / "ranking.csv", rows)
        for cell, mask in masks.items():
            mask.save(target / f"masks-{cell}.npz")
        manifest = write_manifest(target, names, facts_of("prune", command, argv, lr) | provenance)
    print(ranking)
    return say_written(folder.path, manifest, networks=rows)


def _with_bar(function: Callable[..., Any]) -> Callable[[Progress], Any]:
    return lambda bar: function(progress=bar)


def _rate(problem: sgdsde.Problem, mask: pruning.Masks, rescale: Any, rate: Any, training: Any) -> float:
    pruned = mask.apply(problem)
    if rescale is not None:
        pruned = pruning.rescale_to_edge_of_chaos(pruned, normalizer=rescale)
    lr, _ = resolve_lr(rate, training, sgdsde.linearize(pruned))
    return float(lr)


def _row(row: Any) -> dict[str, Any]:
    fields = ("name", "density", "live_density", "train_loss", "test_loss", "max_lr", "kernel_trace")
    return {field: getattr(row, field) for field in fields}
