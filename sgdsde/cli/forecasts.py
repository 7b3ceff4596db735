"""The commands that predict a loss curve: ``predict`` and ``compare``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import sgdsde
from sgdsde._checks import whole_number
from sgdsde.cli.builders import build_dynamics, build_problem, build_sgd, parse_lr, resolve_lr
from sgdsde.cli.costs import forecast_cost
from sgdsde.cli.options import Compare, Predict
from sgdsde.cli.results import ResultFolder, write_table
from sgdsde.cli.work import Work, default_name, facts_of, lists, printed, say_cost, say_written
from sgdsde.cost import ExpectedCost
from sgdsde.dynamics import Dynamics
from sgdsde.run_folder import write_manifest
from sgdsde.sweeps import LimitFraction

QUANTILES = {"q10": 0.1, "q90": 0.9}


def compare(command: Compare, argv: list[str]) -> dict[str, Any]:
    """Predict, train many times, print and write the comparison."""
    names = ("comparison.png", "predicted.npz", "measured.npz", "comparison.csv")
    n_runs = whole_number("--runs", command.runs, minimum=2)
    folder = ResultFolder.prepared(command.output, default_name("compare", command), names)
    asked = Asked.of(command)
    if command.output.dry_run:
        return say_cost("compare", asked.cost(n_runs))
    forecast, n_steps, seed = Forecast.of(asked, command), asked.n_steps, command.compute.seed
    problem, sgd, predicted = forecast.problem, forecast.sgd, forecast.predicted
    measured = forecast.work.stage(
        f"{n_runs} runs", lambda bar: sgdsde.run_ensemble(problem, sgd, n_steps, n_runs, seed=seed, progress=bar)
    )
    result = sgdsde.compare(predicted, measured)
    facts = forecast.facts() | {"verdict": result.verdict.name, "sentence": result.sentence}
    with folder.writing() as target:
        predicted.save(target / "predicted.npz")
        measured.save(target / "measured.npz")
        write_table(target / "comparison.csv", columns := _comparison_columns(result))
        result.plot(target / "comparison.png")
        manifest = write_manifest(target, names, facts_of("compare", command, argv, facts["lr"]) | facts)
    print(result)
    return say_written(folder.path, manifest, losses=lists(columns))


def predict(command: Predict, argv: list[str]) -> dict[str, Any]:
    """Predict without training; print and write the losses."""
    names = ("prediction.png", "predicted.npz", "prediction.csv")
    folder = ResultFolder.prepared(command.output, default_name("predict", command), names)
    asked = Asked.of(command)
    if command.output.dry_run:
        return say_cost("predict", asked.cost())
    forecast = Forecast.of(asked, command)
    predicted, facts = forecast.predicted, forecast.facts()
    with folder.writing() as target:
        predicted.save(target / "predicted.npz")
        write_table(target / "prediction.csv", columns := _trajectory_columns(predicted))
        predicted.plot(target / "prediction.png")
        manifest = write_manifest(target, names, facts_of("predict", command, argv, facts["lr"]) | facts)
    print(predicted.dynamics)
    print(printed(_trajectory_columns(predicted, bands=("mean", "q10", "q90"))))
    return say_written(folder.path, manifest, losses=lists(columns))


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is to be predicted, every option checked; ``sgd`` has a learning rate of 1 where a part is asked for."""

    problem: sgdsde.Problem
    sgd: sgdsde.SGD
    rate: float | LimitFraction
    theory: Dynamics | None
    n_steps: int

    @classmethod
    def of(cls, command: Compare | Predict) -> Asked:
        training = command.training
        n_steps = whole_number("--steps", training.steps, minimum=1)
        theory, rate = build_dynamics(command.theory.dynamics), parse_lr(training)
        sgd = build_sgd(training, rate if isinstance(rate, float) else 1.0)
        problem = build_problem(command.data, command.network, command.compute, training.loss)
        return cls(problem, sgd, rate, theory, n_steps)

    def cost(self, n_runs: int = 0) -> ExpectedCost:
        return forecast_cost(self.problem, self.sgd, self.n_steps, self.theory, n_runs)


@dataclasses.dataclass(frozen=True)
class Forecast:
    """A prediction with the problem and the SGD that it is for."""

    problem: sgdsde.Problem
    sgd: sgdsde.SGD
    predicted: sgdsde.Trajectory
    work: Work

    @classmethod
    def of(cls, asked: Asked, command: Compare | Predict) -> Forecast:
        """The forecast of a command; prints problem and SGD."""
        work, training, problem = Work(command.compute.quiet), command.training, asked.problem
        n_steps, theory = asked.n_steps, asked.theory
        linearization = work.stage("kernel", lambda bar: sgdsde.linearize(problem, progress=bar))
        lr, words = resolve_lr(asked.rate, training, linearization)
        sgd = build_sgd(training, lr)
        print(problem)
        print(f"{words}, batch size {training.batch_size}, {n_steps} steps", flush=True)
        predicted = work.stage(
            "prediction", lambda bar: sgdsde.predict(linearization, sgd, n_steps, dynamics=theory, progress=bar)
        )
        return cls(problem, sgd, predicted, work)

    def facts(self) -> dict[str, Any]:
        """Entries of the manifest."""
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
