"""On a basis of all symmetric matrices the reduced system is the second-moment recursion, however it is run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sgdsde.dynamics.moments.reduced.pairs import PairSpace, StepCoefficients
from sgdsde.dynamics.moments.reduced.projection import project
from sgdsde.dynamics.moments.reduced.sources import Sources
from sgdsde.dynamics.moments.reduced.system import (
    ReducedSystem,
    Segment,
    divided_powers,
    geometric_sums,
    mean_at,
    powers,
)
from tests.unit.dynamics.moments.reduced.dense import (
    Driven,
    every_symmetric,
    normal,
    random_space,
    scaled,
    step,
    symmetric,
)

RANK = 5
CLOSE = {"rtol": 1e-9, "atol": 1e-10}
SHORT = [
    Segment(1, StepCoefficients(0.3 + 0.1 * k, 0.2 * k, 0.05 if k else 0.0), 2.0 + k) for k in range(4)
]  # a schedule that changes at every step
LONG = [
    Segment(40, StepCoefficients(0.3, 0.4, 0.05), 2.0),
    Segment(30, StepCoefficients(0.0, 0.4, 0.05), 3.0),
    Segment(60, StepCoefficients(0.1, 0.2, 0.05), 5.0),
]


@pytest.fixture(params=[(9, 1), (4, 2)], ids=["one output", "two outputs"])
def space(request: pytest.FixtureRequest) -> PairSpace:
    return random_space(*request.param, RANK)


def drivers(space: PairSpace) -> dict[str, Driven]:
    every = Driven.by_all(space, columns=2)
    return {
        "nothing": Driven(),
        "an immovable residual": replace(every, offset=None, label_variance=0.0),
        "decay": replace(every, fixed=None, label_variance=0.0),
        "label noise": Driven(label_variance=0.3),
        "everything": every,
    }


def system_of(space: PairSpace, driven: Driven) -> tuple[ReducedSystem, Tensor, Tensor]:
    """On all matrices; the second moment and mean at the start."""
    mean = normal(space.rank, 2, seed=2)
    moment = mean @ mean.mT + 0.1 * symmetric(space.rank, seed=1)
    projection = project(space, [space.pack(unit) for unit in every_symmetric(space.rank)])
    return ReducedSystem.of(driven.sources(space, moment, mean), projection), moment, mean


def walked(
    space: PairSpace, driven: Driven, moment: Tensor, mean: Tensor, segments: list[Segment]
) -> list[tuple[Tensor, Tensor]]:
    """Moment and mean before every step and after the last."""
    found = [(moment, mean)]
    for segment in segments:
        for _ in range(segment.length):
            found.append(step(space, segment.coefficients, segment.batch_size, driven, *found[-1]))
    return found


@pytest.mark.parametrize("segments", [SHORT, LONG], ids=["step by step", "by jumps"])
@pytest.mark.parametrize("name", ["nothing", "an immovable residual", "decay", "label noise", "everything"])
def test_it_is_the_recursion(space, name, segments):
    driven = drivers(space)[name]
    if driven.offset is None:
        segments = [replace(one, coefficients=replace(one.coefficients, decay=0.0)) for one in segments]
    system, moment, mean = system_of(space, driven)
    slow = walked(space, driven, moment, mean, segments)
    edges = [sum(one.length for one in segments[:i]) for i in range(len(segments) + 1)]
    record = sorted({0, 1, 2, *edges, *(edge + 3 for edge in edges[:-1] if edge + 3 < edges[-1])})
    states, means = system.run(segments, record)
    assert len(states) == len(means) == len(record)
    root = space.drift.sqrt()
    for k, y, m in zip(record, states, means):
        found = root[:, None] * space.unpack(y @ system.projection.basis) * root
        torch.testing.assert_close(found, slow[k][0], **CLOSE)
        torch.testing.assert_close(m, slow[k][1], **CLOSE)
        torch.testing.assert_close(y @ system.loss, slow[k][0].trace(), **CLOSE)
    alone = mean_at(segments, record, drift=space.drift, mean=mean, offset=driven.offset)
    torch.testing.assert_close(alone, means, **CLOSE)


def test_the_last_step_alone_can_be_asked_for(space):
    driven = drivers(space)["everything"]
    system, moment, mean = system_of(space, driven)
    for segments in (SHORT, LONG):
        last = sum(one.length for one in segments)
        states, means = system.run(segments, [last])
        assert states.shape == (1, len(system.projection))
        torch.testing.assert_close(means[0], walked(space, driven, moment, mean, segments)[-1][1], **CLOSE)
        assert mean_at(segments, [last], drift=space.drift, mean=mean, offset=driven.offset).shape == (1, RANK, 2)


def test_on_a_span_it_is_the_same_projected(space):
    """Restricted to everything nothing changes; to less, it is the system of that projection."""
    driven = drivers(space)["everything"]
    system, _, _ = system_of(space, driven)
    n = len(system.projection)
    turn = torch.linalg.qr(normal(n, n, seed=3)).Q
    whole, _ = system.run(SHORT, [0, 4])
    turned, _ = system.restricted(turn).run(SHORT, [0, 4])
    torch.testing.assert_close(turned @ turn.mT, whole, **CLOSE)
    jumped, _ = system.restricted(turn).run(LONG, [0, 50, 130])
    torch.testing.assert_close(jumped @ turn.mT, system.run(LONG, [0, 50, 130])[0], **CLOSE)
    few = system.restricted(turn[:, :3])
    assert few.start.shape == few.loss.shape == (3,)
    torch.testing.assert_close(few.projection.step_loss(SHORT[1].coefficients), reduced_loss(system, turn[:, :3]))


def reduced_loss(system: ReducedSystem, z: Tensor) -> Tensor:
    return z.mT @ system.projection.step_loss(SHORT[1].coefficients) @ z


@pytest.mark.parametrize("name", ["an immovable residual", "decay", "label noise", "everything"])
def test_sources_are_what_a_step_adds(space, name):
    """At the mean of the step, at the one that it settles at, and summed over all steps to come."""
    driven, coefficients, batch_size = drivers(space)[name], StepCoefficients(0.3, 0.4, 0.2), 3.0
    if driven.offset is None:
        coefficients = replace(coefficients, decay=0.0)
    _, moment, mean = system_of(space, driven)
    sources = driven.sources(space, moment, mean)
    assert sources.follow_the_mean is (name != "label noise")
    assert sources.is_constant

    def added(at: Tensor) -> Tensor:
        """By one step from a second moment of zero."""
        nothing = torch.zeros_like(moment)
        return scaled(space, step(space, coefficients, batch_size, driven, nothing, at)[0])

    torch.testing.assert_close(whole(sources, sources.at(coefficients, batch_size, mean)), added(mean), **CLOSE)
    resting = sources.resting_mean(coefficients)
    moved = step(space, coefficients, batch_size, driven, moment, resting)[1]
    torch.testing.assert_close(moved, resting, **CLOSE)
    found = whole(sources, sources.constant(coefficients, batch_size))
    torch.testing.assert_close(found, added(resting), **CLOSE)
    z, total, at = 1.3, torch.zeros_like(moment), mean
    for k in range(200):
        total = total + z ** -(k + 1) * (added(at) - added(resting))
        at = step(space, coefficients, batch_size, driven, moment, at)[1]
    stationary = space.pack(symmetric(RANK, seed=7))
    packed = sources.transformed(coefficients, z - 1, stationary)
    expected = total + scaled(space, moment) - space.unpack(stationary)
    torch.testing.assert_close(whole(sources, packed), expected, **CLOSE)
    torch.testing.assert_close(
        whole(sources, sources.transformed(coefficients, z - 1, None)), total + scaled(space, moment), **CLOSE
    )


def whole(sources: Sources, parts: tuple[Tensor, Tensor | None]) -> Tensor:
    """The matrix of what is packed and what passes through C."""
    packed, injected = parts
    return sources.space.unpack(packed if injected is None else packed + sources.space.from_blocks(injected))


RATES = torch.tensor([0.0, 1e-18, 1e-9, 1e-3, 0.3, 0.49, 0.5, 0.51, 0.99, 1.0, 1.4, 1.9], dtype=torch.float64)


@pytest.mark.parametrize("k", [0, 1, 2, 7, 300])
def test_powers_and_their_sums_are_products_and_sums(k):
    """Also of rates beyond 1, whose powers alternate, and of equal and nearly equal rates."""
    steps = torch.tensor([[float(k)]]).double()
    loop = [(1 - RATES) ** j for j in range(k + 1)]
    torch.testing.assert_close(powers(RATES, steps)[0], loop[k], rtol=1e-12, atol=1e-300)
    sums = sum(loop[:k], torch.zeros_like(RATES))
    torch.testing.assert_close(geometric_sums(RATES, steps)[0], sums, rtol=1e-11, atol=1e-14)
    others = torch.cat([RATES, RATES + 1e-10, RATES + 1e-5])
    found = divided_powers(RATES, others, steps[0])
    expected = torch.zeros(len(RATES), len(others)).double()
    for j in range(k):
        expected += (1 - RATES[:, None]) ** (k - 1 - j) * (1 - others) ** j
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


def test_nearly_equal_rates_are_told_apart_over_long_horizons():
    """sum_j (1 - mu)^(k-1-j) (1 - nu)^j for nu - mu from 1e-12 to 1e-6 and k up to 10^8, by the powers themselves."""
    rates = torch.tensor([1e-9, 1e-7], dtype=torch.float64)
    for k in (10.0, 1e4, 1e6, 1e8):
        for gap in (1e-12, 1e-10, 1e-8, 5e-7):
            first, second = (k * torch.log1p(-one) for one in (rates, rates + gap))
            expected = -torch.exp(first) * torch.expm1(second - first) / gap
            found = divided_powers(rates, rates + gap, torch.tensor([k], dtype=torch.float64)).diagonal()
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_slow_rates_keep_their_digits_over_long_horizons():
    """(1 - mu)^k for mu = 1e-12: what 1 - mu loses is not lost."""
    rates, steps = torch.tensor([1e-12, 3e-12], dtype=torch.float64), torch.tensor([[1e12]], dtype=torch.float64)
    torch.testing.assert_close(powers(rates, steps)[0], torch.exp(-rates * 1e12), rtol=1e-11, atol=0)
    expected = (1 - torch.exp(-rates * 1e12)) / rates
    torch.testing.assert_close(geometric_sums(rates, steps)[0], expected, rtol=1e-10, atol=0)
