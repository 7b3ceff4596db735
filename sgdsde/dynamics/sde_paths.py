"""Sample paths of the stochastic differential equation of SGD: any loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from sgdsde import _memory
from sgdsde._checks import complaint, whole_number
from sgdsde._progress import ticker
from sgdsde._streams import BLOCK
from sgdsde._types import Progress
from sgdsde.dynamics.dynamics import Dynamics, NoiseSource
from sgdsde.dynamics.output_law import OutputLaw
from sgdsde.dynamics.paths.integrators import (
    BlockDraws,
    EulerMaruyama,
    Integrator,
    PathGroup,
    PathSetup,
)
from sgdsde.dynamics.paths.ito_term import ItoTerm
from sgdsde.linearization import Linearization
from sgdsde.sgd import SGD

PATHS_AT_ONCE = 16 * BLOCK
"""On a CPU: more are no faster, fewer pay for every call into torch."""


@dataclass(frozen=True)
class SDEPaths(Dynamics):
    """Paths of df = -(1/n) K r(f) dt + sqrt(phi lr / B) K C(r)^{1/2} dW, r the loss's gradient at the outputs f.

    The noise needs no matrix root: one normal number an example, v_i = r_i (xi_i - mean xi)/sqrt(n), has Cov(v) = C(r).
    Test outputs move by the same noise through K(test, train).

    Args:
        n_paths: number of paths. seed: path j is the same path whatever ``n_paths``.
        integrator: ``EulerMaruyama(substeps=1)``, the default, is minibatch SGD with Gaussian noise and takes momentum,
            weight decay and label noise; with more substeps, or by ``WeakOrder2``, ``ExponentialEuler`` or ``SDEInt``,
            it is the SDE. ``FrozenNoise`` is that of ``OrnsteinUhlenbeck("init")``.
        ito_term: ``ItoTerm(...)`` adds the drift that noise gives to outputs curved in the weights; None, the default,
            is the linearized model. ``EulerMaruyama`` only.
        paths_at_once: paths stepped together; default what fits the memory, 1024 on a CPU. Never changes a draw.
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

    independent_batches_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_paths", whole_number("n_paths", self.n_paths, minimum=2))
        object.__setattr__(self, "seed", whole_number("seed", self.seed))
        if self.paths_at_once is not None:
            whole_number("paths_at_once", self.paths_at_once, minimum=1)
        if not isinstance(self.integrator, Integrator):
            expected, remedy = (
                "an integrator",
                "use dynamics.EulerMaruyama(), WeakOrder2(), ExponentialEuler() or SDEInt()",
            )
            raise TypeError(complaint("integrator", expected, repr(self.integrator), remedy))
        if self.ito_term is not None and not isinstance(self.ito_term, ItoTerm):
            raise TypeError(complaint("ito_term", "an ItoTerm or None", repr(self.ito_term), "use dynamics.ItoTerm()"))

    @property
    def needs_spectrum(self) -> bool:
        return not isinstance(self.integrator, EulerMaruyama)

    @property
    def noise_source(self) -> NoiseSource | None:
        return self.integrator.noise_source

    def noise_assumption(self, sgd: SGD) -> str:
        frozen = " at the start" if self.integrator.noise_source == "start" else ""
        return f"Gaussian noise with the covariance of a minibatch{frozen}"

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
        groups, times, reached = self._groups(setup), setup.plan.times, 0
        ticks = ticker(progress, record[-1] * len(groups), "paths")
        for step in record:
            for group in groups:
                group.advance(reached, step)
                ticks.update(step - reached)
            reached = step
            parts = [group.outputs(step) for group in groups]
            train = torch.cat([part for part, _ in parts])
            tests = [test for _, test in parts if test is not None]
            test = torch.cat(tests) if tests else None
            test_mean = None if test is None else test.mean(0)
            yield OutputLaw(
                step, float(times[step]), train.mean(0), samples=train, test_mean=test_mean, test_samples=test
            )
        ticks.close()

    def _groups(self, setup: PathSetup) -> list[PathGroup]:
        linearization = setup.linearization
        at_once = self.paths_at_once
        if at_once is None:
            per_path = 8 * linearization.outputs.numel() * linearization.outputs.itemsize
            available = _memory.budget(None, linearization.outputs.device)
            at_once = _memory.rows_within(available, per_path, self.n_paths, "one path")
            if linearization.outputs.device.type == "cpu":
                at_once = min(at_once, PATHS_AT_ONCE)
        size = max(at_once // BLOCK, 1) * BLOCK
        groups = [range(start, min(start + size, self.n_paths)) for start in range(0, self.n_paths, size)]
        return [
            self.integrator.group(setup, paths, BlockDraws(self.seed, paths, linearization.outputs)) for paths in groups
        ]
