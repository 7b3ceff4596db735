"""Sample paths of the stochastic differential equation of SGD: any loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import distributed

from sgdsde import _memory
from sgdsde._checks import complaint, whole_number
from sgdsde._progress import ticker
from sgdsde._ranks import Ranks
from sgdsde._streams import BLOCK
from sgdsde._types import Progress
from sgdsde.dynamics.dynamics import Dynamics, NoiseSource
from sgdsde.dynamics.output_law import OutputLaw
from sgdsde.dynamics.paths.integrators import (
    BlockDraws,
    EulerMaruyama,
    ExponentialEuler,
    Integrator,
    Outputs,
    PathGroup,
    PathSetup,
)
from sgdsde.dynamics.paths.ito_term import ItoTerm
from sgdsde.linearization import Linearization
from sgdsde.sgd import SGD, in_words

PATHS_AT_ONCE = 8 * BLOCK
"""On a CPU: beyond, the numbers of a step fall out of the cache and nothing is gained."""


@dataclass(frozen=True)
class SDEPaths(Dynamics):
    """Paths of df = -(1/n) K r(f) dt + sqrt(phi lr / B) K C(r)^{1/2} dW, r the loss's gradient at the outputs f.

    The noise needs no matrix root: one normal number an example, v_i = r_i (xi_i - mean xi)/sqrt(n), has Cov(v) = C(r).
    Test outputs move by the same noise through K(test, train).

    Args:
        n_paths: number of paths. seed: path j is the same path whatever ``n_paths``.
        integrator: ``EulerMaruyama(substeps=1)``, the default, is minibatch SGD with Gaussian noise and takes momentum,
            weight decay and label noise; with more substeps, or by ``ExponentialEuler`` or ``SDEInt``, it is the SDE.
        ito_term: ``ItoTerm(...)`` adds the drift that noise gives to outputs curved in the weights; None, the default,
            is the linearized model. ``EulerMaruyama`` only.
        paths_at_once: paths stepped together; default what fits the memory, 512 on a CPU, 64 with ``group``. Never
            changes a draw.
        group: of ``torch.distributed``, whose ranks share the paths; all predict the same and get the same result, with
            the same bits whatever their number. They meet at every recorded step.
    Exactness: that of the integrator, for a model linear in its parameters, and the error of a sample. Spreads of the
        loss are those of Gaussian noise; the batches of SGD are not Gaussian.
    Cost: that of the integrator: one product [P, d] x [d, d] a step; 2 to 3 P d numbers, d = n c.
    Source: Hayou, Doucet, Rousseau, arXiv:1905.13654; Li, Tai, E, arXiv:1511.06251.
    """

    n_paths: int = 1000
    integrator: Integrator = field(default_factory=EulerMaruyama)
    seed: int = 0
    ito_term: ItoTerm | None = None
    paths_at_once: int | None = None
    group: distributed.ProcessGroup | None = field(default=None, repr=False, compare=False)

    independent_batches_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_paths", whole_number("n_paths", self.n_paths, minimum=2))
        object.__setattr__(self, "seed", whole_number("seed", self.seed))
        if self.paths_at_once is not None:
            whole_number("paths_at_once", self.paths_at_once, minimum=1)
        if not isinstance(self.integrator, Integrator):
            expected, remedy = "an integrator", "use dynamics.EulerMaruyama(), ExponentialEuler() or SDEInt()"
            raise TypeError(complaint("integrator", expected, repr(self.integrator), remedy))
        Ranks(self.group)  # refuses what is no group
        if self.ito_term is not None and not isinstance(self.ito_term, ItoTerm):
            raise TypeError(complaint("ito_term", "an ItoTerm or None", repr(self.ito_term), "use dynamics.ItoTerm()"))

    @property
    def needs_spectrum(self) -> bool:
        return not isinstance(self.integrator, EulerMaruyama)

    @property
    def noise_source(self) -> NoiseSource | None:
        return "state" if isinstance(self.integrator, ExponentialEuler) else None

    def noise_assumption(self, sgd: SGD) -> str:
        return "Gaussian noise with the covariance of a minibatch"

    def evolve(
        self, linearization: Linearization, sgd: SGD, record: Sequence[int], *, progress: Progress = None
    ) -> Iterator[OutputLaw]:
        if sgd.sampling == "shuffled":
            self.check(linearization, sgd)
        plan = sgd.plan(linearization.problem.n_train, record[-1])
        displacement = None if self.ito_term is None else self.ito_term.displacement(linearization, sgd, plan)
        _memory.check_count("n_paths", self.n_paths, 3 * 8 * linearization.outputs.numel(), "paths")
        setup = PathSetup(linearization, sgd, plan, self.seed, displacement)
        self.integrator.check(setup)
        self.check(linearization, sgd)
        return self._evolve(setup, record, progress)

    def _evolve(self, setup: PathSetup, record: Sequence[int], progress: Progress) -> Iterator[OutputLaw]:
        ranks, times, reached = Ranks(self.group), setup.plan.times, 0
        ranks.agree(
            "the paths", f"{self!r} of {setup.linearization.problem.digest} by {in_words(setup.sgd, setup.plan)}"
        )
        groups, device = self._groups(setup, ranks), setup.linearization.outputs.device
        ticks = ticker(progress, record[-1] * len(groups), "paths")  # of this rank

        def advanced(start: int, stop: int) -> list[Outputs]:
            for group in groups:
                group.advance(start, stop)
                ticks.update(stop - start)
            return [ranks.portable(group.outputs(stop)) for group in groups]

        for step in record:
            parts = ranks.dealt(ranks.gather(partial(advanced, reached, step)))
            reached = step
            train = torch.cat([part for part, _ in parts]).to(device)
            tests = [test for _, test in parts if test is not None]
            test = torch.cat(tests).to(device) if tests else None
            test_mean = None if test is None else test.mean(0)
            yield OutputLaw(
                step, float(times[step]), train.mean(0), samples=train, test_mean=test_mean, test_samples=test
            )
        ticks.close()

    def _groups(self, setup: PathSetup, ranks: Ranks) -> list[PathGroup]:
        linearization = setup.linearization
        at_once = self.paths_at_once
        if at_once is None and self.group is not None:
            at_once = BLOCK  # the same for any number of ranks
        if at_once is None:
            per_path = 8 * linearization.outputs.numel() * linearization.outputs.itemsize
            available = _memory.budget(None, linearization.outputs.device)
            at_once = _memory.rows_within(available, per_path, self.n_paths, "one path")
            if linearization.outputs.device.type == "cpu":
                at_once = min(at_once, PATHS_AT_ONCE)
        size = max(at_once // BLOCK, 1) * BLOCK
        groups = [range(start, min(start + size, self.n_paths)) for start in range(0, self.n_paths, size)]
        return [
            self.integrator.group(setup, paths, BlockDraws(self.seed, paths, linearization.outputs))
            for paths in ranks.own(groups)
        ]
