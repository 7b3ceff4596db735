"""SDEPaths and its integrators: streams, groups, schedules, losses, messages."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import sgdsde
from sgdsde.dynamics import EulerMaruyama, ExponentialEuler, FrozenNoise, OutputLaw, SDEInt, SDEPaths, WeakOrder2
from sgdsde.dynamics.paths.integrators import PathSetup
from sgdsde.dynamics.paths.integrators.sdeint_adapter import WeightSystem
from tests.oracles import Given
from tests.problems import BY_NAME, classification_problem, digits_problem
from tests.statistics import assert_mean_is

NULL = BY_NAME["two outputs, null space"]
INTEGRATORS = [
    EulerMaruyama(),
    EulerMaruyama(substeps=3),
    ExponentialEuler(),
    WeakOrder2(),
    WeakOrder2(substeps=2),
    FrozenNoise(stride=1),
    SDEInt(),
]


def laws(
    linearization: sgdsde.Linearization, sgd: sgdsde.SGD, dynamics: SDEPaths, record: tuple[int, ...] = (0, 1, 6)
) -> list[OutputLaw]:
    return list(dynamics.evolve(linearization, sgd, list(record)))


@pytest.mark.parametrize("integrator", INTEGRATORS, ids=repr)
def test_grouping_and_the_number_of_paths_change_nothing(integrator: object) -> None:
    linearization, sgd = sgdsde.linearize(NULL.problem()), sgdsde.SGD(0.2, 2)
    n_paths = 70 if isinstance(integrator, SDEInt) else 200
    together = laws(linearization, sgd, SDEPaths(n_paths, integrator))[-1]
    for dynamics in (SDEPaths(n_paths, integrator, paths_at_once=64), SDEPaths(66, integrator)):
        other = laws(linearization, sgd, dynamics)[-1]
        count = len(other.samples)
        torch.testing.assert_close(other.samples, together.samples[:count], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(other.test_samples, together.test_samples[:count], rtol=1e-12, atol=1e-12)
    different = laws(linearization, sgd, SDEPaths(66, integrator, seed=1))[-1]
    assert float((different.samples - together.samples[:66]).abs().min()) > 0


@pytest.mark.parametrize("integrator", INTEGRATORS[:-1], ids=repr)
def test_recording_more_changes_nothing(integrator: object) -> None:
    """Not so for ``SDEInt``: sdeint draws the numbers between two recorded steps at once."""
    linearization, sgd = sgdsde.linearize(NULL.problem()), sgdsde.SGD(0.2, 2)
    often = laws(linearization, sgd, SDEPaths(64, integrator), tuple(range(7)))
    assert torch.equal(often[-1].samples, laws(linearization, sgd, SDEPaths(64, integrator))[-1].samples)


@pytest.mark.parametrize("integrator", INTEGRATORS, ids=repr)
def test_paths_start_at_the_network_and_stay_in_the_range(integrator: object) -> None:
    problem = NULL.problem()
    linearization = sgdsde.linearize(problem)
    first, _, last = laws(linearization, sgdsde.SGD(0.2, 2), SDEPaths(5, integrator))
    torch.testing.assert_close(first.samples, linearization.outputs.expand(5, -1, -1), rtol=0, atol=1e-15)
    torch.testing.assert_close(first.test_samples, linearization.test_outputs.expand(5, -1, -1), rtol=0, atol=1e-15)
    jacobian, test = problem.x_train.flatten(0, 1), problem.x_test.flatten(0, 1)
    moved = (last.samples - linearization.outputs).flatten(1)
    weights = moved @ torch.linalg.pinv(jacobian).mT
    torch.testing.assert_close(weights @ jacobian.mT, moved, rtol=0, atol=1e-12)
    test_moved = (last.test_samples - linearization.test_outputs).flatten(1)
    torch.testing.assert_close(weights @ test.mT, test_moved, rtol=0, atol=1e-12)
    assert float(moved.std(0).min()) > 1e-3


@pytest.mark.parametrize(
    "integrator",
    [EulerMaruyama(), ExponentialEuler(), WeakOrder2(), FrozenNoise(), SDEInt(), SDEInt("stratHeun")],
    ids=repr,
)
def test_whole_batches_have_no_noise(integrator: object) -> None:
    linearization = sgdsde.linearize(NULL.problem())
    sgd = sgdsde.SGD(0.2, 4, sampling="without_replacement")
    law = laws(linearization, sgd, SDEPaths(3, integrator))[-1]
    torch.testing.assert_close(law.samples, law.samples[:1].expand_as(law.samples), rtol=0, atol=1e-14)
    if integrator == EulerMaruyama():
        (descent,) = sgdsde.dynamics.GradientDescent().evolve(linearization, sgd, [6])
        torch.testing.assert_close(law.mean, descent.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(law.test_mean, descent.test_mean, rtol=1e-12, atol=1e-12)
    if isinstance(integrator, (ExponentialEuler, WeakOrder2, FrozenNoise)):
        (flow,) = sgdsde.dynamics.GradientFlow().evolve(linearization, sgd, [6])
        torch.testing.assert_close(law.mean, flow.mean, rtol=1e-12, atol=1e-12)


def test_substeps_are_smaller_steps_with_louder_noise() -> None:
    """Two substeps are two steps of half the learning rate at half the batch size, number for number."""
    linearization, generator = sgdsde.linearize(NULL.problem()), torch.Generator().manual_seed(0)
    numbers = [torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
    coarse, fine = sgdsde.SGD(0.2, 2, weight_decay=0.3), sgdsde.SGD(0.1, 1, weight_decay=0.3)
    first = EulerMaruyama(2).group(PathSetup(linearization, coarse, coarse.plan(4, 1), 0), range(5), Given(numbers))
    second = EulerMaruyama().group(PathSetup(linearization, fine, fine.plan(4, 2), 0), range(5), Given(numbers))
    first.advance(0, 1)
    second.advance(0, 2)
    for one, two in zip(first.outputs(1), second.outputs(2)):
        torch.testing.assert_close(one, two, rtol=1e-13, atol=1e-13)


# ------------------------------------------------------------------------------------------------- sdeint


@pytest.mark.parametrize("problem", [NULL.problem(), classification_problem()], ids=["squared error", "cross-entropy"])
def test_sdeint_euler_is_euler(problem: sgdsde.Problem) -> None:
    """The same increments give the same path: two implementations of one equation."""
    import sdeint

    linearization, n = sgdsde.linearize(problem), problem.n_train
    sgd, generator = sgdsde.SGD(0.2, 2), torch.Generator().manual_seed(0)
    setup = PathSetup(linearization, sgd, sgd.plan(n, 5), 0)
    numbers = [torch.randn(1, n, generator=generator, dtype=torch.float64) for _ in range(5)]
    group = EulerMaruyama().group(setup, range(1), Given(numbers))
    group.advance(0, 5)
    system = WeightSystem(setup, 0.2 * setup.plan.noise_factor(0), stratonovich=False)
    increments = torch.cat(numbers).numpy() * 0.2**0.5
    start = np.zeros(linearization.outputs.numel())
    w = sdeint.itoEuler(system.drift, system.noise, start, np.linspace(0, 1.0, 6), dW=increments)[-1]
    outputs = linearization.outputs + (linearization.kernel @ torch.from_numpy(w)).view_as(linearization.outputs)
    torch.testing.assert_close(group.outputs(5)[0][0], outputs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("problem", [NULL.problem(), classification_problem()], ids=["squared error", "cross-entropy"])
def test_stratonovich_drift(problem: sgdsde.Problem) -> None:
    """Ito drift less half of sum_k (d noise_k / dw) noise_k, by central differences along each noise vector."""
    linearization, sgd = sgdsde.linearize(problem), sgdsde.SGD(0.2, 2)
    setup = PathSetup(linearization, sgd, sgd.plan(problem.n_train, 5), 0)
    ito, stratonovich = (WeightSystem(setup, 0.1, flag) for flag in (False, True))
    w = np.random.default_rng(0).normal(size=linearization.outputs.numel())
    noise, h = ito.noise(w, 0.0), 1e-5
    derivative = sum(
        (ito.noise(w + h * column, 0.0)[:, k] - ito.noise(w - h * column, 0.0)[:, k]) / (2 * h)
        for k, column in enumerate(noise.T)
    )
    np.testing.assert_allclose(stratonovich.drift(w, 0.0), ito.drift(w, 0.0) - derivative / 2, rtol=1e-6, atol=1e-9)
    assert np.abs(derivative).max() > 1e-4


# ------------------------------------------------------------------------------------------- other losses


@pytest.mark.parametrize("words", [{}, {"momentum": 0.5, "weight_decay": 0.05}], ids=str)
def test_cross_entropy_is_predicted_by_paths(words: dict) -> None:
    """The default there; small steps, so that the batches' noise is near Gaussian over the run. Mean loss and mean
    outputs against SGD of the linearized model."""
    linearization = sgdsde.linearize(classification_problem())
    sgd = sgdsde.SGD(0.02, 3, **words)
    options = {"record": [0, 1, 10, 60], "observe": ("loss", "outputs")}
    predicted = sgdsde.predict(linearization, sgd, 60, **options)
    assert predicted.dynamics.startswith("SDEPaths")
    measured = sgdsde.run_ensemble(linearization, sgd, 60, 2000, **options)
    for side in ("train", "test"):
        one, two = getattr(predicted, f"{side}_loss"), getattr(measured, f"{side}_loss")
        error = (one.standard_error.square() + two.standard_error.square()).sqrt()[1:]
        assert float(((one.mean - two.mean)[1:] / error).abs().max()) < 5
        assert float(one.mean[-1]) == pytest.approx(float(two.mean[-1]), rel=0.01)
    descent = sgdsde.predict(linearization, sgd, 60, dynamics=sgdsde.dynamics.GradientDescent(), **options)
    with pytest.raises(AssertionError):
        assert_mean_is(descent.train_loss.mean, measured.train_loss.samples)


def test_squared_error_keeps_the_recursion() -> None:
    assert sgdsde.predict(NULL.problem(), sgdsde.SGD(0.1, 2), 3).dynamics.startswith("MomentRecursion")


def test_float32_stays_float32() -> None:
    linearization = sgdsde.linearize(classification_problem(), dtype=torch.float32)
    for integrator in (EulerMaruyama(), SDEInt()):
        law = laws(linearization, sgdsde.SGD(0.1, 2), SDEPaths(4, integrator))[-1]
        assert (law.samples.dtype, law.test_samples.dtype) == (torch.float32, torch.float32)


def test_without_a_test_set() -> None:
    problem = digits_problem(6, width=8)
    for integrator in (EulerMaruyama(), ExponentialEuler(), WeakOrder2(), FrozenNoise(), SDEInt()):
        law = laws(sgdsde.linearize(problem), sgdsde.SGD(0.01, 2), SDEPaths(4, integrator))[-1]
        assert law.test_samples is None
        assert law.samples.shape == (4, 6, 1)


# ------------------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize(("integrator", "words", "message"), [
    (EulerMaruyama(4), {"momentum": 0.9}, r"momentum=0.9 with substeps=4, .* use EulerMaruyama\(substeps=1\)"),
    (ExponentialEuler(), {"momentum": 0.9}, r"ExponentialEuler cannot represent momentum, .*; use EulerMaruyama\(\)"),
    (WeakOrder2(), {"momentum": 0.9}, r"WeakOrder2 cannot represent momentum, .*; use EulerMaruyama\(\)"),
    (FrozenNoise(), {"label_noise_std": 0.1}, r"FrozenNoise cannot represent momentum, .*; use EulerMaruyama\(\)"),
    (ExponentialEuler(), {"weight_decay": 0.1}, r"cannot represent momentum, weight decay or label noise"),
    (SDEInt(), {"label_noise_std": 0.1}, r"SDEInt cannot represent .*label noise; use EulerMaruyama\(\)"),
    (EulerMaruyama(), {"sampling": "shuffled"}, "shuffled epochs; use dynamics.MomentRecursion"),
])  # fmt: skip
def test_what_integrators_cannot_represent(integrator: object, words: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        laws(sgdsde.linearize(NULL.problem()), sgdsde.SGD(0.1, 2, **words), SDEPaths(4, integrator))


def test_decay_needs_the_weights() -> None:
    linearization = dataclasses.replace(sgdsde.linearize(NULL.problem()), weight_outputs=None)
    with pytest.raises(ValueError, match="weight decay without weight_outputs; use weight_decay=0"):
        laws(linearization, sgdsde.SGD(0.1, 2, weight_decay=0.1), SDEPaths(4))


def test_losses_that_integrators_refuse() -> None:
    linearization = sgdsde.linearize(classification_problem())
    with pytest.raises(ValueError, match="ExponentialEuler cannot represent CrossEntropyLoss"):
        laws(linearization, sgdsde.SGD(0.1, 2), SDEPaths(4, ExponentialEuler()))
    with pytest.raises(ValueError, match="SDEPaths cannot represent label noise without squared error"):
        laws(linearization, sgdsde.SGD(0.1, 2, label_noise_std=0.1), SDEPaths(4))


def test_sdeint_refuses_by_name_and_size() -> None:
    with pytest.raises(ValueError, match=r"method must be one of 'itoEuler', 'itoSRI2', .*'stratKP2iS', got 'rk4'"):
        SDEInt("rk4")
    linearization = sgdsde.linearize(digits_problem(65, width=4))
    message = r"at most 64 for SDEInt, got 65 \(n_train=65, n_outputs=1\); .* use EulerMaruyama\(substeps=2\)"
    with pytest.raises(ValueError, match=message):
        laws(linearization, sgdsde.SGD(0.1, 2), SDEPaths(4, SDEInt(substeps=2)))


def test_every_method_of_sdeint_is_there() -> None:
    import sdeint

    known = {"itoEuler", "itoSRI2", "stratHeun", "stratSRS2", "stratKP2iS"}
    assert {name for name in dir(sdeint) if name.startswith(("ito", "strat"))} == known | {"itoint", "stratint"}


def test_without_sdeint_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "sdeint", None)
    with pytest.raises(ImportError, match="SDEInt needs the package sdeint: pip install sdeint, or use EulerMaruyama"):
        laws(sgdsde.linearize(NULL.problem()), sgdsde.SGD(0.1, 2), SDEPaths(4, SDEInt()))


@pytest.mark.parametrize(("words", "error", "message"), [
    ({"n_paths": 1}, ValueError, "n_paths must be at least 2, got 1"),
    ({"n_paths": 2.5}, ValueError, "n_paths must be a whole number"),
    ({"seed": -1}, ValueError, "seed must be at least 0"),
    ({"paths_at_once": 0}, ValueError, "paths_at_once must be at least 1"),
    ({"integrator": "euler"}, TypeError, r"integrator must be an integrator, got 'euler'; use dynamics.EulerMaruyama"),
    ({"integrator": EulerMaruyama}, TypeError, "integrator must be an integrator"),
])  # fmt: skip
def test_messages_of_paths(words: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SDEPaths(**words)


@pytest.mark.parametrize(
    "make", [EulerMaruyama, ExponentialEuler, WeakOrder2, lambda substeps: SDEInt(substeps=substeps)]
)
def test_substeps_are_whole(make: object) -> None:
    with pytest.raises(ValueError, match=r"substeps must be a whole number, got 1\.5"):
        make(1.5)
    with pytest.raises(ValueError, match="substeps must be at least 1, got 0"):
        make(0)


@pytest.mark.parametrize(
    ("at_once", "sizes"), [(1, [64] * 4 + [44]), (64, [64] * 4 + [44]), (130, [128, 128, 44]), (999, [300])]
)
def test_paths_are_stepped_together_in_whole_blocks_as_asked(at_once, sizes, monkeypatch):
    """Of 64, at least one; no draw depends on it."""
    seen = []
    original = EulerMaruyama.group
    monkeypatch.setattr(EulerMaruyama, "group", lambda self, setup, paths, draws: (
        seen.append(len(paths)), original(self, setup, paths, draws))[1])  # fmt: skip
    linearization, sgd = sgdsde.linearize(BY_NAME["one output"].problem()), sgdsde.SGD(0.1, 2)
    (law,) = SDEPaths(300, paths_at_once=at_once).evolve(linearization, sgd, [3])
    assert seen == sizes
    (whole,) = SDEPaths(300).evolve(linearization, sgd, [3])
    torch.testing.assert_close(law.samples, whole.samples)
    seen.clear()
    monkeypatch.setattr("sgdsde.dynamics.sde_paths.PATHS_AT_ONCE", 128)
    (other,) = SDEPaths(300).evolve(linearization, sgd, [3])
    assert seen == [128, 128, 44], "no more on a CPU, however much fits"
    torch.testing.assert_close(other.samples, whole.samples)


@pytest.mark.parametrize("most", [3, 256])
def test_sdeint_takes_any_number_of_steps_by_calls_of_some(most, monkeypatch):
    """Without noise Euler's method is known: over changes of the learning rate, recorded steps, and calls of sdeint."""
    pytest.importorskip("sdeint")
    monkeypatch.setattr("sgdsde.dynamics.paths.integrators.sdeint_adapter.STEPS_A_CALL", most)
    linearization = sgdsde.linearize(NULL.problem())
    sgd = sgdsde.SGD(lambda k: 0.2 if k < 5 else 0.05, 4, sampling="without_replacement")
    record = [0, 2, 12]
    found = list(SDEPaths(2, SDEInt("itoEuler", substeps=2)).evolve(linearization, sgd, record))
    exact = list(SDEPaths(2, EulerMaruyama(substeps=2)).evolve(linearization, sgd, record))
    for one, other in zip(found, exact):
        torch.testing.assert_close(one.samples, other.samples, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(one.test_samples, other.test_samples, rtol=1e-10, atol=1e-11)
