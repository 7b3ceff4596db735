"""Mean and covariance of minibatch SGD on the linearized model under any twice-differentiable loss."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sgdsde._progress import ticker
from sgdsde._types import Progress
from sgdsde.dynamics.dynamics import Dynamics
from sgdsde.dynamics.gaussian_states import ClosureState, IndependentBatches, ShuffledEpochs
from sgdsde.dynamics.output_law import OutputLaw
from sgdsde.linearization import Linearization
from sgdsde.losses import SquaredError
from sgdsde.sgd import SGD, StepPlan

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

    def evolve(
        self, linearization: Linearization, sgd: SGD, record: Sequence[int], *, progress: Progress = None
    ) -> Iterator[OutputLaw]:
        if sgd.label_noise_std and not isinstance(linearization.problem.criterion, SquaredError):
            raise self.refuse("label noise without squared error", "label_noise_std=0")
        if sgd.weight_decay and linearization.weight_outputs is None:
            raise self.refuse("weight decay without weight_outputs", "linearize(problem), or weight_decay=0")
        linearization.problem.criterion.hessian(linearization.outputs[:1], linearization.targets[:1])
        plan = sgd.plan(linearization.problem.n_train, record[-1])
        kind = ShuffledEpochs if sgd.sampling == "shuffled" else IndependentBatches
        return self._evolve(kind(linearization, sgd, plan), plan, record, progress)

    def _evolve(
        self, state: ClosureState, plan: StepPlan, record: Sequence[int], progress: Progress
    ) -> Iterator[OutputLaw]:
        times, wanted = plan.times, set(record)
        ticks = ticker(progress, record[-1], "gaussian closure")
        for k in range(record[-1] + 1):
            if k in wanted:
                yield state.law(k, float(times[k]))
            if k < record[-1]:
                state.advance(k)
                self._check(state, k)
                ticks.update(1)
        ticks.close()
        doubtful = DOUBTFUL_SHUFFLED if plan.sampling == "shuffled" else DOUBTFUL
        if state.curved_share > doubtful:
            error = 3 * state.curved_share / doubtful
            warnings.warn(
                f"the loss bends within the spread of the outputs: at step {state.most_curved} a share of "
                f"{state.curved_share:.3g} of its gradient's second moment is beyond a Gaussian closure (below "
                f"{doubtful:g} the loss is within about 3 %); expect an error of {error:.2g} % or "
                "more near that step, and hold it against run_ensemble(linearization, ...)",
                ClosureWarning,
                stacklevel=3,
            )

    def _check(self, state: ClosureState, step: int) -> None:
        if not state.curved_share <= HOPELESS:
            raise self.refuse(
                f"this spread of the outputs: at step {step} a share of {state.curved_share:.3g} of the second moment "
                f"of the loss's gradient is beyond a Gaussian closure, {HOPELESS:g} at most",
                "run_ensemble(linearization, ...), SDEPaths(), a smaller lr or a larger batch_size",
            )
