"""Response surface of the mean loss between real ensembles, at every learning rate and batch size of a box."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from sgdsde._checks import complaint, whole_number
from sgdsde._types import Progress
from sgdsde.bands import LossBand
from sgdsde.measurement import clock, plain_seconds
from sgdsde.problem import Problem, check_training
from sgdsde.sgd import SGD, check_sgd
from sgdsde.surface.anchors import PLACES, SEVERAL, Anchor, anchor, at_place
from sgdsde.surface.effective_time import effective_time, step_at
from sgdsde.surface.kriging import Kriging
from sgdsde.trajectory import Trajectory

LARGEST_SPREAD = 0.3
"""Relative spread of one run from which on the surface has been wrong without its standard error showing it."""

MISFIT, MISFIT_ERRORS = 0.03, 3.0
"""The check refutes the surface where it is off by more than 3 % and by more than 3 of its standard errors."""

SAME = ("momentum", "dampening", "nesterov", "weight_decay", "sampling", "drop_last", "label_noise_std")
"""Words that every setting of a surface shares with its base."""


class SurfaceWarning(UserWarning):
    """A surface that was fitted and will not answer; the message says why."""


@dataclass(frozen=True, eq=False)
class EnsembleSurface:
    """Mean loss of SGD at every learning rate and batch size of a box, interpolated between real ensembles.

    Five ensembles: four anchors that the surface passes through, at (lr, B) = (1.2, 1), (0.6, 1), (1.2, 4), (0.5, 4)
    times those of the base, and one inside, (0.8, 2), that checks it. At equal effective time, train and test apart,

        log E L = c0 + c1 e + c2 e^2 + c3 x,    x = lr / lr_0,  e = x / (B / B_0)

    and what the check finds left out is part of the standard error (and, by kriging, of the mean).

    Attributes:
        sgd: the base setting. n_steps: its steps; other settings are known up to the same effective time.
        times: effective times, increasing, at which the anchors were evaluated.
        anchors: the ensembles, the check last. cost_in_runs: processor time of all of them in plain runs of the base.
    """

    problem: Problem
    sgd: SGD
    n_steps: int
    times: tuple[float, ...]
    anchors: tuple[Anchor, ...]
    cost_in_runs: float

    @classmethod
    def fit(
        cls,
        problem: Problem,
        sgd: SGD,
        n_steps: int,
        *,
        n_runs: int | None = None,
        seed: int = 0,
        memory: int | None = None,
        progress: Progress = None,
    ) -> EnsembleSurface:
        """Train at the anchors.

        Args:
            sgd: the base; the box reaches from 0.6 (at 4 B: 0.5) to 1.2 of its lr and from B to 4 B. Momentum, decay,
                sampling and label noise are those of every setting: another momentum takes another surface.
            n_runs: runs at each anchor, 4 or more; default 12 to 32, as many as a standard error of 2.5 % takes.
        Warns:
            SurfaceWarning: it will answer nothing, because of the spread of one run or the misfit at the check.
        Raises:
            ValueError: schedules; a batch of 4 B that the training set does not hold.
        Cost: five ensembles of some 1.3 n_steps steps and 20 evaluations of the loss: ``cost_in_runs``.
        """
        check_sgd(sgd)
        n_steps = whole_number("n_steps", n_steps, minimum=4)
        n_runs = None if n_runs is None else whole_number("n_runs", n_runs, minimum=4)
        if not sgd.is_constant:
            remedy = "use sgdsde.measure(problem, sgd, n_steps), which takes schedules"
            raise ValueError(complaint("sgd", "of constant lr and batch_size", "a schedule", remedy))
        check_training(problem, sgd)
        for place in PLACES:
            at_place(sgd, place).plan(problem.n_train, 1)
        start = clock(problem.device)
        end = effective_time(n_steps, sgd.lr_at(0), sgd.momentum)
        first = max(min(4.0, n_steps / 4), n_steps / 64)
        steps = np.unique(np.round(np.geomspace(first, n_steps, SEVERAL), 6))
        times = (*(effective_time(float(k), sgd.lr_at(0), sgd.momentum) for k in steps[:-1]), end)
        words = {"n_runs": n_runs, "seed": seed, "memory": memory, "progress": progress}
        anchors = tuple(anchor(problem, sgd, place, times, **words) for place in PLACES)  # type: ignore[arg-type]
        cost = (clock(problem.device) - start) / plain_seconds(problem, sgd, n_steps)
        made = cls(problem, sgd, n_steps, times, anchors, cost)
        if made.refusal:
            warnings.warn(f"this surface answers nothing: {made.refusal}", SurfaceWarning, stacklevel=2)
        return made

    @property
    def misfit(self) -> dict[str, Tensor]:
        """By side: log of the check's mean loss less what the other four say, [T]."""
        return {side: self._contrast @ self._logs(side) for side in self._sides}

    @property
    def misfit_error(self) -> dict[str, Tensor]:
        """By side: the standard error of ``misfit`` from the spread of the runs, [T]."""
        return {side: (self._contrast.square() @ self._variances(side)).sqrt() for side in self._sides}

    @property
    def refusal(self) -> str:
        """Why the surface must not be used; empty where nothing speaks against it."""
        spread = max(self.anchors, key=lambda each: each.largest_spread)
        if not spread.largest_spread <= LARGEST_SPREAD:
            where = f"lr={spread.sgd.lr:.4g}, batch_size={spread.sgd.batch_size}"
            return (
                f"one run spreads by {100 * spread.largest_spread:.2g} % of the mean loss at {where}, beyond "
                f"{100 * LARGEST_SPREAD:g} %, where surfaces have been wrong unnoticed; use sgdsde.measure"
            )
        for side, misfit in self.misfit.items():
            bad = (misfit.abs() > MISFIT) & (misfit.abs() > MISFIT_ERRORS * self.misfit_error[side])
            if bad.any():
                worst = float(misfit.abs()[bad].max())
                return (
                    f"the ensemble inside the box is off by {100 * worst:.2g} % of the {side} loss, more than "
                    f"{100 * MISFIT:g} % and {MISFIT_ERRORS:g} standard errors; use sgdsde.measure, or a smaller lr"
                )
        return ""

    def at(self, sgd: SGD) -> Trajectory:
        """The mean loss at another setting of the box, without any run of it.

        Returns:
            An interpolated ``Trajectory`` at about ten steps: mean, standard error (of the runs, and of the model as
            the check shows it), and the spread over runs, itself interpolated (log std on the same surface). At an
            anchor's own setting its measured ensemble, as it is.
        Raises:
            ValueError: outside the box, another momentum, decay or sampling, a schedule, or a surface that its check or
                the spread of one run speaks against (``refusal``).
        Exactness: docs/measuring.md holds it against runs.
        """
        check_sgd(sgd)
        place = self._place(sgd)
        if self.refusal:
            raise ValueError(complaint("the surface", "one that its own checks allow", self.refusal))
        for each in self.anchors:
            if math.isclose(place[0], each.place[0], rel_tol=1e-9) and place[1] == each.place[1]:
                return each.measured
        lr, momentum = sgd.lr_at(0), sgd.momentum
        steps = sorted({max(1, round(step_at(time, lr, momentum))) for time in self.times})
        if effective_time(steps[-1], lr, momentum) > self.times[-1] * (1 + 1e-9):
            steps[-1] -= 1
        steps = sorted({0, *steps})
        at = np.array([effective_time(k, lr, momentum) for k in steps])
        bands = {side: self._band(side, place, at) for side in self._sides}
        error = max(float((band.standard_error / band.mean).max()) for band in bands.values())
        misfit = max(float(values.abs().max()) for values in self.misfit.values())
        n_runs = sum(each.measured.n_runs for each in self.anchors)
        return Trajectory(
            steps=torch.tensor(steps),
            times=lr * torch.tensor(steps, dtype=torch.float64),
            train_loss=bands["train"],
            test_loss=bands.get("test"),
            train_outputs=None,
            test_outputs=None,
            n_runs=0,
            dynamics="interpolated between real ensembles at other learning rates and batch sizes",
            problem_digest=self.problem.digest,
            diverged_at=torch.zeros(0, dtype=torch.int64),
            origin="interpolated",
            obtained=f"interpolated between {n_runs} real runs at {len(self.anchors)} other learning rates and batch "
            f"sizes, standard error {100 * error:.2g} % at the worst step, misfit at the check {100 * misfit:.2g} %",
            effort={
                "n_runs": float(n_runs),
                "relative_standard_error": error,
                "misfit": misfit,
                "cost_in_runs": self.cost_in_runs,
            },
        )

    def _place(self, sgd: SGD) -> tuple[float, float]:
        if not sgd.is_constant:
            raise ValueError(complaint("sgd", "of constant lr and batch_size", "a schedule", "use sgdsde.measure"))
        for name in SAME:
            mine, other = getattr(self.sgd, name), getattr(sgd, name)
            if mine != other:
                remedy = f"fit another surface with {name}={other!r}"
                raise ValueError(complaint(name, f"{mine!r}, that of the surface's anchors", repr(other), remedy))
        x, batch = sgd.lr_at(0) / self.sgd.lr_at(0), sgd.batch_size_at(0) / self.sgd.batch_size_at(0)
        base = self.sgd.batch_size_at(0)
        if not 1 <= batch <= PLACES[2][1]:
            expected = f"within {base} ... {PLACES[2][1] * base}, the box of the surface"
            raise ValueError(complaint("batch_size", expected, sgd.batch_size, "fit a surface around it"))
        low = PLACES[1][0] + (PLACES[3][0] - PLACES[1][0]) * math.log(batch) / math.log(PLACES[3][1])
        if not low * (1 - 1e-9) <= x <= PLACES[0][0] * (1 + 1e-9):
            bounds = f"{low * self.sgd.lr_at(0):.4g} ... {PLACES[0][0] * self.sgd.lr_at(0):.4g}"
            expected = f"within {bounds}, the box of the surface at batch_size={sgd.batch_size}"
            raise ValueError(complaint("lr", expected, sgd.lr, "fit a surface around it"))
        return x, batch

    def _band(self, side: str, place: tuple[float, float], at: np.ndarray) -> LossBand:
        """Mean, spread and standard error at effective times ``at``, the first of which is 0."""
        logs, variances = self._logs(side).numpy(), self._variances(side).numpy()
        found = [self._kriging.predict(place, tau, variances[:, i]) for i, tau in enumerate(self._tau)]
        mean = np.array([weights @ logs[:, i] for i, (weights, _) in enumerate(found)])
        error = np.sqrt([error for _, error in found])
        stds = np.stack([(each.spread(side)).clamp_min(1e-300).log().numpy() for each in self.anchors])
        spread = np.exp([weights @ stds[:, i] for i, (weights, _) in enumerate(found)])
        times = np.array([0.0, *self.times])
        knots = np.array([math.log(float(self.anchors[0].measured.losses[side].mean[0])), *mean])
        expected = torch.from_numpy(np.exp(PchipInterpolator(times, knots)(at)))
        relative = [np.interp(at, times, [0.0, *values]) for values in (spread, error)]
        return LossBand(expected, *(expected * torch.from_numpy(values) for values in relative))

    @property
    def _sides(self) -> list[str]:
        return list(self.anchors[0].losses)

    @cached_property
    def _kriging(self) -> Kriging:
        return Kriging(list(PLACES))

    @property
    def _contrast(self) -> Tensor:
        return torch.from_numpy(self._kriging.contrast)

    @cached_property
    def _tau(self) -> np.ndarray:
        return self._kriging.tau(torch.stack(list(self.misfit.values()), dim=1).numpy())

    def _logs(self, side: str) -> Tensor:
        return torch.stack([each.log_mean(side) for each in self.anchors])

    def _variances(self, side: str) -> Tensor:
        return torch.stack([each.variance(side) for each in self.anchors])
