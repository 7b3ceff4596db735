"""A prediction with a moving kernel: the noise reaches the mean outputs, intervals follow the drift."""

from __future__ import annotations

import itertools
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde import _memory
from sgdsde.dynamics import MovingKernel, NoiseFeedback
from sgdsde.dynamics.moving_kernel.initial_directions import InitialDirections
from sgdsde.dynamics.moving_kernel.kernel_refresh import NearLimitWarning, Refresh, RefreshMonitor
from sgdsde.dynamics.moving_kernel.mean_path import MeanPath
from sgdsde.dynamics.moving_kernel.prediction_run import Interval, Options, PredictionRun
from sgdsde.dynamics.moving_kernel.weight_subspace import WeightSubspace
from tests.oracles import every_batch
from tests.problems import BY_NAME, mlp_problem


def squares(params, x):
    """(w . x)^2: its mean over any fluctuation of w is known from the second moment."""
    return (x @ params["w"]).square()[:, None]


def squares_problem() -> sgdsde.Problem:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(7, 1, generator=generator, dtype=torch.float64)
    w = torch.tensor([0.5, -0.3, 0.8], dtype=torch.float64)
    return sgdsde.Problem((squares, {"w": w}), x[:4], y[:4], loss=nn.MSELoss(), x_test=x[4:], y_test=y[4:])


def test_after_one_step_the_mean_outputs_are_those_of_all_batches():
    """Outputs of second order in the weights: the Ito term of the fluctuation is all that the mean path lacks."""
    problem, sgd = squares_problem(), sgdsde.SGD(0.005, 1)
    w, x = problem.params["w"], torch.cat([problem.x_train, problem.x_test])
    slope = 2 * (problem.x_train @ w).square().sub(problem.y_train[:, 0]) * 2 * (problem.x_train @ w)
    each = slope[:, None] * problem.x_train
    batches = every_batch(4, 1, sgd.sampling)
    expected = sum(chance * squares({"w": w - 0.005 * each[list(batch)].mean(0)}, x) for batch, chance in batches)
    on_the_path = squares({"w": w - 0.005 * each.mean(0)}, x)
    outputs = {}
    for feedback in (NoiseFeedback(n_draws=3), None):
        dynamics = MovingKernel(first_interval=1, feedback=feedback, tolerance=10.0)
        law = list(dynamics.evolve(sgdsde.linearize(problem), sgd, [0, 1, 2]))[1]
        outputs[feedback] = torch.cat([law.mean, law.test_mean])
    with_noise, without = outputs.values()
    torch.testing.assert_close(with_noise, expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(without, on_the_path, rtol=1e-8, atol=1e-10)
    assert (expected - on_the_path).abs().min() > 1e-6, "the noise matters at every output"


@pytest.mark.parametrize(
    ("drift", "following"),
    [(0.06, 15), (1e-9, 20), (0.045, 20), (0.09, 11), (0.5, 11)],
    ids=["to nine tenths of the tolerance", "at most doubled", "just doubled", "at least one more", "too far already"],
)
def test_the_next_interval_is_that_over_which_the_kernel_moves_by_the_tolerance(drift, following):
    run = SimpleNamespace(_options=SimpleNamespace(tolerance=0.1), _wish=None, _features=None)
    PredictionRun._settle(run, Interval(190, 10, first=None, last=None, drift=drift))
    assert run._wish == following
    PredictionRun._settle(run, Interval(4, 10, first=None, last=None, drift=drift))
    assert run._wish == 14 // 2 == 7, "half of the steps so far"


@pytest.mark.parametrize(
    ("drift", "length"),
    [
        (lambda length: 0.1 * length / 10, 10),
        (lambda length: 0.4 * length / 16, 4),
        (lambda length: 0.17, 16),
        (lambda length: 0.4, 1),
    ],
    ids=["as long as the tolerance allows", "shrunk", "a flicker is left alone", "but not one far too large"],
)
def test_an_interval_keeps_to_the_tolerance_unless_the_kernel_flickers(drift, length):
    run = SimpleNamespace(
        _options=SimpleNamespace(tolerance=0.1),
        _wish=16 if length != 10 else 10,
        _n_steps=100,
        _ahead=lambda step, length: Interval(step, length, first=None, last=None, drift=drift(length)),
    )
    found = PredictionRun._reach(run, 20)
    assert (found.start, found.length) == (20, pytest.approx(length, abs=1))


@pytest.mark.parametrize("wish", [1, 2, 3, 16])
def test_a_kernel_that_moves_too_far_in_every_step_is_made_anew_after_each(wish):
    run = SimpleNamespace(
        _options=SimpleNamespace(tolerance=0.1),
        _wish=wish,
        _n_steps=100,
        _ahead=lambda step, length: Interval(step, length, first=None, last=None, drift=1.0 * length),
    )
    assert PredictionRun._reach(run, 20).length == 1


def test_a_kernel_that_stays_is_made_anew_ever_more_rarely():
    refreshes: list[Refresh] = []
    dynamics = MovingKernel(on_refresh=refreshes.append, feedback=None)
    problem = BY_NAME["one output, null space"].problem()
    sgdsde.predict(problem, sgdsde.SGD(0.01, 2), 600, dynamics=dynamics, record=[600])
    starts = [refresh.step for refresh in refreshes]
    assert all(one.step + one.interval == other.step for one, other in itertools.pairwise(refreshes))
    assert starts[-1] > 300
    assert all(later <= 1.5 * start + 2 for start, later in itertools.pairwise(starts))
    assert all(later >= 1.5 * start - 1 for start, later in itertools.pairwise(starts) if start > 20)


def running(problem: sgdsde.Problem, sgd: sgdsde.SGD, n_steps: int, **words: object) -> PredictionRun:
    options = Options(
        **{"tolerance": 0.5, "first_interval": 4, "feedback": None, "rank": 64, "epoch_starts": 0} | words
    )
    plan = sgd.plan(problem.n_train, n_steps)
    return PredictionRun(options, sgdsde.linearize(problem), sgd, plan, lambda refresh: None)


def test_a_look_ahead_is_the_path_of_descent(monkeypatch):
    """Step by step where that is asked for; in strides nearly, every step counted once and by its own learning rate."""
    problem = mlp_problem()
    sgd = sgdsde.SGD(lambda k: 0.02 / (1 + 0.2 * k), 2, momentum=0.3)
    run = running(problem, sgd, 20)
    exact = [MeanPath.start(problem, sgd, sgd.plan(problem.n_train, 20))]
    for k in range(11):
        exact.append(exact[-1].advanced(k))
    for start, length in ((0, 11), (3, 7)):
        run._path = exact[start]
        for stride, tolerance in ((1, 1e-12), (3, 0.05), (20, 0.3)):
            run._stride = stride
            found = run._ahead(start, length)
            assert (found.start, found.stop) == (start, start + length)
            last = run._subspace.features(exact[start + length].params)
            moved = (last.train - run._features.train).norm()
            assert (found.last.train - last.train).norm() <= tolerance * moved
            assert (found.test_ends[1] - last.test).norm() <= tolerance * moved
            torch.testing.assert_close(found.test_ends[0], run._subspace.features(exact[start].params).test)
            halfway = found.at(start + length // 2)
            share = (length // 2) / length
            torch.testing.assert_close(halfway.train, (1 - share) * run._features.train + share * found.last.train)
            torch.testing.assert_close(halfway.test, (1 - share) * found.test_ends[0] + share * found.test_ends[1])


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_strides_are_far_from_the_limit_of_descent(momentum):
    """A quarter of the inverse sharpness at the largest learning rate to come, lr / (1 - momentum) with momentum."""
    problem = BY_NAME["two outputs"].problem()
    linearization = sgdsde.linearize(problem)
    top = sgdsde.stability.max_lr_full_batch(linearization)
    for share in (1e-3, 0.03, 0.9):
        sgd = sgdsde.SGD(lambda k, share=share: share * top * (1 - momentum) / (1 + k), 2, momentum=momentum)
        run = running(problem, sgd, 5)
        stride = run._largest_stride(run._seen(run._with_noise(0, run._features)))
        assert stride == max(1, int(0.25 / (2 * share)))


def test_the_effect_of_the_noise_goes_with_the_variance_of_the_outputs():
    """Between refreshes; training and test outputs alike, and the gradient that the mean follows."""
    problem, sgd = mlp_problem(), sgdsde.SGD(0.05, 2)
    run = running(problem, sgd, 20, feedback=NoiseFeedback(n_draws=2))
    shares, n = [], problem.n_train
    for k in range(12):
        law = run.law(k, 0.0)
        effect, variance = run._correction, run._fluctuation.output_variance(run._variance_features)
        share = variance / effect.size if effect.size else 0.0
        shares.append(share)
        mean = torch.cat([law.mean, law.test_mean]) - run._path.outputs(k)
        assert (effect.outputs is None) is (k < 4), "from the first refresh on that has seen noise"
        if effect.outputs is None:
            assert not mean.any()
        else:
            torch.testing.assert_close(mean, share * effect.outputs)
            assert mean[:n].abs().max() > 0
            assert mean[n:].abs().max() > 0
        path, seen = run._path, run._seen(run._expected(k))
        run.advance(k)
        pull = path.gradient(seen.moments.gradient)
        correction = effect.weighted(share) or dict.fromkeys(pull, 0.0)
        for name, value in path.params.items():
            torch.testing.assert_close(run._path.params[name], value - 0.05 * (pull[name] + correction[name]))
    assert len({round(share, 6) for share in shares}) > 5, "it changes from step to step"


def test_features_of_test_outputs_are_made_where_a_law_is_asked_for(monkeypatch):
    """At both ends of its interval; refreshes, tails and looks ahead do without, and so does a certain start."""
    seen: list[int] = []
    original = WeightSubspace._push
    monkeypatch.setattr(WeightSubspace, "_push", lambda self, *words: (seen.append(1), original(self, *words))[1])
    linearization, refreshes = sgdsde.linearize(mlp_problem()), []
    dynamics = MovingKernel(rank=6, on_refresh=refreshes.append)
    for count, _ in enumerate(dynamics.evolve(linearization, sgdsde.SGD(0.05, 2), [0, 20, 40])):
        assert len(seen) == 2 * count
    assert len(refreshes) > 3


def refresh(margin: float) -> Refresh:
    return Refresh(step=7, interval=5, drift=0.01, drift_from_start=0.1, margin=margin, n_directions=3, seconds=0.1)


@pytest.mark.parametrize(("momentum", "share"), [(0.0, 0.6), (0.5, 0.45), (0.9, 0.33)])
def test_momentum_is_warned_of_earlier(momentum, share):
    """Beyond 0.6 (1 - momentum / 2) of the mean-square limit."""
    monitor = RefreshMonitor(tolerance=0.1, momentum=momentum)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.see(refresh(share - 0.005), lr=0.1)
    with pytest.warns(NearLimitWarning, match=r"at step 7 lr=0.1 is .* limit 0\.\d+ of the kernel there"):
        monitor.see(refresh(share + 0.005), lr=0.1)


@pytest.mark.parametrize("share", [0.99, 1.01])
def test_directions_are_refused_exactly_where_five_copies_of_them_do_not_fit(share, monkeypatch):
    linearization = sgdsde.linearize(mlp_problem())
    count, p = len(linearization.eigenbasis.values), linearization.problem.functional.n_params
    found = InitialDirections.of(linearization, count)
    monkeypatch.setattr(_memory, "budget", lambda memory, device: int(share * 5 * count * p * 8))
    if share > 1:
        assert len(WeightSubspace.leading(linearization, found, rank=count)) == count
    else:
        with pytest.raises(MemoryError, match=f"{5 * count * p * 8:,}"):
            WeightSubspace.leading(linearization, found, rank=count)
