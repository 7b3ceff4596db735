"""Advice on how to come by an expected loss: predict it, measure it, or interpolate between measurements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from sgdsde.dynamics import Dynamics

Way: TypeAlias = Literal["predict", "measure", "surface"]
"""Ways to an expected loss: theory alone, real runs of the setting, or a surface between runs of other settings."""


@dataclass(frozen=True)
class Advice:
    """One way to an expected loss, with the error and the cost to expect of it.

    Attributes:
        kind: "predict" (with ``dynamics``), "measure" (``n_runs`` real runs) or "surface" (``n_runs`` at each anchor).
        dynamics: of a prediction; else None. n_runs: None: as many as the tolerance takes.
        expected_error: relative error of the mean loss at the worst recorded step. interval: of it, (low, high).
        cost_in_runs: in plain runs of ``torch.optim.SGD``. reason: why this way, in words.
    """

    kind: Way
    dynamics: Dynamics | None
    n_runs: int | None
    expected_error: float
    interval: tuple[float, float]
    cost_in_runs: float
    reason: str = ""
