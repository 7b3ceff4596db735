"""What each command does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import singledispatch
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sgdsde
from sgdsde import meanfield, plots, stability
from sgdsde._checks import whole_number
from sgdsde.cli import masks, studies
from sgdsde.cli.builders import build_dynamics, build_problem, build_sgd, parse_lr
from sgdsde.cli.options import Command, Compare, Diagnose, Eoc, Ntk, Predict, Prune, Sweep
from sgdsde.cli.results import ResultFolder, write_manifest, write_table
from sgdsde.cli.work import Work, default_name, facts_of, printed, say_written

QUANTILES = {"q10": 0.1, "q90": 0.9}


def run(command: Command, argv: Sequence[str]) -> None:
    """Does what the command says."""
    _run(command, list(argv))


@singledispatch
def _run(command: Command, argv: list[str]) -> None:
    raise TypeError(
        f"command must be one of Compare, Predict, Diagnose, Sweep, Ntk, Prune, Eoc, got {type(command).__name__}"
    )


@_run.register
def _compare(command: Compare, argv: list[str]) -> None:
    names = ("comparison.png", "predicted.npz", "measured.npz", "comparison.csv")
    n_runs = whole_number("--runs", command.runs, minimum=2)
    folder = ResultFolder.prepared(command.output, default_name("compare", command), names)
    forecast, n_steps, seed = Forecast.of(command), command.training.steps, command.compute.seed
    problem, sgd, predicted = forecast.problem, forecast.sgd, forecast.predicted
    measured = forecast.work.stage(
        f"{n_runs} runs", lambda bar: sgdsde.run_ensemble(problem, sgd, n_steps, n_runs, seed=seed, progress=bar)
    )
    result = sgdsde.compare(predicted, measured)
    facts = forecast.facts() | {"verdict": result.verdict.name, "sentence": result.sentence}
    with folder.writing() as target:
        predicted.save(target / "predicted.npz")
        measured.save(target / "measured.npz")
        write_table(target / "comparison.csv", _comparison_columns(result))
        plots.plot_comparison(result, target / "comparison.png")
        write_manifest(target, names, facts_of("compare", command, argv) | facts)
    print(result)
    say_written(folder.path, names)


@_run.register
def _predict(command: Predict, argv: list[str]) -> None:
    names = ("prediction.png", "predicted.npz", "prediction.csv")
    folder = ResultFolder.prepared(command.output, default_name("predict", command), names)
    forecast = Forecast.of(command)
    predicted, facts = forecast.predicted, forecast.facts()
    with folder.writing() as target:
        predicted.save(target / "predicted.npz")
        write_table(target / "prediction.csv", _trajectory_columns(predicted))
        plots.plot_trajectory(predicted, target / "prediction.png")
        write_manifest(target, names, facts_of("predict", command, argv) | facts)
    print(predicted.dynamics)
    print(printed(_trajectory_columns(predicted, bands=("mean", "q10", "q90"))))
    say_written(folder.path, names)


@_run.register
def _diagnose(command: Diagnose, argv: list[str]) -> None:
    studies.diagnose(command, argv)


@_run.register
def _sweep(command: Sweep, argv: list[str]) -> None:
    studies.sweep(command, argv)


@_run.register
def _prune(command: Prune, argv: list[str]) -> None:
    masks.prune(command, argv)


@_run.register
def _ntk(command: Ntk, argv: list[str]) -> None:
    names = ("kernel.npz",)
    top, batch_size = whole_number("--top", command.top), whole_number("--batch-size", command.batch_size, minimum=1)
    folder = ResultFolder.prepared(command.output, default_name("ntk", command), names)
    work = Work(command.compute.quiet)
    problem = build_problem(command.data, command.network, command.compute, command.loss)
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
        write_manifest(target, names, facts_of("ntk", command, argv) | facts | provenance)
    print(problem)
    print(f"kernel: {facts['size']} x {facts['size']}, trace {facts['trace']:.6g}, rank {facts['rank']}")
    print(f"condition on its range: {facts['condition']:.4g}")
    print(f"largest eigenvalues: {' '.join(f'{value:.5g}' for value in values[:top].tolist())}")
    drawn = command.sampling.replace("_", " ")
    of = "" if command.loss == "mse" else ", of the quadratic at the initial outputs"
    print(f"largest stable learning rate, batches of {batch_size} {drawn}{of}: {facts['max_lr']:.6g}")
    print(f"largest stable learning rate, full batch{of}: {facts['max_lr_full_batch']:.6g}")
    say_written(folder.path, names)


@_run.register
def _eoc(command: Eoc, argv: list[str]) -> None:
    sigma_w, q, is_stable = meanfield.edge_of_chaos(command.activation, command.sigma_b)
    print(f"{command.activation} at sigma_b = {command.sigma_b:g}: sigma_w = {sigma_w:.10g}, variance q = {q:.10g}")
    print("the variance is a stable fixed point" if is_stable else "the variance is an unstable fixed point")


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What ``predict`` and ``compare`` share."""

    problem: sgdsde.Problem
    sgd: sgdsde.SGD
    predicted: sgdsde.Trajectory
    work: Work

    @classmethod
    def of(cls, command: Compare | Predict) -> Forecast:
        """Every option is checked before anything is computed; says what is trained, and how."""
        work, training = Work(command.compute.quiet), command.training
        n_steps = whole_number("--steps", training.steps, minimum=1)
        theory, rate = build_dynamics(command.theory.dynamics), parse_lr(training)
        build_sgd(training)
        problem = build_problem(command.data, command.network, command.compute, training.loss)
        linearization = work.stage("kernel", lambda bar: sgdsde.linearize(problem, progress=bar))
        lr, words = rate.resolved(training, linearization)
        sgd = build_sgd(training, lr)
        print(problem)
        print(f"{words}, batch size {training.batch_size}, {n_steps} steps", flush=True)
        predicted = work.stage(
            "prediction", lambda bar: sgdsde.predict(linearization, sgd, n_steps, dynamics=theory, progress=bar)
        )
        return cls(problem, sgd, predicted, work)

    def facts(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {
            "problem": repr(self.problem),
            "problem_digest": self.problem.digest,
            "lr": self.sgd.lr_at(0),
            "dynamics": self.predicted.dynamics,
            "past_mean_square_limit": self.predicted.mean_square_limit,
            "wall_time_s": self.work.seconds,
        }


def _trajectory_columns(
    trajectory: sgdsde.Trajectory, bands: Sequence[str] = ("mean", "std", "q10", "q90")
) -> dict[str, Tensor]:
    columns = {"step": trajectory.steps, "time": trajectory.times}
    for side, band in (("train", trajectory.train_loss), ("test", trajectory.test_loss)):
        for part in bands if band is not None else ():
            assert band is not None
            values = band.quantile(QUANTILES[part]) if part in QUANTILES else getattr(band, part)
            columns[f"{side}_{part}"] = values
    return columns


def _comparison_columns(result: sgdsde.Comparison) -> dict[str, Tensor]:
    rows = torch.searchsorted(result.measured.steps, result.train.steps)
    columns = {"step": result.train.steps, "time": result.measured.times[rows]}
    for side, curve in result.curves.items():
        error = getattr(result.measured, f"{side}_loss").standard_error[rows]
        columns |= {
            f"{side}_predicted": curve.predicted,
            f"{side}_measured": curve.measured,
            f"{side}_standard_error": error,
            f"{side}_relative_error": curve.relative_error,
            f"{side}_z_score": curve.z_score,
            f"{side}_coverage": curve.coverage,
        }
    return columns
