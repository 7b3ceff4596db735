"""Mean and covariance of minibatch SGD on the linearized model under any twice-differentiable loss."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from sgdsde._types import Progress
from sgdsde.dynamics.dynamics import Dynamics
from sgdsde.dynamics.moments.feature_state import Expectations
from sgdsde.dynamics.moments.linearized_state import LinearizedState
from sgdsde.dynamics.moments.state import laws
from sgdsde.dynamics.output_law import OutputLaw
from sgdsde.linearization import Linearization
from sgdsde.sgd import SGD

DOUBTFUL, DOUBTFUL_SHUFFLED, HOPELESS = 0.03, 0.015, 0.5
"""Curved share (see ``GaussianClosure``) from which on it warns, and raises; measured, see docs/derivations.md. At the
end of a shuffled epoch little noise is left, so that what the closure misses is twice as much of it."""


class ClosureWarning(UserWarning):
    """The law of the outputs is too far from Gaussian for the closure; the message says how far."""


@dataclass(frozen=True)
class GaussianClosure(Dynamics):
    """Any loss with a second derivative: the law of the outputs f = f_0 + K w is taken as Gaussian at every step,

        m' = m - (lr/n) K E r
        S' = A S A^T + (phi lr^2 / B) K [D(R)/n - R/n^2] K + (lr/n)^2 K D(Cov(r) - G S G) K,   A = I - (lr/n) K G

    with m the mean, S the covariance, r the loss's gradient, G = E[Hessian] (block-diagonal), all expectations under
    N(m_i, S_ii), and R = E[r r^T]: exact in its diagonal blocks, E r_i E r_j^T + G_i S_ij G_j elsewhere. By Stein's
    lemma E[r_i (f_i - m_i)^T] = G_i S_ii, so A is the best linear map and not a derivative at the mean. Nothing in it
    is larger than the loss's own gradient and Hessian.

    How far it can be trusted is known while it runs: the curved share

        tr D(Cov(r) - G S G) / tr D(R)

    is what no linear map of f explains of the gradient, 0 for squared error. The error of the loss was at most 0.2 %
    and 1.5 times it in what was measured: cross-entropy of 3 and 10 classes, logistic, Huber and Poisson losses.

    Shuffled epochs are conditional on which examples are still to come, as in ``MomentRecursion(epoch_starts=0)``, with
    r linearized around its mean.

    Exactness: for squared error that of ``MomentRecursion``. For others, against SGD of the model that is linear in its
        parameters, the loss is within 0.1 % while the curved share is below 0.0005 (outputs spread by 0.4), within 3 %
        while it is below 0.03 (by 1.5). The spread of the LOSS comes from draws of the Gaussian law.
    Warns:
        ClosureWarning: the curved share exceeds 0.03, or 0.015 in shuffled epochs.
    Raises:
        ValueError: it exceeds 0.5, where the closure may explode; a loss without a second derivative; label noise under
            another loss than squared error; weight decay where J theta_0 is unknown.
    Cost: two products [d, d] x [d, d] a step (three with momentum), d = n c; 6 to 10 d^2 numbers. ``SDEPaths`` with P
        paths costs less beyond d = P/2.
    """

    smooth_loss_only: ClassVar[bool] = True

    def noise_assumption(self, sgd: SGD) -> str:
        return "the outputs are Gaussian at every step"

    def evolve(
        self, linearization: Linearization, sgd: SGD, record: Sequence[int], *, progress: Progress = None
    ) -> Iterator[OutputLaw]:
        self.check(linearization, sgd)
        plan, share = sgd.plan(linearization.problem.n_train, record[-1]), CurvedShare(self)
        state = LinearizedState(linearization, sgd, plan, watch=share.see)
        yield from laws(state, plan, record, "gaussian closure", progress)
        share.warn(DOUBTFUL_SHUFFLED if sgd.sampling == "shuffled" else DOUBTFUL)


class CurvedShare:
    """The largest share, so far, of the gradient's second moment that no linear map of the outputs explains."""

    def __init__(self, dynamics: GaussianClosure) -> None:
        self._dynamics, self._largest, self._step = dynamics, 0.0, 0

    def see(self, k: int, seen: Expectations) -> None:
        """Looks at one step.

        Raises:
            ValueError: beyond ``HOPELESS``, or a covariance that is not finite.
        """
        if seen.blocks is None:
            return
        if not torch.isfinite(seen.blocks).all():
            raise ValueError(f"the covariance of the outputs must stay finite, got NaN or infinity at step {k}")
        moments = seen.moments
        total = moments.gradient_moment.diagonal(dim1=1, dim2=2).sum()
        explained = moments.gradient.square().sum() + ((moments.hessian @ seen.blocks) * moments.hessian).sum()
        share = float(1 - explained / total) if total > 0 else 0.0
        if not share <= self._largest:
            self._largest, self._step = share, k
        if not share <= HOPELESS:
            raise self._dynamics.refuse(
                f"this spread of the outputs: at step {k} a share of {share:.3g} of the second moment of the loss's "
                f"gradient is beyond a Gaussian closure, {HOPELESS:g} at most",
                "LinearizedSGD(), a smaller lr or a larger batch_size",
            )

    def warn(self, doubtful: float) -> None:
        """A ``ClosureWarning`` where the largest share is above ``doubtful``."""
        if self._largest > doubtful:
            error = 3 * self._largest / doubtful
            warnings.warn(
                f"the loss bends within the spread of the outputs: at step {self._step} a share of "
                f"{self._largest:.3g} of its gradient's second moment is beyond a Gaussian closure (below "
                f"{doubtful:g} the loss is within about 3 %); expect an error of {error:.2g} % or "
                "more near that step, and hold it against dynamics.LinearizedSGD()",
                ClosureWarning,
                stacklevel=4,
            )
