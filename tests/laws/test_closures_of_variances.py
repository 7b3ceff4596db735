"""What the closures of modal variances keep exactly, how far they are off, and where they warn."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import sgdsde
from sgdsde.dynamics import GradientDescent, ModalMoments, MomentRecursion, Volterra
from sgdsde.dynamics.modal_moments import ClosureRangeWarning, DiagonalState
from sgdsde.dynamics.moments.modes import Modes
from sgdsde.dynamics.moments.state import laws
from sgdsde.dynamics.moments.variance_jumps import jumps_pay
from sgdsde.dynamics.volterra import VolterraState, lanczos, spectral_measure
from sgdsde.kernel import KroneckerKernel
from tests.problems import BY_NAME, LARGER, digits_problem

RECORD = [0, 1, 2, 5, 20, 100, 300]


@pytest.fixture(scope="module")
def digits() -> sgdsde.Linearization:
    return sgdsde.linearize(digits_problem(48, n_test=8))


@pytest.fixture(scope="module")
def limit(digits) -> float:
    return sgdsde.stability.max_lr(digits, 4)


def predict(linearization, sgd, dynamics, record=RECORD):
    return sgdsde.predict(linearization, sgd, record[-1], dynamics=dynamics, record=record)


def largest_error(linearization, sgd, dynamics) -> float:
    ours, theirs = (predict(linearization, sgd, one).train_loss.mean for one in (dynamics, MomentRecursion()))
    relevant = theirs > 1e-3 * theirs[0]
    return float((ours / theirs - 1).abs()[relevant].max())


@pytest.mark.parametrize("case", [LARGER, BY_NAME["two outputs, constant part, null space"]], ids=lambda c: c.name)
@pytest.mark.parametrize("words", [{}, {"momentum": 0.6, "weight_decay": 0.05, "label_noise_std": 0.3}])
def test_one_step_of_the_modal_closure_is_exact(case, words):
    """From a certain start the first step's variances do not depend on what the closure leaves out."""
    linearization = sgdsde.linearize(case.problem())
    sgd = sgdsde.SGD(0.02, 2, **words)
    ours, theirs = (predict(linearization, sgd, one, [0, 1]) for one in (ModalMoments(), MomentRecursion()))
    torch.testing.assert_close(ours.train_loss.mean, theirs.train_loss.mean, rtol=1e-12, atol=0)


def test_of_one_mode_the_modal_closure_is_the_recursion():
    """One weight: there is nothing off the diagonal, with every source of noise and with momentum."""
    rng = np.random.default_rng(0)
    from tests.problems import linear_problem

    problem = linear_problem(rng.normal(size=(6, 1, 1)), rng.normal(size=(6, 1)), [0.7])
    linearization = sgdsde.linearize(problem)
    sgd = sgdsde.SGD(0.1, 2, momentum=0.4, weight_decay=0.1, label_noise_std=0.5)
    ours, theirs = (predict(linearization, sgd, one) for one in (ModalMoments(), MomentRecursion()))
    torch.testing.assert_close(ours.train_loss.mean, theirs.train_loss.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.train_loss.std, theirs.train_loss.std, rtol=1e-10, atol=1e-14)


def test_without_noise_the_modal_closure_is_gradient_descent(digits, limit):
    sgd = sgdsde.SGD(limit, 48, sampling="without_replacement")
    ours, theirs = (predict(digits, sgd, one) for one in (ModalMoments(), GradientDescent()))
    torch.testing.assert_close(ours.train_loss.mean, theirs.train_loss.mean, rtol=1e-12, atol=0)
    assert (ours.train_loss.std == 0).all()


@pytest.mark.parametrize(("share", "modal", "volterra"), [(0.25, 0.02, 0.08), (0.5, 0.07, 0.2)])
def test_closures_are_near_the_recursion_where_they_are_meant_to_be(digits, limit, share, modal, volterra):
    """Errors on this problem; gradient descent, the control, is off by several times the larger one."""
    sgd = sgdsde.SGD(share * limit, 4)
    assert largest_error(digits, sgd, ModalMoments()) < modal
    assert largest_error(digits, sgd, Volterra()) < volterra
    assert largest_error(digits, sgd, GradientDescent()) > 2 * volterra


def test_closures_warn_near_the_limit(digits, limit):
    for dynamics in (ModalMoments(), Volterra()):
        with pytest.warns(ClosureRangeWarning, match="of the mean-square limit as"):
            predict(digits, sgdsde.SGD(0.85 * limit, 4), dynamics, [0, 5])


@pytest.mark.parametrize("words", [
    {"lr": lambda k: 0.75 if k == 3 else 0.1},
    {"lr": 0.75, "momentum": 0.5},
    {"lr": 0.75, "batch_size": lambda k: 4 if k == 3 else 48},
], ids=["a schedule", "momentum", "a schedule of batches"])  # fmt: skip
def test_the_largest_step_and_the_smallest_batch_are_warned_of(digits, limit, words):
    """Momentum as lr / (1 - momentum); from six tenths of the limit of the closure on."""
    rate, words = words["lr"], dict(words)
    factor = 1 - words.get("momentum", 0.0)
    own = DiagonalState(Modes.of(digits), sgdsde.SGD(0.1, 4), sgdsde.SGD(0.1, 4).plan(48, 1)).limit(1 / 4)
    for share, warns in ((1.0, True), (0.7, False)):
        words["lr"] = (lambda k, s=share: s * own * rate(k)) if callable(rate) else share * own * rate * factor
        sgd = sgdsde.SGD(**{"batch_size": 4} | words)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            list(ModalMoments().evolve(digits, sgd, [5]))
        assert [one.category for one in caught] == ([ClosureRangeWarning] if warns else [])


def test_the_limit_of_the_modal_closure_is_where_its_variances_grow(digits):
    modes, size = Modes.of(digits), 4
    sgd = sgdsde.SGD(0.1, size)
    top = DiagonalState(modes, sgd, sgd.plan(48, 1)).limit(1 / size)
    for share, grows in ((0.98, False), (1.02, True)):
        sgd = sgdsde.SGD(share * top, size)
        state = DiagonalState(modes, sgd, sgd.plan(48, 2000))
        for k in range(2000):
            state.advance(k)
            if k == 999:
                middle = state.ee.sum()
        assert bool(state.ee.sum() > middle) is grows


def test_volterra_with_all_eigenpairs_is_the_printed_equation(digits, limit):
    sgd = sgdsde.SGD(0.5 * limit, 4)
    ours = predict(digits, sgd, Volterra(rank=48, n_lanczos=48), [0, 1, 2, 10, 60]).train_loss.mean
    basis, q, n = digits.eigenbasis, 1 / 4, 48
    x = sgd.lr * 2 * basis.values / n
    kept, overlaps = (1 - x) ** 2 - q * x**2, (basis.vectors.mT @ digits.residual.flatten()) ** 2
    psi: list[float] = []
    for k in range(61):
        memory = sum(q * float((x**2 * kept ** (k - 1 - j)).sum()) * psi[j] for j in range(k))
        psi.append(float((kept**k * overlaps).sum()) / n + memory)
    torch.testing.assert_close(
        ours, torch.tensor([psi[k] for k in (0, 1, 2, 10, 60)], dtype=torch.float64), rtol=1e-9, atol=0
    )


def test_volterra_knows_the_spread_of_the_loss_that_its_variances_give(digits, limit):
    """Of every eigenvector its share of the noise; the mean outputs are those of descent, exactly."""
    sgd = sgdsde.SGD(0.5 * limit, 4)
    record = [0, 1, 2, 10, 60]
    laws_of = list(Volterra(rank=48, n_lanczos=48).evolve(digits, sgd, record))
    basis, q, n = digits.eigenbasis, 1 / 4, 48
    x, mean = sgd.lr * 2 * basis.values / n, basis.vectors.mT @ digits.residual.flatten()
    variance, own, found = torch.zeros_like(x), mean.square(), []
    for k in range(61):
        if k in record:
            found.append((mean, variance, own.sum() + variance.sum()))
        kept, total = (1 - x) ** 2 - q * x**2, own.sum() + variance.sum()
        variance, own, mean = kept * variance + q * x**2 * total, kept * own, (1 - x) * mean
    descent = list(GradientDescent().evolve(digits, sgd, record))
    for law, (m, v, total), exact in zip(laws_of, found, descent):
        torch.testing.assert_close(law.mean, exact.mean, rtol=1e-8, atol=1e-9)
        spread = law.covariance
        torch.testing.assert_close(spread.trace, total - m.square().sum(), rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(spread.squared_norm, v.square().sum(), rtol=1e-7, atol=1e-12)
        torch.testing.assert_close(spread.quadratic(m), (m.square() * v).sum(), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("noise", [1.0, 0.25, 1e-3, 1e-9])
def test_the_limit_of_the_printed_equation_is_where_its_memory_adds_up_to_one(digits, noise):
    """Or where a mode overshoots in every step by itself."""
    state = VolterraState(digits, sgdsde.SGD(0.1, 4).plan(48, 1), Volterra(rank=48, n_lanczos=48))
    h = 2 * digits.eigenbasis.values / 48

    def memory(lr: float) -> float:
        x = lr * h
        return float((noise * x**2 / (1 - (1 - x) ** 2 + noise * x**2)).sum())

    found = state.limit(noise)
    overshoots = 2 / (float(h.max()) * (1 - noise)) if noise < 1 else np.inf
    if memory(0.9999 * overshoots) < 1:
        assert found == pytest.approx(overshoots, rel=1e-6)
    else:
        assert memory(found) == pytest.approx(1, rel=1e-6)
        assert found < overshoots


def test_lanczos_gives_powers_of_the_kernel_and_the_measure_its_trace(digits):
    start, kernel = digits.residual.flatten(), digits.operator
    values, vectors, basis, length = lanczos(kernel, start, 12)
    torch.testing.assert_close(basis.mT @ basis, torch.eye(12).double(), rtol=0, atol=1e-12)
    for power in (0, 1, 2, 7):
        exact = start @ torch.linalg.matrix_power(digits.dense_kernel, power) @ start
        torch.testing.assert_close((values**power * (length * vectors[0]) ** 2).sum(), exact, rtol=1e-10, atol=0)
    nodes, counts = spectral_measure(kernel, Volterra(rank=10, n_lanczos=30, n_probes=400), like=start)
    # 400 draws of the trace of what is left: 5 standard errors of a Rademacher estimate are below 2 % of it
    torch.testing.assert_close((nodes * counts).sum(), digits.dense_kernel.trace(), rtol=2e-2, atol=0)
    torch.testing.assert_close(counts.sum(), torch.tensor(48.0).double(), rtol=2e-2, atol=0)


def test_volterra_takes_every_eigenvalue_of_a_shared_kernel_as_often_as_it_occurs(digits):
    base, like = digits.operator, digits.residual.flatten()
    options = Volterra(rank=10, n_lanczos=30, n_probes=3)
    values, counts = spectral_measure(base, options, like=like)
    shared = spectral_measure(KroneckerKernel(base, 3, scale=0.5), options, like=like.repeat(3))
    torch.testing.assert_close(shared[0], 0.5 * values)
    torch.testing.assert_close(shared[1], 3 * counts)


@pytest.mark.parametrize("dynamics", [ModalMoments(), Volterra()])
def test_closures_refuse_shuffled_epochs_and_name_what_works(digits, dynamics):
    sgd = sgdsde.SGD(0.1, 4, sampling="shuffled")
    with pytest.raises(ValueError, match=r"cannot represent shuffled epochs; use dynamics.MomentRecursion\(\)"):
        predict(digits, sgd, dynamics)


@pytest.mark.parametrize("words", [{"momentum": 0.5}, {"weight_decay": 0.1}, {"label_noise_std": 0.1}])
def test_volterra_refuses_by_name_what_it_leaves_out(digits, words):
    with pytest.raises(ValueError, match="Volterra cannot represent"):
        predict(digits, sgdsde.SGD(0.1, 4, **words), Volterra())


def test_volterra_tells_nothing_of_single_outputs_or_the_test_set(digits):
    assert predict(digits, sgdsde.SGD(0.01, 4), Volterra()).test_loss is None
    with pytest.raises(ValueError, match="cannot represent the law of single outputs"):
        sgdsde.predict(digits, sgdsde.SGD(0.01, 4), 5, dynamics=Volterra(), observe=("outputs",))


JUMPED = [0, 1, 10, 31, 32, 33, 50, 200, 1000]


DECAYING, NOISY = {"sampling": "without_replacement", "weight_decay": 0.02}, {"label_noise_std": 0.3}


@pytest.mark.parametrize(
    ("words", "tail"),
    [
        ({}, "none"),
        ({"weight_decay": 0.02}, "none"),
        (NOISY, "none"),
        (DECAYING, "followed"),
        (NOISY, "followed"),
        (DECAYING, "frozen"),
    ],
)
def test_many_steps_at_once_are_the_steps(digits, limit, words, tail):
    linearization = digits if tail == "none" else digits.truncate(12, tail=tail)
    assert_jumps_are_steps(linearization, sgdsde.SGD(0.4 * limit, 4, **words))


@pytest.mark.parametrize("words", [{"weight_decay": 0.05}, {"label_noise_std": 0.3}])
def test_many_steps_at_once_of_several_outputs(words):
    linearization = sgdsde.linearize(BY_NAME["two outputs, constant part, null space"].problem())
    lr = 0.4 * sgdsde.stability.max_lr(linearization, 2)
    assert_jumps_are_steps(linearization, sgdsde.SGD(lr, 2, **words))


@pytest.fixture(scope="module")
def two_outputs() -> sgdsde.Linearization:
    one = digits_problem(48, n_test=8)
    model = sgdsde.networks.MLP(64, 64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = torch.randn(56, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    words = {"loss": one.loss, "x_test": one.x_test, "y_test": y[48:]}
    return sgdsde.linearize(sgdsde.Problem(model, one.x_train, y[:48], **words))


@pytest.mark.parametrize("words", [DECAYING, NOISY], ids=str)
def test_many_steps_at_once_of_several_outputs_and_a_tail_that_is_followed(two_outputs, words):
    part = two_outputs.truncate(12)
    assert part.basis.tail.bulk is not None
    lr = 0.4 * sgdsde.stability.max_lr(two_outputs, 4)
    assert_jumps_are_steps(part, sgdsde.SGD(lr, 4, **words))


def test_jumps_are_made_where_they_cost_less_than_the_steps(digits, limit, two_outputs):
    """2 n c r^2 operations an output and 12 r^3, in steps of 6 n c r (times 2/3 c + 1/3), and five hundred steps."""
    for linearization in (digits, two_outputs, two_outputs.truncate(12)):
        modes, sgd = Modes.of(linearization), sgdsde.SGD(0.1 * limit, 4)
        c, (rows, r) = modes.n_outputs, modes.vectors.shape
        nodes = 0 if modes.bulk is None else len(modes.bulk.values)
        step = 6 * rows * r * (2 * c + 1) / 3
        pays = 500 + (2 * rows * c * r**2 + 12 * (r + nodes) ** 3) / step
        assert not jumps_pay(modes, sgd, int(pays))
        assert jumps_pay(modes, sgd, int(pays) + 1)


def assert_jumps_are_steps(linearization, sgd) -> None:
    modes = Modes.of(linearization)
    plan = sgd.plan(modes.n_train, JUMPED[-1])
    assert jumps_pay(modes, sgd, 10**6)
    stepped = list(laws(DiagonalState(modes, sgd, plan), plan, JUMPED, "steps"))
    state = DiagonalState(modes, sgd, plan)
    jumped = list(ModalMoments._by_jumps(state, sgd.plan(modes.n_train, 32), sgd, JUMPED, None))
    assert state.jumps(JUMPED[-1] - 32) is not None
    assert [one.step for one in jumped] == JUMPED
    for ours, theirs in zip(jumped, stepped):
        assert ours.time == pytest.approx(theirs.time)
        torch.testing.assert_close(ours.mean, theirs.mean, rtol=1e-9, atol=1e-11)
        if theirs.test_mean is not None:
            torch.testing.assert_close(ours.test_mean, theirs.test_mean, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(ours.covariance.trace, theirs.covariance.trace, rtol=1e-5, atol=1e-14)


def test_the_time_of_jumps_does_not_grow_with_the_horizon(digits, limit, monkeypatch):
    """Ten million steps without one of them beyond the first."""
    made = []
    advance = DiagonalState.advance
    monkeypatch.setattr(DiagonalState, "advance", lambda self, k: (made.append(k), advance(self, k))[1])
    sgd = sgdsde.SGD(0.4 * limit, 4, label_noise_std=0.2)
    far = predict(digits, sgd, ModalMoments(), [0, 10**6, 10**7]).train_loss.mean
    assert len(made) == 32
    assert torch.isfinite(far).all()
    assert far[2] <= far[1] * (1 + 1e-9)


def test_what_cannot_be_jumped_is_stepped(digits, limit):
    modes = Modes.of(digits)
    for sgd in (sgdsde.SGD(0.1, 4, momentum=0.5), sgdsde.SGD(lambda k: 0.1, 4)):
        assert not jumps_pay(modes, sgd, 10**6)
    descent = sgdsde.SGD(1.9 / float(modes.drift.max()), 48, sampling="without_replacement")  # modes that overshoot
    ours, theirs = (predict(digits, descent, one, [0, 60, 3000]) for one in (ModalMoments(), GradientDescent()))
    torch.testing.assert_close(ours.train_loss.mean, theirs.train_loss.mean, rtol=1e-10, atol=0)
