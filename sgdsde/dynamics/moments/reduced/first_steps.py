"""The first steps of a reduced prediction, by the recursion itself: its start, and losses that it is checked by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde.dynamics.moments.modal_state import ModalState
from sgdsde.dynamics.moments.modes import Modes
from sgdsde.dynamics.moments.state import march
from sgdsde.dynamics.moments.variances import BulkState
from sgdsde.dynamics.output_law import OutputLaw
from sgdsde.sgd import SGD

EXACT_STEPS = 16
"""First steps without momentum: they hold what decays or alternates too fast for resolvents at t <= 1/2."""

BUFFER_LIFETIMES = 5.0
"""Where the model starts with momentum: once momentum^k is exp(-5) of the tolerance, oscillations have died out."""

CHECKED_LIFETIMES = 2.0
"""How much longer the recursion is followed with momentum; in the second half the model is held against it."""


@dataclass(frozen=True, eq=False)
class FirstSteps:
    """Attributes:
    begin: the step at which the model starts. first: the step from which on laws are its own.
    laws: those of recorded steps before ``first``.
    mean, core: mean [modes, k] and covariance [modes, modes] at ``begin``. bulk: as ``ModalState`` has it.
    buffer: mean u, covariances eu and uu at ``begin``; None without momentum.
    checked: steps after ``begin``, counted from it, and the expected squared residual at each.
    """

    begin: int
    first: int
    laws: list[OutputLaw]
    mean: Tensor
    core: Tensor
    bulk: BulkState | None
    buffer: tuple[Tensor, Tensor, Tensor] | None
    checked: tuple[list[int], Tensor]

    @classmethod
    def of(cls, modes: Modes, sgd: SGD, record: Sequence[int], tolerance: float) -> FirstSteps:
        """Of the recursion, with laws at the steps of ``record`` that come before the model's."""
        first = begin = exact_steps(sgd, tolerance)
        checks: list[int] = []
        if sgd.momentum:
            begin = _after_lifetimes(sgd, BUFFER_LIFETIMES - math.log(tolerance))
            checks = list(range((begin + first + 1) // 2, first + 1))
        plan = sgd.plan(modes.n_train, first)
        state, times = ModalState(modes, sgd, plan), plan.times
        early, found, squares = {k for k in record if k < first}, [], []
        for k in march(state, sorted({*early, begin, *checks}), "moment recursion, first steps"):
            spread = state.spread
            assert spread is not None
            if k in early:
                found.append(state.law(k, float(times[k])))
            if k == begin:
                mean, core, bulk, buffer = state.mean.e, spread.ee, state.bulk, None
                if spread.eu is not None:
                    assert spread.uu is not None
                    buffer = state.mean.u, spread.eu, spread.uu
            if k in checks:
                squares.append(modes.residual(state.mean.e).square().sum() + spread.ee.trace())
        held = torch.stack(squares) if squares else modes.start.new_zeros(0)
        return cls(begin, first, found, mean, core, bulk, buffer, ([k - begin for k in checks], held))

    @property
    def is_certain(self) -> bool:
        """Nothing has a spread yet."""
        return not bool(self.core.any())


def exact_steps(sgd: SGD, tolerance: float) -> int:
    """How many first steps of a reduced prediction are made by the recursion."""
    if not sgd.momentum:
        return EXACT_STEPS
    return _after_lifetimes(sgd, BUFFER_LIFETIMES + CHECKED_LIFETIMES - math.log(tolerance))


def _after_lifetimes(sgd: SGD, count: float) -> int:
    return max(EXACT_STEPS, math.ceil(count / (1 - sgd.momentum)))
