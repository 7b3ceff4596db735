"""The errors that a reduced prediction reports: from what they come, and that no part of them is lost."""

from __future__ import annotations

import itertools
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import sgdsde
from sgdsde.dynamics import MomentRecursion, ReducedModelWarning, ReducedMoments
from sgdsde.dynamics.moments.reduced import epoch_prediction, prediction
from sgdsde.dynamics.moments.reduced.epoch_map import EpochMap
from sgdsde.dynamics.moments.reduced.epoch_prediction import ShuffledPrediction
from sgdsde.dynamics.moments.reduced.pairs import StepCoefficients
from sgdsde.dynamics.moments.reduced.prediction import ReducedPrediction
from sgdsde.dynamics.moments.reduced.resolvent import PastLimitError
from sgdsde.dynamics.moments.reduced.system import Segment
from tests.problems import BY_NAME, LARGER
from tests.unit.dynamics.moments.reduced.dense import normal

GROUPS = epoch_prediction.GROUPS


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


class System:
    """Losses at three steps, and at those that are checked; of two coordinates."""

    loss = vector(1.0, 2.0)

    def __init__(self, losses: Tensor, checked: Tensor) -> None:
        self._losses, self._checked = losses, checked

    def states(self, losses: Tensor) -> Tensor:
        return torch.stack([0.5 * losses, 0.25 * losses], 1)

    def run(self, segments: list[Segment], steps: list[int]) -> tuple[Tensor, None]:
        return self.states(self._losses if len(steps) == 3 else self._checked), None


def judged(
    losses: Tensor,
    *coarser: Tensor,
    late: tuple[int, ...] = (2, 5, 9),
    fixed: Tensor | None = None,
    checks: tuple[list[int], Tensor] = ([], vector()),
    seen: Tensor | None = None,
    bulk: object | None = None,
    first: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """``ReducedPrediction._errors`` of a model with these losses, and those of its coarser forms."""
    system = System(losses, vector() if seen is None else seen)
    this = SimpleNamespace(
        _start=SimpleNamespace(
            sources=SimpleNamespace(fixed=fixed, bulk=bulk, space=SimpleNamespace(drift=vector(0.5)))
        ),
        _modes=SimpleNamespace(start=0, residual=lambda start: vector(math.sqrt(first))),
        _segments=[Segment(9, StepCoefficients(0.2, 0.1), 2.0)],
        _exact=SimpleNamespace(checked=checks),
    )
    this._missed = lambda *words: ReducedPrediction._missed(this, *words)
    model = SimpleNamespace(system=system, coarser=lambda: [System(one, vector()) for one in coarser])
    return ReducedPrediction._errors(this, model, system.states(losses), list(late))


def test_twice_what_leaving_out_poles_changes_never_falling_again():
    losses = vector(0.8, 0.4, 0.1)
    errors, relevant = judged(losses, losses * vector(1.01, 1.0, 1.0), losses * vector(1.0, 0.98, 1.001))
    torch.testing.assert_close(errors, 2 * vector(0.01, 0.02, 0.02), rtol=1e-9, atol=0)
    assert relevant.all()


def test_relative_to_the_loss_with_what_never_moves():
    losses = vector(0.8, 0.4, 0.1)
    errors, _ = judged(losses, losses + 0.01, fixed=vector(0.6, 0.8))
    torch.testing.assert_close(errors, 2 * 0.01 / (losses + 1.0), rtol=1e-9, atol=0)


def test_a_bulk_is_given_three_times_as_much():
    losses = vector(0.8, 0.4, 0.1)
    errors, _ = judged(losses, losses * 1.01, bulk=object())
    torch.testing.assert_close(errors, vector(0.06, 0.06, 0.06), rtol=1e-9, atol=0)


def test_what_is_missed_at_steps_of_the_recursion_counts_from_the_start():
    losses, exact = vector(0.8, 0.4, 0.1), vector(1.0, 0.5)
    errors, _ = judged(losses, losses * vector(1.0, 1.0, 1.04), checks=([1, 2], exact), seen=exact * vector(1.0, 0.97))
    torch.testing.assert_close(errors, 2 * vector(0.03, 0.03, 0.04), rtol=1e-9, atol=0)


def test_only_a_loss_above_a_ten_thousandth_of_the_first_must_be_right():
    _, relevant = judged(vector(1.1e-4, 0.9e-4, 1e-9), first=1.0)
    assert relevant.tolist() == [True, False, False]
    _, relevant = judged(vector(1.1e-4, 0.9e-4, 1e-9), first=100.0)
    assert not relevant.any()


def test_rounding_grows_with_the_steps_until_the_slowest_mode_has_died():
    """Rate 0.1: after 400 steps nothing is left of what was rounded."""
    losses, eps = vector(0.8, 0.4, 0.1), torch.finfo(torch.float64).eps
    errors, _ = judged(losses, late=(0, 100, 10**9))
    torch.testing.assert_close(errors, eps * vector(0, 100, 400), rtol=1e-6, atol=0)


def test_an_estimate_above_the_tolerance_is_refined_and_then_told(monkeypatch):
    """Three densities; then the recursion where it is cheap, and a warning where it is not."""
    linearization = sgdsde.linearize(LARGER.problem())
    sgd = sgdsde.SGD(0.3 * sgdsde.stability.max_lr(linearization, 4), 4)
    built: list[tuple[float, float]] = []
    original = prediction.ReducedModel.build

    def build(self: object, density: float, solved: float) -> object:
        built.append((density, solved))
        return original(self, density, solved)

    monkeypatch.setattr(prediction.ReducedModel, "build", build)
    monkeypatch.setattr(ReducedPrediction, "_errors", lambda self, model, states, late: (
        torch.full((len(late),), 0.5).double(), torch.ones(len(late)).bool()
    ))  # fmt: skip
    with pytest.warns(ReducedModelWarning, match=r"estimated error is 0\.5, above tolerance=0.0001"):
        found = sgdsde.predict(linearization, sgd, 10**6, dynamics=ReducedMoments(), record=[0, 10**6])
    assert [density for density, _ in built] == [5.0, 7.0, 10.0], "poles a decade at the tolerance of 1e-4"
    assert all(0 < later < before <= 1e-2 for (_, before), (_, later) in itertools.pairwise(built))
    assert float(found.estimated_error[-1]) == pytest.approx(0.5, rel=1e-3)
    built.clear()
    short = sgdsde.predict(linearization, sgd, 30, dynamics=ReducedMoments(), record=[0, 30])
    assert short.dynamics.startswith("MomentRecursion() for ReducedMoments")
    assert "an estimated error of 0.5" in short.dynamics
    built.clear()
    with pytest.warns(ReducedModelWarning):
        sgdsde.predict(linearization, sgd, 10**6, dynamics=ReducedMoments(0.01), record=[0, 10**6])
    assert [density for density, _ in built] == [2.5, 3.5, 5.0], "half of them at its square root"


def test_no_estimate_is_needed_where_nothing_large_is_left(monkeypatch):
    linearization = sgdsde.linearize(LARGER.problem())
    sgd = sgdsde.SGD(0.3 * sgdsde.stability.max_lr(linearization, 4), 4)
    monkeypatch.setattr(ReducedPrediction, "_errors", lambda self, model, states, late: (
        torch.full((len(late),), 0.5).double(), torch.zeros(len(late)).bool()
    ))  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = sgdsde.predict(linearization, sgd, 10**6, dynamics=ReducedMoments(), record=[0, 10**6])
    assert found.dynamics.startswith("ReducedMoments")


def prediction_of(*late: tuple[int, int], epochs: list[int], first: float = 1.0, **shares: float) -> SimpleNamespace:
    """Of a loss that is 1 on average, of which this share (of epoch e: ``e1``) is the first coordinate."""
    part = torch.tensor([shares.get(f"e{epoch}", 1.0) for epoch in epochs], dtype=torch.float64)
    return SimpleNamespace(
        _curve=lambda epoch, y, loss: part * (loss @ y) + (1 - part),
        _modes=SimpleNamespace(start=0, residual=lambda start: vector(math.sqrt(first))),
        _epochs=epochs,
        _late=[SimpleNamespace(epochs=epochs, steps=steps) for epochs, steps in late],
    )


def still(loss: float = 0.0) -> EpochMap:
    nothing = torch.zeros(0, 0).double()
    return EpochMap(loss * torch.eye(2).double(), None, torch.zeros(2).double(), nothing, nothing)


class Model:
    """Losses as the first coordinate; coarser forms that see a share of it."""

    system = SimpleNamespace(loss=vector(1.0, 0.0))

    def __init__(self, *shares: float) -> None:
        self._shares = shares

    def coarser_spans(self) -> list[Tensor]:
        return [torch.diag(vector(math.sqrt(share), 1.0)) for share in self._shares]


LEFT = prediction.LEFT_BY_SOLVES * epoch_prediction.SOLVED


def test_twice_the_standard_error_of_a_mean_over_groups():
    """The jackknife of a mean is its standard error. Within an epoch it is that of the next end of one."""
    begins = 1 + 0.01 * normal(GROUPS, 2, seed=1)
    column = begins[:, 0]
    error = float(2 * column.std() / GROUPS**0.5)
    this = prediction_of((1, 0), (3, 0), (3, 2), (4, 0), epochs=[1, 3, 4], e1=0.3, e3=0.2, e4=0.6)
    epoch, errors, worst = ShuffledPrediction._judged(this, Model(), [still()] * GROUPS, begins)
    torch.testing.assert_close(errors - LEFT, error * vector(0.3, 0.3, 0.6, 0.6), rtol=1e-2, atol=0)
    assert worst == pytest.approx(float(errors.max()))
    torch.testing.assert_close(epoch.loss, torch.zeros(2, 2).double())
    relative = prediction_of((0, 0), epochs=[0])
    _, found, _ = ShuffledPrediction._judged(relative, Model(), [still()] * GROUPS, 7 * begins)
    torch.testing.assert_close(found - LEFT, vector(error / float(column.mean())), rtol=1e-9, atol=0)


def test_orders_too_are_left_out_group_by_group():
    """Of a loss that falls by what an epoch takes away: the standard error of the mean over the groups' epochs."""
    losses = 0.1 + 0.01 * normal(GROUPS, seed=2)
    this = prediction_of((0, 0), epochs=[0])
    this._curve = lambda epoch, y, loss: (loss @ (y - epoch.loss @ y))[None]
    begins = torch.ones(GROUPS, 2).double()
    epoch, errors, _ = ShuffledPrediction._judged(this, Model(), [still(float(one)) for one in losses], begins)
    torch.testing.assert_close(epoch.loss, losses.mean() * torch.eye(2).double())
    expected = 2 * losses.std() / GROUPS**0.5 / (1 - losses.mean())
    torch.testing.assert_close(errors[0] - LEFT, expected, rtol=1e-9, atol=0)


def test_twice_what_a_coarser_space_changes_is_added():
    begins, this = torch.ones(GROUPS, 2).double(), prediction_of((0, 0), (2, 0), epochs=[0, 2])
    _, errors, _ = ShuffledPrediction._judged(this, Model(0.99, 0.97), [still()] * GROUPS, begins)
    torch.testing.assert_close(errors - LEFT, 2 * vector(0.03, 0.03), rtol=1e-9, atol=0)


def test_an_epoch_that_lets_moments_grow_is_past_the_limit():
    begins, this = torch.ones(GROUPS, 2).double(), prediction_of((0, 0), epochs=[0])
    ShuffledPrediction._judged(this, Model(), [still(0.001)] * GROUPS, begins)
    with pytest.raises(PastLimitError):
        ShuffledPrediction._judged(this, Model(), [still(-0.001)] * GROUPS, begins)


def test_only_a_shuffled_loss_above_a_ten_thousandth_must_be_right():
    begins = 1 + 0.01 * normal(GROUPS, 2, seed=1)
    for first, is_relevant in ((0.9e4, True), (1.2e4, False)):
        this = prediction_of((0, 0), epochs=[0], first=first)
        assert (ShuffledPrediction._judged(this, Model(), [still()] * GROUPS, begins)[2] > 0) is is_relevant


@pytest.mark.parametrize(
    ("name", "words"),
    [("two outputs", {}), ("two outputs, null space", {"weight_decay": 0.1}), ("one output, null space", {})],
    ids=str,
)
def test_errors_are_judged_on_the_loss_that_is_reported(name, words, monkeypatch):
    """At the ends of epochs; with an immovable residual and decay, which the mean drives."""
    problem = BY_NAME[name].problem()
    linearization = sgdsde.linearize(problem)
    lr = 0.3 * sgdsde.stability.max_lr(linearization, 2, sampling="without_replacement")
    curves: list[Tensor] = []
    original = ShuffledPrediction._curve

    def curve(self: ShuffledPrediction, epoch: EpochMap, y: Tensor, loss: Tensor) -> Tensor:
        curves.append(original(self, epoch, y, loss))
        return curves[-1]

    monkeypatch.setattr(ShuffledPrediction, "_curve", curve)
    monkeypatch.setattr(epoch_prediction, "ROUNDS", (1,))
    monkeypatch.setattr(epoch_prediction, "AFFORDED", 0)
    sgd = sgdsde.SGD(lr, 2, sampling="shuffled", **words)
    found = sgdsde.predict(linearization, sgd, 20, dynamics=ReducedMoments(0.1), record=[4, 6, 8, 20])
    squares = found.train_loss.mean * problem.y_train.numel()
    assert found.dynamics.endswith("64 sampled epochs")
    assert found.dynamics.startswith("ReducedMoments(tolerance=0.1)")
    torch.testing.assert_close(curves[0], squares.to(curves[0]), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("affordable", "n_orders"), [(1.01, 512), (0.99, 256)])
def test_more_than_256_orders_are_drawn_only_where_they_cost_what_is_allowed(affordable, n_orders, monkeypatch):
    """4 N r^3 operations an order: 512 of them are drawn where so many operations are allowed."""
    problem = BY_NAME["two outputs"].problem()
    linearization = sgdsde.linearize(problem)
    sizes: list[int] = []
    original = ShuffledPrediction._unpacked

    def unpacked(self: ShuffledPrediction, system: object) -> Tensor:
        found = original(self, system)
        sizes.append(len(found))
        allowed = 4 * len(found) * found.shape[1] ** 3 * 512
        monkeypatch.setattr(epoch_prediction, "SPENT", affordable * allowed)
        return found

    monkeypatch.setattr(ShuffledPrediction, "_unpacked", unpacked)
    monkeypatch.setattr(epoch_prediction, "FINEST", 1e-9)
    sgd = sgdsde.SGD(0.1, 2, sampling="shuffled")
    with pytest.warns(ReducedModelWarning):
        found = sgdsde.predict(linearization, sgd, 2000, dynamics=ReducedMoments(1e-7), record=[2000])
    assert found.dynamics.endswith(f"{n_orders} sampled epochs")


def test_no_more_than_one_percent_is_asked_of_sampled_orders():
    linearization = sgdsde.linearize(BY_NAME["two outputs"].problem())
    sgd = sgdsde.SGD(0.05, 3, sampling="shuffled")
    found = sgdsde.predict(linearization, sgd, 40, dynamics=ReducedMoments(), record=[40])
    assert found.dynamics.startswith("ReducedMoments(tolerance=0.01)")
    assert found.dynamics.endswith("sampled epochs")
    assert found.estimated_error.max() < 0.01


@pytest.mark.parametrize(("n_steps", "reason"), [(4, "4 steps or fewer"), (5, None)])
def test_two_epochs_or_fewer_are_those_of_the_closure(n_steps, reason, monkeypatch):
    """And sixteen steps, whatever they are."""
    linearization = sgdsde.linearize(BY_NAME["two outputs"].problem())
    monkeypatch.setattr("sgdsde.dynamics.reduced_moments.exact_steps", lambda sgd, tolerance: 0)
    sgd = sgdsde.SGD(0.05, 2, sampling="shuffled")
    found = sgdsde.predict(linearization, sgd, n_steps, dynamics=ReducedMoments(), record=[n_steps])
    assert ("2 epochs or fewer" in found.dynamics) is (reason is not None)


@pytest.mark.parametrize("sampling", ["shuffled", "with_replacement"])
@pytest.mark.parametrize(("product", "is_taken"), [(0.99, True), (1.0, False)])
def test_decay_that_undoes_a_step_is_left_to_the_recursion(sampling, product, is_taken):
    linearization = sgdsde.linearize(BY_NAME["two outputs"].problem())
    sgd = sgdsde.SGD(0.02, 2, sampling=sampling, weight_decay=product / 0.02)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = sgdsde.predict(linearization, sgd, 200, dynamics=ReducedMoments(), record=[200])
    assert ("lr * weight_decay of 1 or more" not in found.dynamics) is is_taken


def test_within_an_epoch_the_sampling_of_its_orders_is_reported_too():
    """The same runs at steps inside and at the ends of epochs: more error inside, and the recursion within it."""
    linearization = sgdsde.linearize(BY_NAME["two outputs"].problem())
    lr = 0.4 * sgdsde.stability.max_lr(linearization, 1, sampling="without_replacement")
    sgd = sgdsde.SGD(lr, 1, sampling="shuffled")
    found = sgdsde.predict(linearization, sgd, 24, dynamics=ReducedMoments(0.05), record=[16, 18, 20, 22, 24])
    errors = found.estimated_error
    assert errors[1] > errors[0]
    assert errors[1] > errors[2], "not carried on to the end of the epoch"
    exact = sgdsde.predict(linearization, sgd, 24, dynamics=MomentRecursion(), record=[16, 18, 20, 22, 24])
    assert ((found.train_loss.mean / exact.train_loss.mean - 1).abs() < errors + 0.1).all()


@pytest.mark.parametrize("sampling", ["shuffled", "with_replacement"])
def test_records_are_projected_some_at_a_time(sampling, monkeypatch):
    """However many: losses, their spreads and errors stay what they are, within epochs and at their ends."""
    linearization = sgdsde.linearize(BY_NAME["two outputs, null space"].problem())
    limit = sgdsde.stability.max_lr(linearization, 1, sampling="without_replacement")
    sgd, record = sgdsde.SGD(0.3 * limit, 1, sampling=sampling, weight_decay=0.01), [0, 3, *range(9, 31)]
    found = []
    for at_once in (100, 5):
        for module in (prediction, epoch_prediction):
            monkeypatch.setattr(module, "RECORDS", at_once)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found.append(sgdsde.predict(linearization, sgd, 30, dynamics=ReducedMoments(0.1), record=record))
    one, other = found
    assert one.dynamics == other.dynamics
    assert one.dynamics.startswith("ReducedMoments")
    for side in ("train_loss", "test_loss"):
        for part in ("mean", "std"):
            torch.testing.assert_close(
                getattr(getattr(one, side), part), getattr(getattr(other, side), part), rtol=1e-9, atol=1e-9
            )
    torch.testing.assert_close(one.estimated_error, other.estimated_error, rtol=1e-9, atol=1e-12)
