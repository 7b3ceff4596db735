"""Many outputs at the cost of one, where every output has the same kernel of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from sgdsde._types import Progress
from sgdsde.dynamics.dynamics import Dynamics, NoiseSource, alternative
from sgdsde.dynamics.moments.modal_state import ModalState
from sgdsde.dynamics.moments.modes import Modes
from sgdsde.dynamics.moments.state import laws
from sgdsde.dynamics.output_law import OutputLaw
from sgdsde.kernel import KroneckerKernel
from sgdsde.linearization import Linearization
from sgdsde.sgd import SGD


@dataclass(frozen=True)
class TracedRecursion(Dynamics):
    """``MomentRecursion`` summed over outputs, for a kernel K_0 (x) I_c: m [n, c], and T [n, n] the trace over outputs,

        m' = A m,    T' = A T A + (phi lr^2 / B) K_0 [ (s^2/n) diag(P) - (s^2/n^2) P ] K_0,    P = T + m m^T

    with A = I - lr s K_0 / n (momentum and decay as there). No approximation is made beyond the kernel: the expected
    loss is that of ``MomentRecursion`` on K_0 (x) I_c, whose cost grows with c^3.

    Exactness: the expected loss as ``MomentRecursion``; its standard deviation is an UPPER BOUND, 2 to 3 times too
        large with three outputs, 4 to 6 with ten. What replacing a network's kernel by K_0 (x) I_c changes is not in
        it: compare with runs (docs/large_kernels.md).
    Cost: two products [n, r] x [r, r] a step, r the rank of K_0 or that of ``linearize(problem, kernel=..., rank=r)``,
        and c numbers a mode.
    """

    squared_error_only: ClassVar[bool] = True
    follows_bulk: ClassVar[bool] = True
    independent_batches_only: ClassVar[bool] = True

    @property
    def noise_source(self) -> NoiseSource | None:
        return "state"

    def evolve(
        self, linearization: Linearization, sgd: SGD, record: Sequence[int], *, progress: Progress = None
    ) -> Iterator[OutputLaw]:
        self.check(linearization, sgd)
        if not isinstance(linearization.kernel, KroneckerKernel):
            received = type(linearization.kernel).__name__
            raise self.refuse(f"a kernel that outputs do not share ({received})", alternative(linearization, sgd))
        modes = Modes.shared(linearization)
        plan = sgd.plan(modes.n_train, record[-1])
        return laws(ModalState(modes, sgd, plan), plan, record, "moment recursion, shared kernel", progress)
