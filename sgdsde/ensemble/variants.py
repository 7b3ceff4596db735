"""Variants of SGD with the same gradient covariance: how an ensemble draws the gradients of its steps.

Every gradient here is a weighted sum of per-example gradients, so a variant is a choice of examples and weights, and
of how many of its steps make one step of SGD.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sgdsde._checks import whole_number
from sgdsde.ensemble.streams import RunStreams
from sgdsde.sgd import SGD, StepPlan


@dataclass(frozen=True, eq=False)
class Draw:
    """The examples of one step, [runs, B], and their weights in the gradient, [runs, B]; None: the mean, 1/B each.

    Each on the host or on the device that trains, where they were made.
    """

    indices: Tensor
    weights: Tensor | None = None


class Variant(ABC):
    """Distribution of the gradient of a step, and number of such steps that replace one step of SGD."""

    @property
    def substeps(self) -> int:
        """Steps of this kind in one step of SGD, each with its learning rate divided by as many."""
        return 1

    @property
    def is_weighted(self) -> bool:
        """Whether examples have weights of their own in a gradient."""
        return True

    @property
    def label(self) -> str:
        """Name of the runs in a trajectory."""
        return repr(self)

    @abstractmethod
    def check(self, sgd: SGD) -> None:
        """Raise ``ValueError`` where this is not defined, naming what is."""

    @abstractmethod
    def examples(self, plan: StepPlan) -> int:
        """The largest number of per-example gradients of one step of one run."""

    @abstractmethod
    def draws(self, plan: StepPlan, streams: RunStreams) -> Iterator[Draw]:
        """One draw for each step of the plan, which is that of ``refined``."""

    def refined(self, plan: StepPlan) -> StepPlan:
        """The plan with every step of SGD cut into ``substeps``."""
        if self.substeps == 1:
            return plan
        lr, batch_size, used = (np.repeat(part, self.substeps) for part in (plan.lr, plan.batch_size, plan.used))
        return dataclasses.replace(plan, lr=lr / self.substeps, batch_size=batch_size, used=used)

    def refuse(self, reason: str, alternative: str) -> ValueError:
        """The error for what this variant is not defined for."""
        return ValueError(f"{self!r} cannot represent {reason}; use {alternative}")


@dataclass(frozen=True)
class Minibatches(Variant):
    """Minibatches: SGD itself."""

    @property
    def is_weighted(self) -> bool:
        return False

    @property
    def label(self) -> str:
        return ""

    def check(self, sgd: SGD) -> None:
        pass

    def examples(self, plan: StepPlan) -> int:
        return int(plan.batch_size.max()) if len(plan) else 1

    def draws(self, plan: StepPlan, streams: RunStreams) -> Iterator[Draw]:
        return (Draw(indices) for indices in streams.batches(plan))


@dataclass(frozen=True)
class SVAG(Variant):
    """Stochastic variance amplified gradient: the same noise a unit of time from l times as many, smaller steps.

        x' = x - (lr/l) [ (1 + sqrt(2l - 1))/2 g_1 + (1 - sqrt(2l - 1))/2 g_2 ]

    with g_1, g_2 the gradients of two independent batches. The weights add up to 1 and their squares to l: the mean
    gradient is kept and its covariance is l times that of SGD. As l grows at a fixed learning rate the runs approach
    the stochastic differential equation of SGD, so runs with l > 1 that differ from SGD say that the equation does.

    Args:
        l: steps in one step of SGD; steps and times are reported in units of SGD's. 1 is SGD on the batches of g_1,
            bit for bit.
    Exactness: on a model linear in its parameters the first two moments of the outputs are those of ``EulerMaruyama``
        with l substeps. Weight decay, label noise and schedules are those of SGD, shared among the substeps.
    Raises (by ``run_ensemble``): momentum, whose memory would have to be rescaled with the step, and shuffled epochs,
        whose batches are not independent, are refused.
    Cost: gradients of 2 l B examples in one step of SGD.
    Source: Li, Malladi, Arora, arXiv:2102.12470.
    """

    l: int  # noqa: E741

    def __post_init__(self) -> None:
        object.__setattr__(self, "l", whole_number("l", self.l, minimum=1))

    @property
    def substeps(self) -> int:
        return self.l

    @property
    def is_weighted(self) -> bool:
        return self.l > 1

    def check(self, sgd: SGD) -> None:
        if sgd.momentum:
            raise self.refuse(f"momentum={sgd.momentum}", "momentum=0, or dynamics.MomentEquations for its SDE")
        if sgd.sampling == "shuffled":
            raise self.refuse("sampling='shuffled', whose batches are not independent", "an i.i.d. sampling")

    def examples(self, plan: StepPlan) -> int:
        return (1 if self.l == 1 else 2) * Minibatches().examples(plan)

    def draws(self, plan: StepPlan, streams: RunStreams) -> Iterator[Draw]:
        if self.l == 1:
            yield from Minibatches().draws(plan, streams)
            return
        root = math.sqrt(2 * self.l - 1)
        parts = torch.tensor([(1 + root) / 2, (1 - root) / 2], dtype=torch.float64)
        for first, second in zip(streams.batches(plan), streams.batches(plan, "second batches of SVAG")):
            size = first.shape[1]
            weights = (parts / size).repeat_interleave(size).to(streams.dtype)
            yield Draw(torch.cat([first, second], dim=1), weights.expand(len(first), -1))


@dataclass(frozen=True)
class NoisyGradient(Variant):
    """Full-batch descent with Gaussian noise of the covariance of SGD's gradient: the control for its shape.

        g = (1/n) sum_i [1 + sqrt(phi n / B) (xi_i - mean xi)] g_i,      xi_i ~ N(0, 1)

    Given the weights, mean and covariance (phi/B) Sigma are those of a minibatch of B; B = n without replacement is
    gradient descent exactly. Runs that differ from SGD's say that more than two moments of the noise matter.

    Exactness: as stated for any network and loss; on a model linear in its parameters under squared error the first
        two moments of the outputs are those of SGD at every step, with momentum, decay and schedules too.
    Raises (by ``run_ensemble``): shuffled epochs, whose steps are dependent, and label noise are refused.
    Cost: a full-batch gradient a step, at every batch size.
    """

    def check(self, sgd: SGD) -> None:
        if sgd.sampling == "shuffled":
            raise self.refuse("sampling='shuffled', whose steps are dependent", "an i.i.d. sampling")
        if sgd.label_noise_std:
            reason = f"label_noise_std={sgd.label_noise_std}, whose share of the noise is not weighed by examples"
            raise self.refuse(reason, "label_noise_std=0, or dynamics.SDEPaths")

    def examples(self, plan: StepPlan) -> int:
        return plan.n_train

    def draws(self, plan: StepPlan, streams: RunStreams) -> Iterator[Draw]:
        n, normal = plan.n_train, streams.normal("noisy gradient")
        everything = torch.arange(n, device=streams.device).expand(len(streams.runs), n)
        for k in range(len(plan)):
            factor = plan.noise_factor(k)
            if factor == 0:
                yield Draw(everything)
                continue
            xi = normal(n)
            yield Draw(everything, (1 + math.sqrt(factor * n) * (xi - xi.mean(1, keepdim=True))) / n)
