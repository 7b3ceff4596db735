"""The mean-reverting Gaussian process of the outputs, with its noise frozen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sgdsde._checks import word
from sgdsde._types import Progress
from sgdsde.dynamics.base import Dynamics, Modes, OutputLaw
from sgdsde.dynamics.moment_recursion import GradientNoise
from sgdsde.linearization import Linearization
from sgdsde.sgd import SGD, StepPlan


@dataclass(frozen=True)
class OrnsteinUhlenbeck(Dynamics):
    """de = -H e dt + sqrt(phi lr / B) K C^{1/2} dW with the noise covariance C frozen: a Gaussian process.

        m(t) = exp(-H t) e_0,   S(t) = (phi lr / B) int_0^t exp(-H s) K C K exp(-H s) ds

    so that in the eigenbasis S_ij = (phi lr / B) (K C K)_ij (1 - exp(-(h_i + h_j) t)) / (h_i + h_j): no time stepping.

    Args:
        freeze: ``"init"``: C = C(r_0), the noise at initialization. Noise of SGD shrinks with the residual, so the late
            loss is over-predicted, several-fold where the data are interpolated.
    Exactness: the exact law of the stated process, to rounding; the process is an approximation of SGD.
    Cost: one product d^3 for the noise, then r^2 numbers a recorded step (a step with another learning rate or batch
        size adds r^2).
    Source: Hayou, Doucet, Rousseau, arXiv:1905.13654.
    """

    freeze: Literal["init"] = "init"

    def __post_init__(self) -> None:
        word("freeze", self.freeze, get_args(Literal["init"]))

    def evolve(
        self, linearization: Linearization, sgd: SGD, record: Sequence[int], *, progress: Progress = None
    ) -> Iterator[OutputLaw]:
        if sgd.momentum or sgd.weight_decay or sgd.label_noise_std or sgd.sampling == "shuffled":
            raise self.refuse("momentum, weight decay, label noise or shuffled epochs", "MomentRecursion")
        modes = Modes(linearization)
        plan = sgd.plan(modes.n_train, record[-1])
        noise = GradientNoise(modes)(None, modes.start, 1.0)
        assert noise is not None
        covariance, times = torch.zeros_like(noise), plan.times
        reached = 0
        for step in record:
            for start, stop in plan.segments(reached, step):
                covariance = _advance(covariance, noise, modes.drift, plan, (start, stop))
            reached = step
            yield modes.law(step, times[step], torch.exp(-modes.drift * times[step]) * modes.start, covariance)


def _advance(covariance: Tensor, noise: Tensor, drift: Tensor, plan: StepPlan, segment: tuple[int, int]) -> Tensor:
    """The covariance after a stretch of constant learning rate and batch size."""
    start, stop = segment
    duration = float(plan.lr[start]) * (stop - start)
    diffusion = plan.noise_factor(start) * float(plan.lr[start])
    rates = drift[:, None] + drift
    decay = torch.exp(-rates * duration)
    return covariance * decay - diffusion * noise * torch.expm1(-rates * duration) / rates
