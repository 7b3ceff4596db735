"""Minibatch SGD of a network that learns features: fluctuations around its mean path, with the kernel of that path."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from sgdsde._checks import complaint, positive_number, whole_number
from sgdsde._types import Progress
from sgdsde.dynamics.dynamics import Dynamics, alternative
from sgdsde.dynamics.moments.state import laws
from sgdsde.dynamics.moving_kernel.kernel_refresh import Refresh, RefreshMonitor
from sgdsde.dynamics.moving_kernel.noise_induced_drift import NoiseFeedback
from sgdsde.dynamics.moving_kernel.prediction_run import Options, PredictionRun
from sgdsde.dynamics.moving_kernel.range_check import refuse_out_of_range
from sgdsde.dynamics.output_law import OutputLaw
from sgdsde.linearization import Linearization
from sgdsde.losses import SquaredError
from sgdsde.problem import Problem
from sgdsde.sgd import SGD

DEFAULT_FEEDBACK = NoiseFeedback()

RANK, RANK_OF_EPOCHS = 48, 256
"""Directions followed with all their covariances, under fresh batches and in shuffled epochs."""


@dataclass(frozen=True)
class MovingKernel(Dynamics):
    """The mean weights of the real network, and the covariance of the weights around them:

        mean' = mean - lr E g(mean + delta),     delta ~ N(0, S)
        S' = G S G^T + nu nu^T (x) (phi/B) Cov(J_i^T r_i),     G = G_0 + nu (x) (1/n) J^T E[G] J

    with momentum and decay in G_0 and nu (``step``) and J the Jacobian of the path. S is kept in the
    leading directions of J, and as variances beyond them. Directions, J and the effect of the noise on the mean are
    made anew when the kernel has moved; in between they are linear. An interval is accepted when the kernel moves by at
    most ``tolerance`` over it (relative, in Frobenius norm), and the next one is chosen from that drift.

    Args:
        tolerance: kernel drift allowed between two refreshes. first_interval: steps to the second one.
        feedback: how the noise acts on the mean; None leaves the mean path to full-batch descent.
        rank: leading directions of J whose covariances are followed; default 48. Of the others the variances are, in
            groups of nearly equal eigenvalue and a sketch of the smallest; in shuffled epochs they are left out, and
            the default is 256. Held against 256 directions the loss changed by 1 % (ReLU 64-64-1) and 5 % (tanh
            64-128-128-10, late), tanh under cross-entropy by 8 %: compare two ranks where it matters.
        epoch_starts: shuffled epochs only: in how many directions, at most, the spread that an epoch starts with is
            followed by itself.
        range_check: whether ``predict`` of a ``Problem`` first looks at sampled runs, of which no number is used, and
            refuses one that diverges, dies, or, under other losses than squared error, whose loss differs by more than
            11 % from run to run while the kernel moves by more than itself (there predictions were 20 to 50 % off).
        on_refresh: called with every ``Refresh``: step, drift, margin to the mean-square limit, seconds.
    Exactness: that of ``MomentRecursion`` (shuffled epochs: with ``epoch_starts=0``) for a model linear in its
        parameters with at most ``rank`` directions; that of full-batch training at B = n. Beyond: weights are taken as
        Gaussian around their mean, their fluctuation as linear in J. The curvature of the network in the fluctuation
        is left out. Errors on real networks: docs/choosing_a_dynamics.md.
    Cost: about one full-batch gradient and 8 d r^2 operations a step for r directions of d = n c outputs; at each
        refresh (ten to twenty) three products of r directions with the Jacobian and 2 ``feedback.n_draws`` full-batch
        gradients; once 5 ``rank`` products with the kernel, up to 1024 rows all its eigenpairs. Memory: four times
        r p numbers, p parameters. In plain runs: docs/choosing_a_dynamics.md.
    Warns:
        KernelDriftWarning: the tolerance is exceeded within one step, or step after step. NearLimitWarning: the
        learning rate is beyond 0.6 of the mean-square limit of the kernel of the path, less with momentum.
    Raises:
        ValueError: out of range (``range_check``); the mean path or the covariance stops being finite; names the step.
        MemoryError: r p numbers do not fit; names the bytes.
    """

    tolerance: float = 0.2
    first_interval: int = 2
    feedback: NoiseFeedback | None = DEFAULT_FEEDBACK
    rank: int | None = None
    epoch_starts: int = 8
    range_check: bool = True
    on_refresh: Callable[[Refresh], None] | None = field(default=None, repr=False, compare=False)

    freezes_kernel: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive_number("tolerance", self.tolerance)
        whole_number("first_interval", self.first_interval, minimum=1)
        if self.rank is not None:
            whole_number("rank", self.rank, minimum=1)
        whole_number("epoch_starts", self.epoch_starts)
        if not isinstance(self.feedback, NoiseFeedback | None):
            remedy = "use dynamics.NoiseFeedback(...)"
            raise TypeError(complaint("feedback", "a NoiseFeedback or None", repr(self.feedback), remedy))

    def look(self, problem: Problem, sgd: SGD, n_steps: int) -> str:
        """Refuses a training that leaves the range of this theory, as sampled runs show. Cost: two to four runs."""
        if not self.range_check:
            return ""
        refuse_out_of_range(problem, sgd, n_steps)
        return "sampled runs of this training, of which no number is used, showed it to be in range"

    def rank_under(self, sgd: SGD) -> int:
        """``rank``, or its default."""
        return self.rank or (RANK_OF_EPOCHS if sgd.sampling == "shuffled" else RANK)

    def noise_assumption(self, sgd: SGD) -> str:
        return "the weights are Gaussian around their mean path, their fluctuation linear in the Jacobian there"

    def evolve(
        self, linearization: Linearization, sgd: SGD, record: Sequence[int], *, progress: Progress = None
    ) -> Iterator[OutputLaw]:
        problem = linearization.problem
        if problem.criterion.kink:
            reason = f"a loss without second derivative ({type(problem.loss).__name__}, {problem.criterion.kink})"
            raise self.refuse(reason, alternative(linearization, sgd))
        if sgd.label_noise_std and not isinstance(problem.criterion, SquaredError):
            raise self.refuse("label noise without squared error", "dynamics.MovingKernel() with label_noise_std=0")
        plan = sgd.plan(problem.n_train, record[-1])
        rank = self.rank_under(sgd)
        options = Options(self.tolerance, self.first_interval, self.feedback, rank, self.epoch_starts)
        monitor = RefreshMonitor(self.tolerance, sgd.momentum)

        def refreshed(refresh: Refresh) -> None:
            monitor.see(refresh, float(plan.lr[refresh.step]))
            if self.on_refresh is not None:
                self.on_refresh(refresh)

        run = PredictionRun(options, linearization, sgd, plan, refreshed)
        return laws(run, plan, record, "moving kernel", progress)
