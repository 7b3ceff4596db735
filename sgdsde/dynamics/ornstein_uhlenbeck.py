"""The mean-reverting Gaussian process of the outputs, with its noise frozen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from sgdsde._checks import complaint, word
from sgdsde._types import Progress
from sgdsde.dynamics.continuous.flow import Flow
from sgdsde.dynamics.continuous.momentum_flow import MomentumFlow
from sgdsde.dynamics.dynamics import Dynamics, NoiseSource
from sgdsde.dynamics.moment_equations import check_rtol
from sgdsde.dynamics.moments.modes import Modes
from sgdsde.dynamics.output_law import OutputLaw
from sgdsde.linearization import Linearization
from sgdsde.sgd import SGD

Freeze = Literal["mean_path", "init"]

STATIONARY_STEP = -1
"""The ``step`` of a law that is reached by no step."""


@dataclass(frozen=True)
class OrnsteinUhlenbeck(Dynamics):
    """de = -(H e + wd (e + b)) dt + sqrt(phi lr / B) K C(t)^{1/2} dW with C(t) frozen: a Gaussian process,

        m(t) = exp(-H t) e_0,   S(t) = (phi lr / B) int_0^t exp(-H (t - s)) K C(s) K exp(-H (t - s)) ds

    (without decay). Frozen means that C(s) follows from the mean alone and does not see the fluctuations.

    Args:
        freeze: ``"mean_path"``: C(s) = C(r(m(s))), the noise that full-batch training would meet. It falls with the
            mean residual, and is too small once the spread carries much of the loss.
            ``"init"``: C = C(r_0), the noise at initialization, and with it
            S_ij = (phi lr / B) (K C K)_ij (1 - exp(-(h_i + h_j) t)) / (h_i + h_j). Noise of SGD shrinks with the
            residual, so the late loss is over-predicted, several-fold where the data are interpolated.
        rtol: estimated error of each panel of the quadrature, relative to the covariance that it adds ("mean_path").
    Exactness: the exact law of the stated process, to rounding ("init") or rtol; the process approximates SGD.
        Weight decay, label noise, schedules (piecewise constant in time) and momentum are included, the last as the
        first-order pair of residual and buffer of ``continuous.momentum_flow``.
    Cost: "init": one product d^3 for the noise, then r^2 numbers a recorded step. "mean_path": such a product for each
        of 10 nodes a panel; panels grow with the time. A schedule starts a panel at each change.
    Source: Hayou, Doucet, Rousseau, arXiv:1905.13654.
    """

    freeze: Freeze = "mean_path"
    rtol: float = 1e-10

    def __post_init__(self) -> None:
        word("freeze", self.freeze, get_args(Freeze))
        check_rtol(self.rtol)

    squared_error_only: ClassVar[bool] = True
    independent_batches_only: ClassVar[bool] = True

    @property
    def noise_source(self) -> NoiseSource:
        return "start" if self.freeze == "init" else "mean"

    def noise_assumption(self, sgd: SGD) -> str:
        return (
            f"a Gaussian process, its noise frozen {'along the mean' if self.freeze == 'mean_path' else 'at the start'}"
        )

    def evolve(
        self, linearization: Linearization, sgd: SGD, record: Sequence[int], *, progress: Progress = None
    ) -> Iterator[OutputLaw]:
        self.check(linearization, sgd)
        modes = Modes.of(linearization)
        plan = sgd.plan(modes.n_train, record[-1])
        if sgd.momentum:
            pair = MomentumFlow(modes, sgd, plan, order=1, noise=self.noise_source)
            return pair.evolve(record, rtol=self.rtol, progress=progress)
        flow = Flow(modes, sgd, plan, order=1, noise=self.noise_source)
        if self.freeze == "mean_path":
            return flow.evolve(record, rtol=self.rtol, progress=progress)
        return _from_initial_noise(modes, flow, record)

    def stationary(self, linearization: Linearization, sgd: SGD) -> OutputLaw:
        """The law for t -> infinity, from H S + S H = (phi lr / B) K C K with C at the fixed point of the mean.

        Args:
            sgd: constant learning rate and batch size.
        Returns:
            A law with time = inf and step = -1. "mean_path": C at the full-batch optimum, zero where the training data
            are interpolated; "init": C at initialization.
        """
        if sgd.momentum or sgd.sampling == "shuffled":
            raise self.refuse("momentum or shuffled epochs in a stationary law", "evolve, or MomentRecursion")
        if callable(sgd.lr) or callable(sgd.batch_size):
            expected = "constant for a stationary law"
            raise ValueError(complaint("lr and batch_size", expected, "a function of the step", "use numbers"))
        modes = Modes.of(linearization)
        flow = Flow(modes, sgd, sgd.plan(modes.n_train, 1), order=1, noise=self.noise_source)
        (segment,) = flow.segments()
        diffusion = segment.lr * flow.step_noise(segment, _no_spread(modes), flow.level)
        rates = segment.rate[:, None] + segment.rate
        covariance = torch.where(rates > 0, diffusion / rates, 0.0)
        factor = 0.0 if sgd.weight_decay else 1.0
        return modes.law(STATIONARY_STEP, math.inf, flow.level, covariance, weight_factor=factor)


def _from_initial_noise(modes: Modes, flow: Flow, record: Sequence[int]) -> Iterator[OutputLaw]:
    wanted, covariance = set(record), _no_spread(modes)
    if 0 in wanted:
        yield modes.law(0, 0.0, modes.start, covariance)
    for segment in flow.segments():
        diffusion = segment.lr * flow.step_noise(segment, covariance, modes.start)
        for step in (k for k in range(segment.start + 1, segment.stop + 1) if k in wanted or k == segment.stop):
            duration = segment.lr * (step - segment.start)
            reached = _relaxed(covariance, diffusion, segment.rate, duration)
            if step in wanted:
                yield flow.law(segment, step, reached)
        covariance = reached


def _no_spread(modes: Modes) -> Tensor:
    return torch.zeros_like(modes.values).diag()


def _relaxed(covariance: Tensor, diffusion: Tensor, rate: Tensor, duration: float) -> Tensor:
    """S after a time under constant drift and diffusion."""
    rates = rate[:, None] + rate
    gained = torch.where(rates > 0, -torch.expm1(-rates * duration) / rates, duration)
    return covariance * torch.exp(-rates * duration) + diffusion * gained
