"""Sample paths of the stochastic differential equation of SGD: any loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, get_args

import torch
from torch import distributed

from sgdsde import _memory
from sgdsde._checks import complaint, whole_number, word
from sgdsde._progress import ticker
from sgdsde._ranks import Ranks
from sgdsde._streams import BLOCK
from sgdsde._types import Progress
from sgdsde.dynamics.dynamics import Dynamics, NoiseSource
from sgdsde.dynamics.output_law import OutputLaw
from sgdsde.dynamics.paths.integrators import (
    BlockDraws,
    EulerMaruyama,
    Integrator,
    Outputs,
    PathGroup,
    PathSetup,
)
from sgdsde.dynamics.paths.ito_term import ItoTerm
from sgdsde.dynamics.paths.precision import Precision, in_precision, products_in
from sgdsde.linearization import Linearization
from sgdsde.sgd import SGD, in_words

PATHS_AT_ONCE = 16 * BLOCK
"""On a CPU: more are no faster, fewer pay for every call into torch."""

NUMBERS_HELD = 20
"""For each output of a path, by the integrator that holds most of them."""


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
        paths_at_once: paths stepped together; default what fits the memory, 1024 on a CPU, 64 with ``group``. Never
            changes a draw.
        precision: "float64", "float32" or, on CUDA, "tf32", of state and products; None, the default, is that of the
            linearization. The draws are the same: ``rounding_error`` compares path by path.
        group: of ``torch.distributed``, whose ranks share the paths; all predict the same and get the same result, with
            the same bits whatever their number. They meet at every recorded step.
    Exactness: that of the integrator, for a model linear in its parameters, and the error of a sample. Spreads of the
        loss are those of Gaussian noise; the batches of SGD are not Gaussian.
    Cost: that of the integrator, by default one product [P, d] x [d, d] a step and 3 P d numbers, d = n c.
    Source: Hayou, Doucet, Rousseau, arXiv:1905.13654; Li, Tai, E, arXiv:1511.06251.
    """

    n_paths: int = 1000
    integrator: Integrator = field(default_factory=EulerMaruyama)
    seed: int = 0
    ito_term: ItoTerm | None = None
    paths_at_once: int | None = None
    precision: Precision | None = None
    group: distributed.ProcessGroup | None = field(default=None, repr=False, compare=False)

    independent_batches_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_paths", whole_number("n_paths", self.n_paths, minimum=2))
        object.__setattr__(self, "seed", whole_number("seed", self.seed))
        if self.paths_at_once is not None:
            whole_number("paths_at_once", self.paths_at_once, minimum=1)
        if self.precision is not None:
            word("precision", self.precision, get_args(Precision))
        if not isinstance(self.integrator, Integrator):
            remedy = "use dynamics.EulerMaruyama(), WeakOrder2(), ExponentialEuler() or SDEInt()"
            raise TypeError(complaint("integrator", "an integrator", repr(self.integrator), remedy))
        Ranks(self.group)  # refuses what is no group
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
        self.integrator.check(PathSetup(linearization, sgd, plan, self.seed, displacement))
        self.check(linearization, sgd)
        if self.precision is not None and not self.integrator.any_precision:
            name = type(self.integrator).__name__
            received = f"{self.precision!r} with {name}"
            raise ValueError(complaint("precision", f"None with {name}, which has its own", received, "use None"))
        own = in_precision(linearization, self.precision, spectrum=self.needs_spectrum)
        setup = PathSetup(own, sgd, plan, self.seed, displacement)
        return self._evolve(setup, linearization.outputs.dtype, record, progress)

    def rounding_error(self, linearization: Linearization, sgd: SGD, n_steps: int) -> float:
        """How far 64 paths after so many steps are from the same paths in float64, relative to how far they have moved.

        Root mean squares over paths, examples and outputs. Paths that diverge are as far off as they have moved.
        """
        few, n_steps = replace(self, n_paths=BLOCK, group=None), whole_number("n_steps", n_steps, minimum=1)
        ends = [
            next(iter(dynamics.evolve(linearization, sgd, [n_steps]))).samples
            for dynamics in (few, replace(few, precision="float64"))
        ]
        one, other = (end.double() for end in ends if end is not None)
        difference = float((one - other).norm())
        return difference and difference / float((other - linearization.outputs).norm())

    def _evolve(
        self, setup: PathSetup, dtype: torch.dtype, record: Sequence[int], progress: Progress
    ) -> Iterator[OutputLaw]:
        ranks, times, reached = Ranks(self.group), setup.plan.times, 0
        ranks.agree(
            "the paths", f"{self!r} of {setup.linearization.problem.digest} by {in_words(setup.sgd, setup.plan)}"
        )
        groups, device = self._groups(setup, ranks), setup.linearization.outputs.device
        ticks = ticker(progress, record[-1] * len(groups), "paths")  # of this rank

        def advanced(start: int, stop: int) -> list[Outputs]:
            for group in groups:
                with products_in(self.precision):
                    group.advance(start, stop)
                ticks.update(stop - start)
            return [ranks.portable(group.outputs(stop)) for group in groups]

        for step in record:
            parts = ranks.dealt(ranks.gather(partial(advanced, reached, step)))
            reached = step
            train = torch.cat([part for part, _ in parts]).to(device, dtype)
            tests = [test for _, test in parts if test is not None]
            test = torch.cat(tests).to(device, dtype) if tests else None
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
            per_path = NUMBERS_HELD * linearization.outputs.numel() * linearization.outputs.itemsize
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
