"""Mean and covariance of SGD in the eigenbasis of the kernel, step by step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde.dynamics.dynamics import NoiseSource
from sgdsde.dynamics.moments.modes import Modes
from sgdsde.dynamics.moments.state import MomentState
from sgdsde.dynamics.moments.variances import BulkState
from sgdsde.dynamics.output_law import OutputLaw
from sgdsde.sgd import SGD, StepPlan
from sgdsde.step import ModalStep, Step


class ModalState(MomentState):
    """m' = G m + nu wd b and S' = G S G^T + nu nu^T (x) Q(S_ee + m_e m_e^T), z = (e, u) in every mode."""

    def __init__(self, modes: Modes, sgd: SGD, plan: StepPlan, *, noise: NoiseSource = "state") -> None:
        self._modes, self._sgd, self._plan = modes, sgd, plan
        self.mean = ModalMean(modes, sgd)
        self._noise = StepNoise(modes, sgd, plan, noise)
        self.spread = None if noise == "none" else Spread.zero(modes.values, with_buffer=sgd.momentum > 0)
        self.bulk = None if noise == "none" else BulkState.of(modes, sgd, plan)

    def law(self, step: int, time: float) -> OutputLaw:
        spread = None if self.spread is None else self.spread.ee
        law = self._modes.law(step, time, self.mean.e, spread, weight_factor=self.mean.weight_factor)
        return law if self.bulk is None else self.bulk.law(law)

    def advance(self, k: int) -> None:
        step = Step.of(self._sgd, float(self._plan.lr[k]), first=k == 0)
        modal = step.modal(self._modes.drift)
        if self.spread is not None:
            self.spread.advance(modal, self._noise(k, self.spread.ee, self.mean.e, bulk=self.bulk))
            if self.bulk is not None:
                self.bulk.advance(k, step)
        self.mean.advance(step, modal)


class StepNoise:
    """Covariance of one step's minibatch gradient, [r, r], taken where a theory takes it."""

    def __init__(self, modes: Modes, sgd: SGD, plan: StepPlan, source: NoiseSource) -> None:
        self._modes, self._plan, self._source = modes, plan, source
        self._label_variance = modes.n_columns * sgd.label_noise_std**2

    def __call__(
        self, k: int, covariance: Tensor | None, mean: Tensor, *, bulk: BulkState | None = None
    ) -> Tensor | None:
        """The covariance of the step k -> k + 1 at mean [r, k] and covariance [r, r]; None where there is none.

        A bulk adds to the noise what it has itself, and sees what its own comes from.
        """
        if self._source == "none":
            return None
        modes, factor, noise = self._modes, self._plan.noise_factor(k), None
        if factor:
            mean = modes.start if self._source == "start" else mean
            covariance = covariance if self._source == "state" else None
            blocks = modes.mean_blocks(mean)
            if covariance is None:
                moment = mean @ mean.mT
            else:
                moment, blocks = torch.addmm(covariance, mean, mean.mT), blocks + modes.examples.of(covariance)
            if bulk is not None:
                blocks = blocks + bulk.blocks()
                bulk.see(blocks)
            noise = modes.noise.of(blocks, moment, factor)
        if self._label_variance:
            noise = modes.noise.add_labels(noise, self._label_variance / int(self._plan.batch_size[k]))
        return noise


class ModalMean:
    """Expected residual and buffer of each mode, [r, k], and the factor g in theta = g theta_0 + J^T w."""

    def __init__(self, modes: Modes, sgd: SGD) -> None:
        self.e, self.u = modes.start.clone(), torch.zeros_like(modes.start)
        self.weight_factor, self._weight_buffer = 1.0, 0.0
        self._offset = sgd.weight_decay * modes.decay_offset() if sgd.weight_decay else None

    def advance(self, step: Step, modal: ModalStep) -> None:
        """One step; what decay adds is its pull wd b."""
        self.e, self.u = modal.move(self.e, self.u, self._offset)
        self.weight_factor, self._weight_buffer = step.move(self.weight_factor, self._weight_buffer, 0.0)


@dataclass
class Spread:
    """Covariance of residual and buffer in modal coordinates: three [r, r] blocks, one without momentum."""

    ee: Tensor
    eu: Tensor | None
    uu: Tensor | None

    @classmethod
    def zero(cls, values: Tensor, *, with_buffer: bool) -> Spread:
        """No spread of modes with these eigenvalues [r]."""
        r = len(values)
        ee, eu, uu = (values.new_zeros(r, r) if with_buffer or i == 0 else None for i in range(3))
        assert ee is not None
        return cls(ee, eu, uu)

    def advance(self, step: ModalStep, noise: Tensor | None) -> None:
        """S' = G S G^T + nu nu^T (x) noise; G is diagonal, so every product is elementwise."""
        a = step.ee[:, None]
        if self.eu is None:
            self.ee = self.ee * a * step.ee
            if noise is not None:
                self.ee += step.e_gain**2 * noise
            return
        assert self.uu is not None
        b, p, q = step.eu, step.ue[:, None], step.uu
        row_ee, row_eu = a * self.ee + b * self.eu.mT, a * self.eu + b * self.uu
        row_ue, row_uu = p * self.ee + q * self.eu.mT, p * self.eu + q * self.uu
        self.ee = row_ee * step.ee + row_eu * b
        self.eu = row_ee * step.ue + row_eu * q
        self.uu = row_ue * step.ue + row_uu * q
        if noise is not None:
            self.ee += step.e_gain**2 * noise
            self.eu += step.e_gain * step.u_gain * noise
            self.uu += step.u_gain**2 * noise
