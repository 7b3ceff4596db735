"""What a reduced prediction is made of: segments of the training, settings that stand for it, first steps, poles."""

from __future__ import annotations

import math

import pytest
import torch

import sgdsde
from sgdsde.dynamics import MomentRecursion
from sgdsde.dynamics.moments.modes import Modes
from sgdsde.dynamics.moments.reduced.first_steps import FirstSteps, exact_steps
from sgdsde.dynamics.moments.reduced.model import ReducedModel
from sgdsde.dynamics.moments.reduced.pairs import StepCoefficients
from sgdsde.dynamics.moments.reduced.projection import project
from sgdsde.dynamics.moments.reduced.schedule import representative, segments_between, times_and_factors
from sgdsde.dynamics.moments.reduced.system import ReducedSystem, Segment
from tests.problems import LARGER
from tests.unit.dynamics.moments.reduced.dense import Driven, normal, random_space, scaled, step, symmetric

CLOSE = {"rtol": 1e-9, "atol": 1e-10}
TRAININGS = {
    "constant": sgdsde.SGD(0.1, 3, weight_decay=0.2),
    "schedule": sgdsde.SGD(lambda k: 0.3 / (1 + k // 4), lambda k: 2 + k // 6, weight_decay=0.1),
    "without replacement": sgdsde.SGD(lambda k: 0.1 if k < 5 else 0.2, 3, sampling="without_replacement"),
}


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.parametrize(("start", "stop"), [(0, 20), (3, 17)])
def test_segments_are_the_steps(name, start, stop):
    sgd, n = TRAININGS[name], 10
    steps = [segment for segment in segments_between(sgd, n, start, stop) for _ in range(segment.length)]
    assert len(steps) == stop - start
    for k, segment in enumerate(steps, start):
        size = sgd.batch_size_at(k)
        phi = 1.0 if sgd.sampling == "with_replacement" else (n - size) / (n - 1)
        assert segment.coefficients.lr == pytest.approx(sgd.lr_at(k))
        assert segment.coefficients.noise == pytest.approx(phi / size)
        assert segment.coefficients.decay == sgd.weight_decay
        assert segment.batch_size == size


@pytest.mark.parametrize("name", TRAININGS)
def test_times_and_what_decay_leaves_of_the_weights(name):
    sgd, record = TRAININGS[name], [0, 1, 4, 5, 13, 20]
    times, factors = times_and_factors(segments_between(sgd, 10, 0, 20), record, decay=sgd.weight_decay)
    for k, time, factor in zip(record, times, factors):
        rates = [sgd.lr_at(j) for j in range(k)]
        assert time == pytest.approx(sum(rates), rel=1e-12)
        assert factor == pytest.approx(math.prod(1 - lr * sgd.weight_decay for lr in rates), rel=1e-12)


def some(lr: float, noise: float, batch_size: float = 2.0) -> Segment:
    return Segment(1, StepCoefficients(lr, noise), batch_size)


def test_few_settings_stand_for_themselves():
    """Learning rates of zero, and those below 3 % of the largest, move little."""
    segments = [some(0.0, 0.5), some(0.1, 0.5), some(0.0031, 0.5), some(0.0029, 0.5), some(0.1, 0.5), some(0.1, 0.2)]
    found = representative(segments)
    assert [(s.coefficients.lr, s.coefficients.noise) for s in found] == [(0.1, 0.5), (0.0031, 0.5), (0.1, 0.2)]
    assert representative([some(0.0, 0.5)]) == []
    assert len(representative([some(0.1, 0.5, 2.0), some(0.1, 0.5, 3.0)])) == 2


def test_many_settings_are_covered_by_four():
    """The noisiest first; then, one after the other, the one farthest from those chosen, in log lr and log q."""
    grid = [some(lr, q) for lr in (0.1, 0.2, 0.4, 0.9) for q in (0.0, 0.01, 0.1, 1.0)]
    found = representative(grid)
    assert len(found) == 4
    assert found[0] == some(0.9, 1.0)

    def distance(one: Segment, other: Segment) -> float:
        a, b = one.coefficients, other.coefficients
        return math.hypot(math.log(a.lr / b.lr), math.log(max(a.noise, 1e-6) / max(b.noise, 1e-6)))

    for i in range(1, 4):
        reached = min(distance(found[i], other) for other in found[:i])
        assert reached == pytest.approx(max(min(distance(s, other) for other in found[:i]) for s in grid))


@pytest.mark.parametrize("words", [{}, {"momentum": 0.7}, {"momentum": 0.7, "nesterov": True}], ids=str)
def test_first_steps_are_those_of_the_recursion(words):
    linearization, tolerance = sgdsde.linearize(LARGER.problem()), 1e-3
    lr = 0.2 * sgdsde.stability.max_lr(linearization, 4, **words)
    modes, sgd = Modes.of(linearization), sgdsde.SGD(lr, 4, **words)
    first = exact_steps(sgd, tolerance)
    begin = first
    if words:  # in lifetimes of the buffer, 1 / (1 - momentum): the model starts two before it takes over
        begin, expected = (math.ceil((count - math.log(tolerance)) / 0.3) for count in (5, 7))
        assert first == expected
    record = [0, 3, begin, first - 1, first, first + 9]
    found = FirstSteps.of(modes, sgd, record, tolerance)
    assert (found.begin, found.first) == (begin, first)
    assert [law.step for law in found.laws] == [k for k in sorted(set(record)) if k < first]
    exact = {law.step: law for law in MomentRecursion().evolve(linearization, sgd, list(range(first + 1)))}
    for law in found.laws:
        torch.testing.assert_close(law.mean, exact[law.step].mean, **CLOSE)
        torch.testing.assert_close(law.covariance.core, exact[law.step].covariance.core, **CLOSE)
        assert law.time == pytest.approx(law.step * lr)
    torch.testing.assert_close(found.core, exact[begin].covariance.core, **CLOSE)
    torch.testing.assert_close(
        modes.vectors @ (found.mean - modes.start), (exact[begin].mean - exact[0].mean).view(-1, 1)
    )
    steps, squares = found.checked
    assert (found.buffer is None) is (not words)
    assert [k + begin for k in steps] == ([] if not words else list(range((begin + first + 1) // 2, first + 1)))
    for k, square in zip(steps, squares):
        law = exact[begin + k]
        residual = law.mean - linearization.problem.y_train
        torch.testing.assert_close(square, residual.square().sum() + law.covariance.trace, **CLOSE)
    assert not found.is_certain
    quiet = sgdsde.SGD(lr, 24, sampling="without_replacement", **words)
    assert FirstSteps.of(modes, quiet, record, tolerance).is_certain


def test_a_model_starts_after_fourteen_lifetimes_of_the_buffer_and_takes_over_after_sixteen():
    """At the tolerance of 1e-4; without momentum after sixteen steps."""
    for momentum, first in ((0.0, 16), (0.01, 17), (0.5, 33), (0.9, 163), (0.99, 1622)):
        assert exact_steps(sgdsde.SGD(0.1, 2, momentum=momentum), 1e-4) == first


def model_of(rank: int = 5, driven: Driven | None = None, **words: object) -> ReducedModel:
    space = random_space(9, 1, rank)
    mean = normal(rank, 2, seed=2)
    moment = mean @ mean.mT + 0.1 * symmetric(rank, seed=1)
    sources = (driven or Driven()).sources(space, moment, mean)
    return ReducedModel(sources, [Segment(1, StepCoefficients(0.3, 0.4), 2.0)], **{"n_steps": 1000, **words})


@pytest.mark.parametrize("n_steps", [50, 10**6])
@pytest.mark.parametrize("driven", [False, True])
def test_poles_reach_from_one_half_to_a_tenth_of_the_slowest_rate(n_steps, driven):
    """Equally spaced in the logarithm of their distance to it; over few steps what decays more slowly does not matter.

    The mean, where it drives, decays half as fast as its square.
    """
    model = model_of(driven=Driven(Driven.by_all(random_space(9, 1, 5), columns=2).fixed) if driven else None)
    model.n_steps = n_steps
    coefficients = model.settings[0].coefficients
    space = model.sources.space
    h = space.drift
    squares = 1 - (1 - 0.3 * h) ** 2 + 0.3**2 * 0.4 * h**2
    slowest = float(0.3 * h.min()) if driven else float(squares.min())
    ts, shift = model._poles(coefficients, 6.0)
    assert shift == pytest.approx(0.98 * slowest)
    distances = torch.tensor(ts) + shift
    assert float(distances[0]) == pytest.approx(0.5)
    assert float(distances[-1]) == pytest.approx(max(0.1 * shift, 0.3 / n_steps), rel=1e-6)
    steps = distances.log10().diff()
    torch.testing.assert_close(steps, steps[:1].expand(len(steps)), rtol=1e-4, atol=0)
    assert 1 / 6 * 0.8 < -float(steps[0]) <= 1 / 6 * 1.0001
    assert len(model._poles(coefficients, 12.0)[0]) > 1.8 * len(ts)


def test_a_coarser_model_lacks_every_fifth_pole():
    """Of both families, in two ways; what is no pole always stays."""
    model = model_of(driven=Driven.by_all(random_space(9, 1, 5), columns=2), rank=5)
    model.settings = [Segment(1, StepCoefficients(0.3, 0.4, 0.1), 2.0)]
    model.build(3.0, 1e-3)
    n_poles = len(model._poles(model.settings[0].coefficients, 3.0)[0])
    one, other = model._left_out
    assert len(one) == 2 * len(range(1, n_poles, 5))
    assert len(other) == 2 * len(range(3, n_poles, 5))
    assert not set(one) & set(other)
    assert min(*one, *other) >= 3, "the stationary moment, the start and the loss stay"
    first = len(model._columns) - 2 * n_poles
    assert sorted(one) == [first + family * n_poles + k for family in (0, 1) for k in range(1, n_poles, 5)]
    everything = set(range(len(model._columns)))
    for z, out in zip(model.coarser_spans(), (one, other)):
        expected = model.system.projection.subspace(sorted(everything - set(out)))
        torch.testing.assert_close(z @ z.mT, expected @ expected.mT)


def test_snapshots_are_the_first_second_moments_themselves():
    space, driven = random_space(9, 1, 5), Driven.by_all(random_space(9, 1, 5), columns=2)
    model = model_of(driven=driven, snapshots=(1, 4))
    setting = Segment(1, StepCoefficients(0.3, 0.4, 0.1), 2.0)
    model.settings = [setting]
    system = model.build(2.0, 1e-3)
    moment = space.unpack(model.sources.moment) * space.drift.sqrt()[:, None] * space.drift.sqrt()
    mean, found = model.sources.mean, []
    for _ in range(4):
        moment, mean = step(space, setting.coefficients, 2.0, driven, moment, mean)
        found.append(space.pack(scaled(space, moment)))
    for column, k in zip(model._columns[-2:], (0, 3)):
        torch.testing.assert_close(column, found[k], **CLOSE)
    assert isinstance(system, ReducedSystem)
    assert model.applications > 4


def test_companions_and_functionals_lie_in_the_span():
    space = random_space(9, 1, 5)
    extra, loss = space.pack(symmetric(5, seed=5)), space.pack(symmetric(5, seed=6))
    model = model_of(companions=[extra], functionals=[loss])
    projection = model.build(2.0, 1e-3).projection
    for matrix in (extra, loss, model.sources.moment, space.diagonal(space.drift)):
        torch.testing.assert_close(projection.coordinates(matrix) @ projection.basis, matrix, **CLOSE)
    few = project(space, [extra])
    assert (few.coordinates(loss) @ few.basis - loss).norm() > 0.1 * loss.norm()
