"""The command ``ntk``: the empirical kernel and its spectrum."""

from __future__ import annotations

from typing import Any

import numpy as np

import sgdsde
from sgdsde import stability
from sgdsde._checks import whole_number
from sgdsde.cli.builders import build_problem
from sgdsde.cli.costs import kernel_command_cost
from sgdsde.cli.options import Ntk
from sgdsde.cli.results import ResultFolder
from sgdsde.cli.work import Work, default_name, facts_of, say_cost, say_written
from sgdsde.run_folder import write_manifest


def ntk(command: Ntk, argv: list[str]) -> dict[str, Any]:
    """Compute the kernel; print its spectrum and the largest stable learning rates, write its arrays."""
    names = ("kernel.npz",)
    top, batch_size = whole_number("--top", command.top), whole_number("--batch-size", command.batch_size, minimum=1)
    folder = ResultFolder.prepared(command.output, default_name("ntk", command), names)
    work = Work(command.compute.quiet)
    problem = build_problem(command.data, command.network, command.compute, command.loss)
    if command.output.dry_run:
        return say_cost("ntk", kernel_command_cost(problem))
    linearization = work.stage("kernel", lambda bar: sgdsde.linearize(problem, progress=bar))
    values = linearization.eigenbasis.values.flip(0)
    facts: dict[str, Any] = {
        "size": len(linearization.kernel),
        "trace": float(linearization.kernel.trace()),
        "rank": len(values),
        "condition": float(values[0] / values[-1]),
    }
    limit = stability.max_lr(linearization, batch_size, sampling=command.sampling)
    facts |= {"max_lr": limit, "max_lr_full_batch": stability.max_lr_full_batch(linearization)}
    arrays = {
        "kernel": linearization.kernel,
        "cross_kernel": linearization.cross_kernel,
        "outputs": linearization.outputs,
        "eigenvalues": values,
    }
    with folder.writing() as target:
        saved = {name: value.cpu().numpy() for name, value in arrays.items() if value is not None}
        np.savez(target / "kernel.npz", **saved)
        provenance = {"problem": repr(problem), "problem_digest": problem.digest, "wall_time_s": work.seconds}
        manifest = write_manifest(target, names, facts_of("ntk", command, argv) | facts | provenance)
    print(problem)
    print(f"kernel: {facts['size']} x {facts['size']}, trace {facts['trace']:.6g}, rank {facts['rank']}")
    print(f"condition on its range: {facts['condition']:.4g}")
    print(f"largest eigenvalues: {' '.join(f'{value:.5g}' for value in values[:top].tolist())}")
    drawn = command.sampling.replace("_", " ")
    of = "" if command.loss == "mse" else ", of the quadratic at the initial outputs"
    print(f"largest stable learning rate, batches of {batch_size} {drawn}{of}: {facts['max_lr']:.6g}")
    print(f"largest stable learning rate, full batch{of}: {facts['max_lr_full_batch']:.6g}")
    return say_written(folder.path, manifest, eigenvalues=values[:top].tolist())
