"""Refreshes of the kernel: their report, the margin to the stability limit, the warnings."""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import dataclass

import torch

from sgdsde.dynamics.moments.feature_state import Expectations
from sgdsde.noise.example_blocks import times_blocks
from sgdsde.sgd import SGD, StepPlan, sampling_factor
from sgdsde.stability.limits import limit_of_map
from sgdsde.stability.second_moments import SecondMomentMap

logger = logging.getLogger(__name__)

MARGIN_WARNED = 0.6
"""Share of the mean-square limit beyond which the fluctuations are no longer those of a nearly linear map; times
1 - momentum / 2: at momentum 0.9 the loss of a small tanh network was 3 % off at 0.27 of the limit and 13 % at 0.45."""

MARGIN_MODES = 64
"""Leading directions from which the limit is taken; the noise of the others counts as if it were theirs."""

CHANGE = 0.2
"""Relative change of kernel or learning rate after which the limit is taken anew."""

UNSETTLED = 20
"""Refreshes after which a kernel that has needed one at every other step or more does not settle."""


class KernelDriftWarning(UserWarning):
    """The kernel moves too fast for a kernel that is constant within a step, or does not settle."""


class NearLimitWarning(UserWarning):
    """The learning rate is near the mean-square limit of the kernel of the path; the message holds step and limit."""


@dataclass(frozen=True)
class Refresh:
    """One refresh of the kernel.

    Attributes:
        step: when. interval: steps to the next one.
        drift: relative change of the kernel over the interval. drift_from_start: since step 0 (Frobenius norm).
        margin: learning rate in units of the largest one that is stable in mean square with this kernel; NaN where the
            loss has no positive curvature, and at full batch, where nothing fluctuates.
        n_directions: of the weights in which the noise is followed.
        seconds: that the refresh took.
    """

    step: int
    interval: int
    drift: float
    drift_from_start: float
    margin: float
    n_directions: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"step {self.step}: kernel drift {self.drift:.3f} over the next {self.interval} steps, "
            f"{self.drift_from_start:.3f} from the start; {self.margin:.2f} of the mean-square limit; "
            f"{self.n_directions} directions; {self.seconds:.2f} s"
        )


class RefreshMonitor:
    """Looks at the refreshes of one prediction and warns once of each kind of trouble."""

    def __init__(self, tolerance: float, momentum: float) -> None:
        self._tolerance = tolerance
        self._margin_warned = MARGIN_WARNED * (1 - momentum / 2)
        self._refreshes = 0
        self._told: set[str] = set()

    def see(self, refresh: Refresh, lr: float) -> None:
        logger.info("%s", refresh)
        if refresh.drift > self._tolerance and refresh.interval == 1:
            self._tell(
                "drift",
                f"the kernel moves by {refresh.drift:.3g} in the single step {refresh.step}, more than "
                f"tolerance={self._tolerance:g}: the learning rate is too large for a kernel that is constant within a "
                "step",
                KernelDriftWarning,
            )
        self._refreshes += 1
        if self._refreshes >= UNSETTLED and 2 * self._refreshes > refresh.step:
            self._tell(
                "unsettled",
                f"the kernel does not settle: {self._refreshes} refreshes in the first {refresh.step} steps at "
                f"tolerance={self._tolerance:g} (drift {refresh.drift:.3g} over the last {refresh.interval}); the mean "
                "path may oscillate, use a smaller lr or a larger tolerance",
                KernelDriftWarning,
            )
        if refresh.margin > self._margin_warned:
            self._tell(
                "limit",
                f"at step {refresh.step} lr={lr:.6g} is {refresh.margin:.2f} of the mean-square limit "
                f"{lr / refresh.margin:.6g} of the kernel there: beyond {self._margin_warned:g} the fluctuations "
                "are large and the prediction is less certain",
                NearLimitWarning,
            )

    def _tell(self, kind: str, message: str, category: type[Warning]) -> None:
        if kind not in self._told:
            self._told.add(kind)
            warnings.warn(message, category, stacklevel=9)


class Margin:
    """Learning rate in units of the mean-square limit of the kernel of the path, made anew when either has changed."""

    def __init__(self, sgd: SGD, plan: StepPlan) -> None:
        self._sgd, self._plan = sgd, plan
        self._limit, self._noise = math.nan, math.nan
        self._seen: torch.Tensor | None = None

    def at(self, step: int, seen: Expectations) -> float:
        """At the features and the expected Hessians of one step."""
        lr, noise = float(self._plan.lr[step]), self._noise_factor(step)
        gram = seen.features.gram
        if noise == 0:
            return math.nan
        if self._seen is None or noise != self._noise or self._has_changed(gram):
            self._limit, self._noise, self._seen = self._limit_of(seen, noise), noise, gram
        return lr / self._limit

    def _has_changed(self, gram: torch.Tensor) -> bool:
        assert self._seen is not None
        old, new = (float(torch.linalg.norm(matrix)) for matrix in (self._seen, gram))
        return abs(new - old) > CHANGE * old

    def _noise_factor(self, step: int) -> float:
        """phi/B; shuffled epochs count as fresh batches."""
        if self._plan.sampling != "shuffled":
            return self._plan.noise_factor(step)
        batch_size = int(self._plan.batch_size[0])
        return sampling_factor(self._plan.n_train, batch_size, "without_replacement") / batch_size

    def _limit_of(self, seen: Expectations, noise: float) -> float:
        values, vectors = torch.linalg.eigh(seen.moments.hessian)
        if not values.max() > 0:
            return math.nan
        roots = (vectors * values.clamp_min(0).sqrt().unsqueeze(-2)) @ vectors.mT
        left, sizes, _ = torch.linalg.svd(times_blocks(roots, seen.features.train), full_matrices=False)
        kept = sizes[:MARGIN_MODES] > sizes[0] * 1e-6
        noise *= float(sizes.square().sum() / sizes[:MARGIN_MODES][kept].square().sum())
        left, squared = left[:, :MARGIN_MODES][:, kept], sizes[:MARGIN_MODES][kept].square()
        moments = SecondMomentMap(squared, left.contiguous(), n_outputs=len(roots[0]), curvature=1.0)
        return limit_of_map(moments, noise, sgd=self._sgd, precision=1e-2)
