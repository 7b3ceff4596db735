"""What a loss reads off reduced coordinates is what the covariance says when it is written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sgdsde
from sgdsde.dynamics import MomentRecursion
from sgdsde.dynamics.moments.modes import Modes
from sgdsde.dynamics.moments.reduced.covariance import reduced_covariance, reduced_states, spread_states
from sgdsde.dynamics.moments.reduced.forms import LossForms, OutputMap
from sgdsde.dynamics.moments.reduced.projection import project
from sgdsde.dynamics.moments.reduced.start import ReducedStart
from sgdsde.dynamics.moments.reduced.system import ReducedSystem
from sgdsde.dynamics.output_law import Covariance, SharedCovariance
from sgdsde.observables import loss_of_law
from tests.problems import BY_NAME, linear_problem
from tests.unit.dynamics.moments.reduced.dense import Driven, every_symmetric, normal, random_space, scaled, symmetric

RANK, STILL = 5, 2
CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def arrays(*parts: Tensor, **words: int) -> sgdsde.Problem:
    """Features, targets and weights."""
    return linear_problem(*(part.numpy() for part in parts), **words)


def whole_system(start: ReducedStart) -> ReducedSystem:
    space = start.sources.space
    return ReducedSystem.of(start.sources, project(space, [space.pack(unit) for unit in every_symmetric(space.rank)]))


class Setting:
    """Five modes that move among seven, with k columns, and what they are at two steps."""

    def __init__(self, columns: int) -> None:
        self.space = random_space(12, 1, RANK)
        self.moving = torch.tensor([True, False, True, True, False, True, True])
        self.still = normal(STILL, columns, seed=30)
        self.means = torch.stack([normal(RANK, columns, seed=s) for s in (1, 2)])
        self.spreads = torch.stack([symmetric(RANK, seed=s) for s in (3, 4)])
        moment = self.spreads[0] + self.means[0] @ self.means[0].mT
        sources = Driven().sources(self.space, moment, self.means[0])
        self.start = ReducedStart(sources, self.moving, self.still)
        self.system = whole_system(self.start)
        self.y, self.own = (
            self.coordinates(parts) for parts in (self.spreads + self.means @ self.means.mT, self.spreads)
        )

    def coordinates(self, moments: Tensor) -> Tensor:
        packed = torch.stack([self.space.pack(scaled(self.space, moment)) for moment in moments])
        return self.system.projection.coordinates(packed)

    def core(self, i: int) -> Tensor:
        """Over all modes: those that do not move have no spread."""
        whole = torch.zeros(RANK + STILL, RANK + STILL).double()
        places = self.moving.nonzero().flatten()
        whole[places[:, None], places] = self.spreads[i]
        return whole

    def states(self, kind: str) -> list:
        if kind == "of the second moment":
            return reduced_states(self.start, self.system, self.y, self.means)
        return spread_states(self.start, self.system, self.y, self.own, self.means)


KINDS = ["of the second moment", "of the spread"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [1, 3])
def test_states_know_their_traces(kind, columns):
    setting = Setting(columns)
    for i, state in enumerate(setting.states(kind)):
        spread, mean = setting.spreads[i], setting.means[i]
        torch.testing.assert_close(state.trace, spread.trace(), **CLOSE)
        torch.testing.assert_close(state.squared_norm, spread.square().sum(), **CLOSE)
        torch.testing.assert_close(state.quadratic, (mean * (spread @ mean)).sum(), **CLOSE)
        torch.testing.assert_close(state.core, setting.core(i), **CLOSE)
        assert (state.whole_mean()[setting.moving] == mean).all()
        assert (state.whole_mean()[~setting.moving] == setting.still).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("rows", [4, 9], ids=["few test rows", "many"])
def test_covariances_are_those_that_are_written_out(kind, columns, rows):
    """Of training outputs by known numbers, of test outputs by their own factor, with outputs that share a kernel."""
    setting = Setting(columns)
    orthonormal = torch.linalg.qr(normal(12, RANK + STILL, seed=5)).Q
    for of_training, factor in ((True, orthonormal), (False, normal(rows, RANK + STILL, seed=6))):
        for i, state in enumerate(setting.states(kind)):
            words = (factor, torch.zeros(RANK + STILL, RANK + STILL).double(), factor.mT @ factor)
            like = Covariance(*words) if columns == 1 else SharedCovariance(*words, columns)
            found = reduced_covariance(like, state, of_training=of_training)
            words = (factor, setting.core(i), factor.mT @ factor)
            dense = Covariance(*words) if columns == 1 else SharedCovariance(*words, columns)
            torch.testing.assert_close(found.trace, dense.trace, **CLOSE)
            torch.testing.assert_close(found.squared_norm, dense.squared_norm, **CLOSE)
            residual = factor @ state.whole_mean()
            outside = normal(len(factor), columns, seed=7)
            if of_training:  # what lies outside of the span of the modes does not fluctuate
                outside = outside - factor @ (factor.mT @ outside)
            for vector in (residual, residual + outside, normal(len(factor), columns, seed=8), 1.01 * residual):
                torch.testing.assert_close(
                    found.quadratic(vector.flatten()), dense.quadratic(vector.flatten()), **CLOSE
                )
            if columns == 1:
                torch.testing.assert_close(found.to_dense(), dense.to_dense(), **CLOSE)
                torch.testing.assert_close(found.diagonal(), dense.diagonal(), **CLOSE)
                torch.testing.assert_close(found.blocks(1), dense.blocks(1), **CLOSE)
    assert reduced_covariance(None, state, of_training=False) is None


@pytest.mark.parametrize("n_test", [2, 12], ids=["few test rows", "many"])
@pytest.mark.parametrize("decay", [0.0, 0.2])
@pytest.mark.parametrize("n_outputs", [1, 2])
def test_forms_of_both_losses_are_the_losses_of_the_law(n_test, decay, n_outputs):
    """Means and standard deviations at steps of the recursion, from its moments alone."""
    features, targets = normal(8 + n_test, n_outputs, 6, seed=1), normal(8 + n_test, n_outputs, seed=2)
    problem = arrays(features, targets, normal(6, seed=3), n_train=8)
    linearization, sgd = sgdsde.linearize(problem), sgdsde.SGD(0.05, 2, weight_decay=decay)
    modes = Modes.of(linearization)
    start = ReducedStart.of(modes, sgd, modes.start, None, time=10.0)
    system, space = whole_system(start), start.sources.space
    laws = list(MomentRecursion().evolve(linearization, sgd, [0, 1, 5, 30]))
    means = torch.stack([modes.vectors.mT @ (law.mean - problem.y_train).reshape(-1, 1) for law in laws])
    cores = torch.stack([law.covariance.core for law in laws])
    packed = torch.stack([space.pack(scaled(space, core + m @ m.mT)) for core, m in zip(cores, means)])
    states = system.projection.coordinates(packed)
    factors = torch.tensor([(1 - 0.05 * decay) ** law.step for law in laws], dtype=torch.float64)
    for side, examples in (("train", 8), ("test", n_test)):
        outputs = OutputMap.of(modes, start, of_training=side == "train")
        forms = LossForms.of(outputs, system, start, means, modes.loss_curvature / (2 * examples))
        mean, std = forms.mean_and_std(states, means, factors)
        for i, law in enumerate(laws):
            at, covariance = (law.mean, law.covariance) if side == "train" else (law.test_mean, law.test_covariance)
            y = problem.y_train if side == "train" else problem.y_test
            exact = loss_of_law(problem.criterion, at, y, covariance=covariance, samples=None)
            torch.testing.assert_close(mean[i], exact.mean, **CLOSE)
            torch.testing.assert_close(
                std[i], exact.std, rtol=1e-6, atol=2e-6
            )  # a root of rounding where nothing fluctuates


def test_there_are_no_forms_of_a_test_set_that_is_not_there():
    linearization = sgdsde.linearize(arrays(normal(4, 1, 3, seed=1), normal(4, 1, seed=2), normal(3, seed=3)))
    modes = Modes.of(linearization)
    start = ReducedStart.of(modes, sgdsde.SGD(0.1, 2), modes.start, None, time=10.0)
    assert OutputMap.of(modes, start, of_training=False) is None


def test_modes_that_hardly_move_are_a_part_of_the_residual_that_never_does():
    """Three of six: 2 h t below 1e-10; under weight decay all move."""
    features = normal(9, 1, 6, seed=1) * torch.tensor([1.0, 1, 1, 3e-5, 3e-5, 3e-5], dtype=torch.float64)
    linearization = sgdsde.linearize(arrays(features, normal(9, 1, seed=2), normal(6, seed=3)))
    modes, sgd = Modes.of(linearization), sgdsde.SGD(0.1, 2)
    assert len(modes.values) == 6
    core, time = symmetric(6, seed=4), 0.01
    assert ((2 * time * modes.drift > 1e-10) == torch.tensor([False] * 3 + [True] * 3)).all()
    start = ReducedStart.of(modes, sgd, modes.start, core, time=time)
    assert start.moving.tolist() == [False] * 3 + [True] * 3
    space = start.sources.space
    torch.testing.assert_close(space.vectors, modes.vectors[:, 3:])
    moved = torch.cat([torch.zeros(3, 1).double(), modes.start[3:]])
    torch.testing.assert_close(start.sources.fixed, modes.residual(modes.start) - modes.vectors @ moved, **CLOSE)
    moment = core[3:, 3:] + modes.start[3:] @ modes.start[3:].mT
    torch.testing.assert_close(space.unpack(start.sources.moment), scaled(space, moment), **CLOSE)
    torch.testing.assert_close(start.all_modes(modes.start[3:]), modes.start, **CLOSE)
    assert ReducedStart.of(modes, sgdsde.SGD(0.1, 2, weight_decay=0.1), modes.start, None, time=time).moving.all()
    longer = ReducedStart.of(modes, sgd, modes.start, None, time=1e4)
    assert longer.moving.all()
    assert not longer.nothing_moves
    alone = ReducedStart.of(modes, sgd, torch.zeros_like(modes.start), None, time=time)
    assert alone.nothing_moves


def test_an_immovable_residual_of_rounding_is_none():
    for name, is_there in (("one output", False), ("one output, null space", True)):
        linearization = sgdsde.linearize(BY_NAME[name].problem())
        modes = Modes.of(linearization)
        start = ReducedStart.of(modes, sgdsde.SGD(0.1, 2), modes.start, None, time=10.0)
        assert (start.sources.fixed is not None) is is_there
        assert start.sources.offset is None
        sgd = sgdsde.SGD(0.1, 2, weight_decay=0.3, label_noise_std=0.4)
        sources = ReducedStart.of(modes, sgd, modes.start, None, time=10.0).sources
        torch.testing.assert_close(sources.offset, 0.3 * (modes.weight_outputs - modes.start))
        assert sources.label_variance == pytest.approx(0.16)
