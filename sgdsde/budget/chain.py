"""The chain of curves from the measured loss to the predicted one, and the terms between them.

    real runs -> linearized runs -> their expectation -> Gaussian noise -> SDE -> noise frozen -> closure -> prediction

Every term is the difference of two neighbors, so they add up whatever the dynamics. A dynamics has its place on the
way; where a curve does not apply it is the one before, and the term is exactly zero.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde._checks import complaint
from sgdsde.bands import LossBand
from sgdsde.budget.result import TERMS, CurveBudget, Term
from sgdsde.trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class Curve:
    """One curve of the chain, and what it is."""

    trajectory: Trajectory
    note: str

    def band(self, side: str) -> LossBand:
        """The loss of one side, which must be there."""
        band: LossBand | None = getattr(self.trajectory, f"{side}_loss")
        assert band is not None
        return band

    def first_runs(self, n_runs: int) -> Curve:
        """The curve of the first of its runs alone; train and test loss only."""
        bands = [self.trajectory.train_loss, self.trajectory.test_loss]
        first = [None if b is None or b.samples is None else LossBand.from_samples(b.samples[:n_runs]) for b in bands]
        changes = {"train_loss": first[0], "test_loss": first[1], "n_runs": n_runs}
        return Curve(Trajectory(**{**vars(self.trajectory), **changes}), self.note)


@dataclass(frozen=True, eq=False)
class Chain:
    """One curve more than there are terms, in order.

    Attributes:
        reasons: by term, why it is zero where its two curves are one.
    """

    curves: Sequence[Curve]
    reasons: Mapping[str, str]

    def check_finite(self) -> None:
        """Raise ``ValueError`` where a loss or its standard error is not finite."""
        for curve in self.curves:
            for side in self.sides:
                band = curve.band(side)
                bad = ~(torch.isfinite(band.mean) & torch.isfinite(band.standard_error))
                if bad.any():
                    where = f"at step {int(curve.trajectory.steps[bad][0])} in the {side} loss of {curve.note}"
                    remedy = "use a smaller lr (see sgdsde.stability.max_lr), or record earlier steps"
                    raise ValueError(complaint("losses", "finite to be budgeted", f"infinity {where}", remedy))

    @property
    def sides(self) -> list[str]:
        return ["train"] if self.curves[0].trajectory.test_loss is None else ["train", "test"]

    def budget(self, side: str) -> CurveBudget:
        """The terms of one curve."""
        terms = {}
        for name, (left, right) in zip(TERMS, itertools.pairwise(self.curves)):
            a, b = left.band(side), right.band(side)
            if left is right:
                zero = torch.zeros_like(a.mean)
                terms[name] = Term(zero, zero, f"0: {self.reasons[name]}")
            else:
                terms[name] = Term(a.mean - b.mean, standard_error(name, a, b), f"{left.note} - {right.note}")
        real, used = self.curves[0].band(side), self.curves[-1].band(side)
        return CurveBudget(real.mean, used.mean, _independent(real, used), terms)


def standard_error(name: str, a: LossBand, b: LossBand) -> Tensor:
    """Standard error of mean a - mean b: runs on the same batches, the first runs of many, or independent samples."""
    if name == "linearization":
        assert a.samples is not None
        assert b.samples is not None
        return LossBand.from_samples(a.samples - b.samples).standard_error
    if name == "monte_carlo" and b.samples is not None:
        assert a.samples is not None
        return b.std * (1 / len(a.samples) - 1 / len(b.samples)) ** 0.5
    return _independent(a, b)


def _independent(a: LossBand, b: LossBand) -> Tensor:
    return (a.standard_error.square() + b.standard_error.square()).sqrt()
