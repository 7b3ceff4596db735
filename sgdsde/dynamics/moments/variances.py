"""Variances of modes that are taken as uncorrelated, and of the bulk of directions that are not followed one by one."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sgdsde.dynamics.moments.modes import Modes
from sgdsde.dynamics.output_law import CovarianceWithBulk, OutputLaw
from sgdsde.sgd import SGD, StepPlan
from sgdsde.step import ModalStep, Step


class Variances:
    """Covariance of (e, u) in every mode by itself: [r] each."""

    def __init__(self, like: Tensor) -> None:
        self.ee, self.eu, self.uu = (torch.zeros_like(like) for _ in range(3))

    def advance(self, step: ModalStep, noise: Tensor) -> None:
        """z' = G z + nu noise of this variance [r]."""
        a, b, p, q = step.ee, step.eu, step.ue, step.uu
        ee, eu, uu = self.ee, self.eu, self.uu
        self.ee = a * a * ee + 2 * a * b * eu + b * b * uu + step.e_gain**2 * noise
        self.eu = a * p * ee + (a * q + b * p) * eu + b * q * uu + step.e_gain * step.u_gain * noise
        self.uu = p * p * ee + 2 * p * q * eu + q * q * uu + step.u_gain**2 * noise


class BulkState:
    """Variances v_j of the directions of a ``Bulk``, counts_j of each, spread over examples as rho is,

        v_j' = (1 - lr (h_j + wd))^2 v_j + lr^2 q h_j^2 (n sum_i rho_i tr D_i / d - v_j) + label noise,

    their residual having no mean; D_i, the second moment of example i, holds rho_i I sum_j counts_j v_j / d of theirs.
    """

    def __init__(self, modes: Modes, sgd: SGD, plan: StepPlan) -> None:
        assert modes.bulk is not None
        dtype = modes.values.dtype
        self._sgd, self._plan, self._n, self._c = sgd, plan, modes.n_train, modes.n_outputs
        self._label_variance = modes.n_columns * sgd.label_noise_std**2
        self.drift = modes.loss_curvature * modes.bulk.values.to(dtype) / modes.n_train
        self.counts, self.density = modes.bulk.counts.to(dtype), modes.bulk.density.to(dtype)
        self._variances, self._seen = Variances(self.drift), self.drift.new_zeros(())

    @classmethod
    def of(cls, modes: Modes, sgd: SGD, plan: StepPlan) -> BulkState | None:
        """None where no directions are left out, or where the tail is frozen."""
        return None if modes.bulk is None else cls(modes, sgd, plan)

    @property
    def variances(self) -> Tensor:
        return self._variances.ee

    def blocks(self) -> Tensor:
        """Covariance of every example's outputs, [n, c, c]."""
        share = (self.counts * self.variances).sum() / (self._n * self._c)
        identity = torch.eye(self._c, dtype=self.drift.dtype, device=self.drift.device)
        return (share * self.density)[:, None, None] * identity

    def see(self, blocks: Tensor) -> None:
        """D [n, c, c], the second moments that the next step's noise comes from."""
        self._seen = (self.density @ blocks.diagonal(dim1=1, dim2=2).sum(1)) / self._c

    def advance(self, k: int, step: Step) -> None:
        factor, h = self._plan.noise_factor(k), self.drift
        noise = factor * h.square() * (self._seen - self.variances)
        if self._label_variance:
            noise = noise + h.square() * (self._n * self._label_variance / int(self._plan.batch_size[k]))
        self._variances.advance(step.modal(h), noise)

    def follow(self, plan: StepPlan) -> None:
        """Goes on along this plan."""
        self._plan = plan

    def law(self, law: OutputLaw, variances: Tensor | None = None) -> OutputLaw:
        """With the bulk's variances, or these, in the training outputs; in the test outputs they are not known."""
        if law.covariance is None:
            return law
        variances = self.variances if variances is None else variances
        rows = self.density.repeat_interleave(self._c)
        return replace(law, covariance=CovarianceWithBulk.around(law.covariance, variances, self.counts, rows))
