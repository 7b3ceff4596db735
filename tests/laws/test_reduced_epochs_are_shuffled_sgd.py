"""The reduced model of shuffled epochs is SGD on shuffled epochs, to the error that it reports.

Orders are sampled, so the claims are statistical: the reported error is two standard errors, and a deviation of twice
that (four standard errors, one in 16,000 for each number) fails.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

import sgdsde
from sgdsde.dynamics import MomentRecursion, ReducedModelWarning, ReducedMoments
from sgdsde.dynamics.moments.reduced import epoch_prediction
from sgdsde.dynamics.moments.reduced.epoch_map import EpochMap
from sgdsde.dynamics.moments.reduced.repeated_map import after
from tests.epochs import enumerate_epochs
from tests.problems import BY_NAME, LARGER

CHANCE = 2.0  # times the reported error
N_STEPS = 20


def limit(linearization: sgdsde.Linearization, batch_size: int, **words: float) -> float:
    return sgdsde.stability.max_lr(linearization, batch_size, sampling="without_replacement", **words)


CASES = [
    ("one output", 2, {}),
    ("one output, null space", 1, {}),
    ("two outputs", 3, {}),
    ("two outputs, null space", 3, {"weight_decay": 0.05}),
    ("one output, duplicated input", 1, {"weight_decay": 0.1}),
    ("two outputs", 1, {"drop_last": True}),
]


@pytest.mark.parametrize(("name", "batch_size", "words"), CASES, ids=str)
def test_every_order_of_every_epoch(name, batch_size, words):
    """Against the enumeration of all orders: within epochs and at their ends, from a smaller last batch to decay."""
    problem = BY_NAME[name].problem()
    linearization = sgdsde.linearize(problem)
    top = limit(linearization, batch_size, **{k: v for k, v in words.items() if k == "weight_decay"})
    sgd = sgdsde.SGD(0.4 * top, batch_size, sampling="shuffled", **words)
    record = list(range(N_STEPS + 1))
    ours = sgdsde.predict(linearization, sgd, N_STEPS, dynamics=ReducedMoments(0.05), record=record)
    assert ours.dynamics.endswith("sampled epochs")
    truth = torch.tensor([law.train_loss for law in enumerate_epochs(problem, sgd, N_STEPS)]).double()
    error = (ours.train_loss.mean / truth - 1).abs()
    assert (error <= CHANCE * ours.estimated_error + 1e-6).all()
    assert (error < 0.05).all()
    fresh = dataclasses.replace(sgd, sampling="without_replacement", drop_last=False)
    plain = sgdsde.predict(linearization, fresh, N_STEPS, dynamics=MomentRecursion(), record=record)
    wrong = (plain.train_loss.mean / truth - 1).abs()
    assert (wrong > CHANCE * ours.estimated_error + 1e-6)[4:].any(), "fresh batches must be told apart"


@pytest.mark.parametrize(("name", "batch_size", "words"), [CASES[2], CASES[3]], ids=str)
def test_outputs_have_the_mean_and_covariance_of_every_order(name, batch_size, words):
    """Train and test: 4096 runs of the first two epochs (a standard error of 2 %), then 64 orders or more."""
    problem = BY_NAME[name].problem()
    linearization, d = sgdsde.linearize(problem), problem.n_train * problem.n_outputs
    sgd = sgdsde.SGD(0.3 * limit(linearization, batch_size), batch_size, sampling="shuffled", **words)
    first = 2 * -(-problem.n_train // batch_size)
    fresh = dataclasses.replace(sgd, sampling="without_replacement")
    record, off = list(range(N_STEPS + 1)), []
    laws = ReducedMoments(0.05).evolve(linearization, sgd, record)
    plain = MomentRecursion().evolve(linearization, fresh, record)
    for law, truth, wrong in zip(laws, enumerate_epochs(problem, sgd, N_STEPS), plain):
        mean = torch.cat([law.mean.flatten(), law.test_mean.flatten()])
        expected = torch.from_numpy(truth.mean)
        assert (mean - expected).norm() <= (0.04 if law.step <= first else 0.12) * expected.norm()
        for part, covariance in ((slice(d), law.covariance), (slice(d, None), law.test_covariance)):
            exact = torch.from_numpy(truth.covariance[part, part])
            error = (covariance.to_dense() - exact).norm()
            assert error <= (0.1 if law.step <= first else 0.25) * exact.norm() + 1e-12
        exact = torch.from_numpy(truth.covariance[:d, :d])
        off.append(float((wrong.covariance.to_dense() - exact).norm() / exact.norm().clamp_min(1e-9)))
    assert max(off[first:]) > 0.5, "fresh batches must be told apart"


@pytest.mark.parametrize("words", [{}, {"weight_decay": 0.02, "label_noise_std": 0.3}], ids=str)
def test_losses_and_spreads_of_sampled_runs(words):
    linearization = sgdsde.linearize(LARGER.problem())
    sgd = sgdsde.SGD(0.25 * limit(linearization, 5), 5, sampling="shuffled", **words)
    record = [0, 3, 5, 8, 10, 15, 17, 25, 32, 35]
    ours = sgdsde.predict(linearization, sgd, 35, dynamics=ReducedMoments(), record=record)
    runs = sgdsde.run_ensemble(linearization, sgd, 35, 4000, record=record, seed=3)
    for side in ("train_loss", "test_loss"):
        predicted, measured = getattr(ours, side), getattr(runs, side)
        chance = 4 * measured.standard_error / measured.mean
        allowed = CHANCE * ours.estimated_error + chance + (0.02 if side == "test_loss" else 0.0)
        assert ((predicted.mean / measured.mean - 1).abs() <= allowed + 1e-9).all()
        assert ((predicted.std / measured.std - 1).abs()[1:] < 0.5).all()


def test_several_seeds_scatter_by_less_than_they_report():
    linearization = sgdsde.linearize(BY_NAME["two outputs"].problem())
    sgd = sgdsde.SGD(0.4 * limit(linearization, 2), 2, sampling="shuffled")
    words = {"record": [4, 6, 20, 60]}
    found = [sgdsde.predict(linearization, sgd, 60, dynamics=ReducedMoments(seed=seed), **words) for seed in range(4)]
    losses = torch.stack([one.train_loss.mean for one in found])
    reported = torch.stack([one.estimated_error for one in found]).mean(0)
    spread = losses.std(0) / losses.mean(0)
    assert (spread > 0).all()
    assert (spread <= reported).all()
    again = sgdsde.predict(linearization, sgd, 60, dynamics=ReducedMoments(seed=1), **words)
    torch.testing.assert_close(again.train_loss.mean, losses[1], rtol=1e-12, atol=0)


def test_any_horizon_and_a_stationary_floor():
    """After 10^9 steps the loss is that of label noise alone, at the end of an epoch and within one."""
    problem = BY_NAME["two outputs, null space"].problem()
    linearization = sgdsde.linearize(problem)
    sgd = sgdsde.SGD(0.3 * limit(linearization, 2), 2, sampling="shuffled", label_noise_std=0.5)
    record = [10**9 - 2, 10**9 - 1, 10**9]
    far = sgdsde.predict(linearization, sgd, 10**9, dynamics=ReducedMoments(), record=record)
    runs = sgdsde.run_ensemble(linearization, sgd, 600, 1000, record=[598, 599, 600], seed=2)
    chance = 4 * runs.train_loss.standard_error / runs.train_loss.mean
    error = (far.train_loss.mean / runs.train_loss.mean - 1).abs()
    assert (error <= CHANCE * far.estimated_error + chance).all()
    torch.testing.assert_close(far.train_loss.mean[0], far.train_loss.mean[2], rtol=1e-8, atol=0)


def test_an_epoch_of_one_step_is_a_fresh_batch_exactly():
    linearization = sgdsde.linearize(BY_NAME["two outputs"].problem())
    for batch_size, words in ((4, {}), (3, {"drop_last": True}), (4, {"label_noise_std": 0.1})):
        sgd = sgdsde.SGD(0.3 * limit(linearization, batch_size), batch_size, sampling="shuffled", **words)
        fresh = dataclasses.replace(sgd, sampling="without_replacement", drop_last=False)
        ours = sgdsde.predict(linearization, sgd, 100, dynamics=ReducedMoments())
        plain = sgdsde.predict(linearization, fresh, 100, dynamics=MomentRecursion())
        torch.testing.assert_close(ours.train_loss.mean, plain.train_loss.mean, rtol=1e-5, atol=0)


def test_powers_of_an_epoch_are_the_epochs_one_by_one():
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return 0.1 * torch.randn(*size, generator=generator, dtype=torch.float64)

    step = EpochMap(torch.eye(3).double() / 3 + normal(3, 3), normal(3, 4, 2), normal(3), normal(4, 4), normal(4, 2))
    y, m = normal(3), normal(4, 2)
    wanted, epochs = [], [0, 1, 5, 5, 12]
    for k in range(13):
        wanted += [(y, m)] * epochs.count(k)
        y, m = step(y, m)
    for (ours, mean), (slow, slow_mean) in zip(after(step, wanted[0][0], wanted[0][1], epochs), wanted):
        torch.testing.assert_close(ours, slow, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(mean, slow_mean, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"momentum": 0.5}, "shuffled epochs with momentum"),
        ({"lr": lambda k: 0.01 / (1 + k)}, "schedules over shuffled epochs"),
    ],
    ids=["momentum", "schedule"],
)
def test_what_it_cannot_represent_is_refused_by_name(words, reason):
    linearization = sgdsde.linearize(BY_NAME["two outputs"].problem())
    sgd = sgdsde.SGD(**({"lr": 0.01, "batch_size": 2, "sampling": "shuffled"} | words))
    with pytest.raises(ValueError, match=f"cannot represent {reason}.*; use dynamics.MomentRecursion"):
        sgdsde.predict(linearization, sgd, 100, dynamics=ReducedMoments())


def test_a_tolerance_that_is_missed_is_told(monkeypatch):
    linearization = sgdsde.linearize(BY_NAME["two outputs"].problem())
    monkeypatch.setattr(epoch_prediction, "ROUNDS", (1,))
    monkeypatch.setattr(epoch_prediction, "FINEST", 1e-4)
    sgd = sgdsde.SGD(0.3 * limit(linearization, 2), 2, sampling="shuffled")
    with pytest.warns(ReducedModelWarning, match="above tolerance=0.0001"):
        sgdsde.predict(linearization, sgd, 10_000, dynamics=ReducedMoments())
    short = sgdsde.predict(linearization, sgd, 100, dynamics=ReducedMoments(), record=[100])
    assert short.dynamics.startswith("MomentRecursion() for ReducedMoments")


def test_beyond_the_limit_the_closure_answers_or_a_long_horizon_is_refused():
    linearization = sgdsde.linearize(BY_NAME["two outputs"].problem())
    sgd = sgdsde.SGD(1.5 * limit(linearization, 2), 2, sampling="shuffled")
    with pytest.warns(sgdsde.UnstableWarning):
        past = sgdsde.predict(linearization, sgd, 40, dynamics=ReducedMoments())
    assert "beyond the mean-square limit" in past.dynamics
    with pytest.warns(sgdsde.UnstableWarning), pytest.raises(ValueError, match="over so many steps"):
        sgdsde.predict(linearization, sgd, 10**6, dynamics=ReducedMoments())
