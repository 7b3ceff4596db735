"""Resolvents solve what they are said to solve, to the tolerance that they are given, or say that they cannot."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor

from sgdsde.dynamics.moments.reduced.pairs import PairSpace, StepCoefficients
from sgdsde.dynamics.moments.reduced.projection import Projection, project
from sgdsde.dynamics.moments.reduced.resolvent import CoupledBlocks, PastLimitError, Resolvent, extrapolated, family
from tests.unit.dynamics.moments.reduced.dense import every_symmetric, random_space, symmetric

SPACES = {"one output": random_space(20, 1, 12), "two outputs": random_space(10, 2, 12)}


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> PairSpace:
    return SPACES[request.param]


@functools.cache
def on_all_matrices(space: PairSpace) -> Projection:
    """T on a basis of all symmetric matrices."""
    whole = project(space, [space.pack(unit) for unit in every_symmetric(space.rank)])
    assert len(whole) == space.rank * (space.rank + 1) // 2
    return whole


def slowest_rate(space: PairSpace, coefficients: StepCoefficients) -> float:
    """One less the spectral radius of T."""
    return float(torch.linalg.eigvalsh(on_all_matrices(space).step_loss(coefficients))[0])


@functools.cache
def limit(space: PairSpace) -> float:
    """The largest stable learning rate of single examples, by bisection."""
    low, high = 0.0, 2.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if slowest_rate(space, StepCoefficients(middle, 1.0)) > 0 else (low, middle)
    return low


def noisy(space: PairSpace, share: float) -> StepCoefficients:
    """Single examples at this share of the limit."""
    return StepCoefficients(share * limit(space), 1.0)


def transition(space: PairSpace, coefficients: StepCoefficients, packed: Tensor) -> Tensor:
    """T Y."""
    noise = coefficients.numbers[-1] * space.n_train * space.from_blocks(space.to_blocks(packed))
    return packed - space.elementwise(coefficients) * packed + noise


def blocks(space: PairSpace) -> Tensor:
    return space.to_blocks(space.pack(symmetric(space.rank, seed=4)))


@pytest.mark.parametrize("t", [0.5, 0.01])
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("is_injected", [False, True])
def test_a_resolvent_is_an_inverse(space, t, decay, is_injected):
    coefficients = StepCoefficients(0.2, 0.5, decay)
    source = space.pack(symmetric(space.rank, seed=1))
    injected = blocks(space) if is_injected else None
    solution, inner = Resolvent(space, coefficients, 1e-6).solve(source, t, injected=injected)
    whole = source if injected is None else source + space.from_blocks(injected)
    left = (1 + t) * solution - transition(space, coefficients, solution) - whole
    assert left.norm() < 1e-4 * whole.norm()
    torch.testing.assert_close(inner.double(), space.to_blocks(solution), rtol=1e-3, atol=1e-3)


def test_without_noise_it_is_elementwise_and_exact(space):
    coefficients = StepCoefficients(0.2, 0.0)
    source, resolvent = space.pack(symmetric(space.rank, seed=1)), Resolvent(space, coefficients, 1e-2)
    solution, inner = resolvent.solve(source, 0.1)
    torch.testing.assert_close(1.1 * solution - transition(space, coefficients, solution), source)
    assert not inner.any()
    assert resolvent.applications == 0


@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-5])
def test_a_solve_ends_at_its_tolerance_and_not_long_before(space, tolerance):
    setting, single = noisy(space, 0.9), space.single
    solver = CoupledBlocks(space, setting.numbers[-1] * space.n_train, tolerance)
    gains = (1 / (space.elementwise(setting) + 1e-3)).float()
    right = single.to_blocks(gains * space.pack(symmetric(space.rank, seed=1)).float())
    found = solver.solve(gains, right)
    left = right - (found - solver.coupling * single.couple(gains, found))
    assert left.norm() <= 1.1 * tolerance * right.norm()
    assert solver.applications <= 15
    started = solver.applications
    again = solver.solve(gains, right, found)
    assert solver.applications == started + 1, "one application shows that the guess is good enough"
    torch.testing.assert_close(again, found, rtol=0, atol=0)


def test_the_preconditioner_of_one_output_solves_the_system_of_the_modes_variances():
    space = SPACES["one output"]
    setting = noisy(space, 0.9)
    solver = CoupledBlocks(space, setting.numbers[-1] * space.n_train, 1e-2)
    own = solver.coupling * space.diagonal_of(1 / (space.elementwise(setting) + 1e-3))
    squares, right = (space.vectors * space.drift.sqrt()).square(), blocks(space)
    found = solver._precondition(right.float(), own.float()).double().flatten()
    left = found - squares @ (own * (squares.mT @ found)) - right.flatten()
    assert left.norm() < 2e-4 * right.norm()
    assert (found - right.flatten()).norm() > 0.1 * right.norm(), "which is not the right-hand side itself"


def test_several_outputs_are_not_preconditioned():
    space = SPACES["two outputs"]
    solver, right = CoupledBlocks(space, 1.0, 1e-2), blocks(space).float()
    assert solver._precondition(right, torch.ones(12)) is right


def test_past_the_limit_it_is_an_error_down_to_the_growth_itself(space):
    setting = noisy(space, 1.2)
    growth, source = -slowest_rate(space, setting), space.pack(symmetric(space.rank, seed=1))
    resolvent = Resolvent(space, setting, 1e-4)
    with pytest.raises(PastLimitError):
        resolvent.solve(source, 0.8 * growth)
    solution, _ = resolvent.solve(source, 1.2 * growth)
    left = (1 + 1.2 * growth) * solution - transition(space, setting, solution) - source
    assert left.norm() < 0.01 * source.norm()


def test_a_family_ends_below_the_slowest_rate_and_refuses_above_zero(space):
    setting, source = noisy(space, 0.985), space.pack(symmetric(space.rank, seed=1))
    slowest, uncoupled = slowest_rate(space, setting), float(space.elementwise(setting).min())
    assert 0 < slowest < 0.7 * uncoupled
    ts = [0.1, 0.01, -0.5 * slowest, -0.8 * slowest, -1.2 * slowest, -1.3 * slowest]
    found = family(Resolvent(space, setting, 1e-4), ts, lambda t: (source, None), shift=0.98 * uncoupled)
    assert len(found) == 4
    for t, solution in zip(ts, found):
        left = (1 + t) * solution - transition(space, setting, solution) - source
        assert left.norm() < 0.02 * source.norm()
    with pytest.raises(PastLimitError):
        family(Resolvent(space, noisy(space, 1.2), 1e-3), [0.5, 0.0], lambda t: (source, None), shift=0.01)


def test_a_family_passes_its_sources_on_and_costs_less_than_its_members(space):
    """Each solve starts from those before it."""
    source, injected, setting = space.pack(symmetric(space.rank, seed=1)), blocks(space), noisy(space, 0.9)
    ts = [0.5 * 0.7**k for k in range(16)]
    together = Resolvent(space, setting, 1e-3)
    found = family(together, ts, lambda t: (t * source, injected), shift=1e-3)
    alone = 0.0
    for t, solution in zip(ts, found):
        single = Resolvent(space, setting, 1e-3)
        expected, _ = single.solve(t * source, t, injected=injected)
        alone += single.applications
        torch.testing.assert_close(solution, expected, rtol=0, atol=1e-2 * float(expected.abs().max()))
    assert together.applications < 0.8 * alone


def test_applications_are_counted():
    """One of C and one of C^T together: of the solves, of what is injected and of the solution itself."""
    space, calls = SPACES["two outputs"], []
    counted = Counted(space, calls)
    resolvent = Resolvent(counted, noisy(space, 0.9), 1e-4)
    source = space.pack(symmetric(space.rank, seed=1))
    resolvent.solve(source, 0.1, injected=blocks(space))
    assert resolvent.applications == sum(calls)


class Counted(PairSpace):
    """Writes down every application."""

    def __init__(self, space: PairSpace, calls: list[float]) -> None:
        super().__init__(space.drift, space.vectors, space.n_outputs)
        self.calls = calls

    @property
    def single(self) -> PairSpace:
        single = Counted.__new__(Counted)
        single.__dict__.update(super().single.__dict__, calls=self.calls)
        return single

    def from_blocks(self, blocks: Tensor) -> Tensor:
        self.calls.append(0.5)
        return super().from_blocks(blocks)

    def to_blocks(self, packed: Tensor) -> Tensor:
        self.calls.append(0.5)
        return super().to_blocks(packed)

    def couple(self, gains: Tensor, blocks: Tensor) -> Tensor:
        self.calls.append(1.0)
        return super().couple(gains, blocks)


def test_extrapolation_is_exact_for_a_polynomial_through_its_history():
    def cubic(x: float) -> Tensor:
        return torch.tensor([x**3 - 2 * x, 1 - x**2]).double()

    history = [(x, cubic(x)) for x in (-1.0, 0.3, 2.0, 2.5)]
    torch.testing.assert_close(extrapolated(history, 4.0), cubic(4.0))
    line = [(x, torch.tensor([3 * x - 1]).double()) for x in (1.0, 2.0)]
    assert float(extrapolated(line, math.pi)) == pytest.approx(3 * math.pi - 1)
