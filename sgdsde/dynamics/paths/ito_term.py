"""The Ito term of a network of finite width along its predicted mean path."""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sgdsde._checks import complaint, whole_number
from sgdsde.dynamics.gradient_descent import GradientDescent
from sgdsde.linearization import Linearization
from sgdsde.noise import ito_term
from sgdsde.sgd import SGD, StepPlan


@dataclass(frozen=True)
class ItoTerm:
    """Drift (phi lr / 2B) Gamma of the outputs, Gamma = tr(Sigma Hess f): noise in the weights moves a curved output.

    Gamma is evaluated at the initial weights, for the gradients r along full-batch descent, at ``n_refreshes`` steps
    (0, n_steps and geometric in between), and is linear between them in the variance that the noise has added. It
    displaces all outputs by a known path, which the gradients of every sample path see.

    Args:
        n_directions: of the noise, the largest first (``noise.ito_term``); more than n means all.
        n_refreshes: at how many steps.
    Exactness: the leading term in 1/width of this drift; that of the moving kernel, of the same order, is left out.
    Cost: n_refreshes * n_directions times five passes over the data.
    """

    n_directions: int = 8
    n_refreshes: int = 8

    def __post_init__(self) -> None:
        whole_number("n_directions", self.n_directions, minimum=1)
        whole_number("n_refreshes", self.n_refreshes, minimum=2)

    def displacement(self, linearization: Linearization, sgd: SGD, plan: StepPlan) -> Displacement:
        """The displacement of the outputs by the term, up to each step."""
        if sgd.momentum or sgd.weight_decay or sgd.label_noise_std:
            received = "momentum, weight decay or label noise"
            raise ValueError(complaint("ito_term", "used with plain SGD", received, "use ito_term=None"))
        n_steps, count = len(plan), min(self.n_directions, linearization.problem.n_train)
        spaced = np.geomspace(max(n_steps, 1), 1, self.n_refreshes - 1).round().astype(int)
        refreshes = sorted({0, n_steps, *(int(k) for k in spaced if k < n_steps)})
        variances = [float(plan.lr[k]) ** 2 * plan.noise_factor(k) / 2 for k in range(n_steps)]
        clock = np.concatenate([[0.0], np.cumsum(variances)])
        terms = []
        for law in GradientDescent().evolve(linearization, sgd, refreshes):
            gradient = linearization.problem.criterion.gradient(law.mean, linearization.targets)
            train, test = ito_term(linearization, gradient, n_directions=count)
            terms.append(train if test is None else torch.cat([train, test]))
        return Displacement(clock, refreshes, terms)


class Displacement:
    """Integral of Gamma over the clock phi lr^2 / 2B, Gamma piecewise linear between some steps."""

    def __init__(self, clock: np.ndarray, steps: list[int], terms: list[Tensor]) -> None:
        self._clock, self._terms = clock, terms
        self._knots = [float(clock[k]) for k in steps]
        self._reached = [torch.zeros_like(terms[0])]
        for i in range(len(steps) - 1):
            width = self._knots[i + 1] - self._knots[i]
            self._reached.append(self._reached[i] + width / 2 * (terms[i] + terms[i + 1]))

    def at(self, step: float) -> Tensor:
        """[n + m, c]; between two steps the clock is linear."""
        now = float(np.interp(step, np.arange(len(self._clock)), self._clock))
        i = bisect.bisect_right(self._knots, now) - 1
        if i + 1 == len(self._knots):
            return self._reached[i]
        width = self._knots[i + 1] - self._knots[i]
        place = (now - self._knots[i]) / width
        slope = self._terms[i + 1] - self._terms[i]
        return self._reached[i] + width * (place * self._terms[i] + place**2 / 2 * slope)
