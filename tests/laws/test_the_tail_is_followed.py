"""Where the tail of a truncated eigenbasis is followed, losses are those of the whole kernel; frozen, they are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sgdsde
from sgdsde import SGD, dynamics, stability
from sgdsde.dynamics.modal_moments import DiagonalState
from sgdsde.dynamics.moments.modes import Modes
from sgdsde.dynamics.moments.state import laws
from sgdsde.dynamics.output_law import Covariance, CovarianceWithBulk
from sgdsde.kernel import DenseKernel, KroneckerKernel
from sgdsde.kernel.krylov import krylov_basis, random_signs, spectral_nodes
from sgdsde.prediction import evolve
from tests.problems import digits_problem
from tests.settings import chosen

RECORD = [0, 1, 3, 10, 40, 150]
WORDS = chosen("plain", "without replacement", "momentum", "nesterov", "decay", "momentum, decay", "label noise") | {
    "schedule": {"schedule": True}
}


@pytest.fixture(scope="module")
def digits() -> sgdsde.Linearization:
    return sgdsde.linearize(digits_problem(96, n_test=16))


@pytest.fixture(scope="module")
def limit(digits) -> float:
    return stability.max_lr(digits, 4)


def training(limit: float, share: float, words: dict) -> SGD:
    words = dict(words)
    lr = share * limit * (1 - words.get("momentum", 0))
    if words.pop("schedule", False):
        return SGD(lambda k: lr * (1.0 if k < 20 else 0.3), lambda k: 4 + k % 2)
    return SGD(lr, 4, **words)


def error(linearization, rank: int, sgd: SGD, kind: dynamics.Dynamics, side: str = "train_loss", **options):
    """Relative, at every recorded step, and what is reported of it."""
    part = sgdsde.predict(linearization.truncate(rank, **options), sgd, RECORD[-1], record=RECORD, dynamics=kind)
    whole = evolve(kind, linearization, sgd, RECORD)
    wanted = getattr(whole, side).mean
    return getattr(part, side).mean / wanted - 1, part.truncation_error / wanted


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("side", ["train_loss", "test_loss"])
def test_the_mean_of_the_tail_is_followed(digits, limit, words, side):
    sgd, descent = training(limit, 0.3, WORDS[words]), dynamics.GradientDescent()
    followed, _ = error(digits, 12, sgd, descent, side)
    assert followed.abs().max() < 1e-3
    if side == "train_loss" and words == "plain":
        frozen, _ = error(digits, 12, sgd, descent, tail="frozen")
        assert frozen.abs().max() > 0.3


@pytest.mark.parametrize("words", WORDS)
def test_the_loss_on_a_tenth_of_the_eigenpairs_is_that_on_all(digits, limit, words):
    sgd, kind = training(limit, 0.3, WORDS[words]), dynamics.MomentRecursion()
    followed, reported = error(digits, 10, sgd, kind)
    assert followed.abs().max() < 0.05
    assert (followed.abs() < reported + 2e-3).all()


def test_the_noise_of_the_bulk_matters(digits, limit, monkeypatch):
    """Without it, and with a frozen tail, the same bounds fail."""
    sgd, kind = training(limit, 0.5, {}), dynamics.MomentRecursion()
    followed, _ = error(digits, 10, sgd, kind)
    frozen, _ = error(digits, 10, sgd, kind, tail="frozen")
    monkeypatch.setattr("sgdsde.dynamics.moments.modal_state.BulkState.of", lambda *words: None)
    without, _ = error(digits, 10, sgd, kind)
    assert followed.abs().max() < 0.06
    assert frozen.abs().max() > 5 * followed.abs().max()
    assert without.abs().max() > 2 * followed.abs().max()


def test_a_closure_of_variances_follows_the_same_tail(digits, limit):
    followed, _ = error(digits, 24, training(limit, 0.3, {}), dynamics.ModalMoments())
    assert followed.abs().max() < 0.03


@pytest.mark.parametrize("words", ["plain", "label noise", "decay"])
def test_the_reduced_model_follows_the_same_tail(digits, limit, words):
    part, sgd, record = digits.truncate(12), training(limit, 0.4, WORDS[words]), [0, 30, 100, 400]
    far = [*record, 10**6]  # which a frozen tail is refused for
    reduced = evolve(dynamics.ReducedMoments(), part, sgd, far)
    plain = evolve(dynamics.MomentRecursion(), part, sgd, record)
    assert "directions" in reduced.dynamics
    torch.testing.assert_close(reduced.train_loss.mean[:-1], plain.train_loss.mean, rtol=1e-4, atol=0)
    torch.testing.assert_close(reduced.train_loss.std[:-1], plain.train_loss.std, rtol=1e-2, atol=0)
    assert 0 <= reduced.train_loss.mean[-1] < plain.train_loss.mean[-1]


def test_what_leaves_the_bulk_out_says_so(digits, limit):
    sgd = training(limit, 0.1, {})
    for kind, says in ((dynamics.OrnsteinUhlenbeck(), True), (dynamics.MomentRecursion(), False)):
        for one, expected in ((digits.truncate(10), says), (digits.truncate(10, tail="frozen"), False)):
            found = sgdsde.predict(one, sgd, 5, dynamics=kind).assumptions
            assert any("no noise reaches the directions outside" in words for words in found) is expected


def test_outputs_that_share_a_kernel_share_its_tail():
    rng = np.random.default_rng(0)
    one = digits_problem(96)
    model = sgdsde.networks.MLP(64, 128, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    targets = torch.from_numpy(rng.normal(size=(96, 3)))
    problem = sgdsde.Problem(model, one.x_train, targets, loss=one.loss)
    shared = KroneckerKernel(DenseKernel(sgdsde.empirical_ntk(model, one.x_train, outputs="trace")), 3, scale=1 / 3)
    whole = sgdsde.linearize(problem, kernel=shared)
    sgd = SGD(0.3 * stability.max_lr(whole, 4), 4)
    found, _ = error(whole, 10, sgd, dynamics.TracedRecursion())
    assert found.abs().max() < 0.05
    # Its closure of variances is that of the kernel written out, in eigenvectors of one output each.
    part = whole.truncate(10)
    plan, modes = sgd.plan(96, 40), Modes(part, part.eigenbasis)
    written = list(laws(DiagonalState(modes, sgd, plan), plan, [40], "written out"))
    summed = list(dynamics.ModalMoments().evolve(part, sgd, [40]))
    torch.testing.assert_close(summed[0].mean, written[0].mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(summed[0].covariance.trace, written[0].covariance.trace, rtol=1e-9, atol=0)


def test_the_basis_holds_the_residual_and_the_trace(digits):
    part = digits.truncate(10)
    basis, bulk = part.basis, part.basis.tail.bulk
    identity = torch.eye(len(basis.values)).to(basis.vectors)
    torch.testing.assert_close(basis.vectors.mT @ basis.vectors, identity, rtol=0, atol=1e-12)
    for held in (part.residual.flatten(), part.weight_outputs.flatten()):
        torch.testing.assert_close(basis.vectors @ (basis.vectors.mT @ held), held, rtol=0, atol=1e-10)
    trace = digits.dense_kernel.trace()
    torch.testing.assert_close(basis.values.sum() + (bulk.counts * bulk.values).sum(), trace, rtol=1e-12, atol=0)
    torch.testing.assert_close(bulk.density.mean(), torch.ones(()).double(), rtol=1e-12, atol=0)
    half = part.halved().basis
    torch.testing.assert_close(
        half.values.sum() + (half.tail.bulk.counts * half.tail.bulk.values).sum(), trace, rtol=1e-9, atol=0
    )
    torch.testing.assert_close(half.values[-5:], basis.values[-5:])
    assert len(half.values) - half.tail.bulk.n_followed == 5
    with pytest.raises(ValueError, match="one with a followed tail"):
        digits.halved()
    with pytest.raises(ValueError, match="tail must be one of 'followed', 'frozen', got 'moving'"):
        digits.truncate(10, tail="moving")


def test_a_krylov_basis_holds_the_powers_outside(digits):
    kernel, outside = digits.operator, digits.eigenbasis.vectors[:, -4:]
    starts = torch.randn(96, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = krylov_basis(kernel, starts, 5, outside=outside)
    assert basis.shape == (96, 10)
    keep = torch.eye(96).double() - outside @ outside.mT
    moved = keep @ digits.dense_kernel @ keep
    power = keep @ starts
    for _ in range(5):
        torch.testing.assert_close(basis @ (basis.mT @ power), power, rtol=0, atol=1e-8 * float(power.norm()))
        power = moved @ power
    assert (power - basis @ (basis.mT @ power)).norm() > 1e-6 * power.norm()
    assert krylov_basis(kernel, outside @ torch.ones(4, 1).double(), 5, outside=outside).shape == (96, 0)


def test_spectral_nodes_integrate_powers(digits):
    outside = digits.eigenbasis.vectors[:, -4:]
    starts = random_signs(96, 3, torch.Generator().manual_seed(0)).double()
    nodes, weights = spectral_nodes(digits.operator, starts, 8, outside=outside)
    assert nodes.shape == weights.shape == (3, 8)
    assert spectral_nodes(digits.operator, starts, 200)[0].shape == (3, 96), "no more than directions"
    keep = torch.eye(96).double() - outside @ outside.mT
    moved = keep @ digits.dense_kernel @ keep
    for power in (0, 1, 2, 15):
        exact = ((keep @ starts) * (torch.linalg.matrix_power(moved, power) @ (keep @ starts))).sum(0)
        torch.testing.assert_close((weights * nodes**power).sum(1), exact, rtol=1e-7, atol=0)
    eigenvector = digits.eigenbasis.vectors[:, 50:51]
    nodes, weights = spectral_nodes(digits.operator, eigenvector, 8)
    torch.testing.assert_close((weights * nodes).sum(), digits.eigenbasis.values[50], rtol=1e-9, atol=0)
    assert weights.max() > 1 - 1e-9


@pytest.mark.parametrize("unit", [1e-14, 1.0, 1e14])
def test_nodes_go_with_the_unit_of_the_kernel(unit):
    """Also where a start lies in a small invariant subspace: three eigenvalues have three nodes, others no weight."""
    root = torch.linalg.qr(torch.randn(30, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    values = torch.tensor([1.0, 2.0, 5.0]).double().repeat(10)
    starts = random_signs(30, 2, torch.Generator().manual_seed(1)).double()
    nodes, weights = spectral_nodes(DenseKernel(unit * (root * values) @ root.mT), starts, 6)
    shares = torch.stack([(root.mT @ starts).square()[values == value].sum(0) for value in (1.0, 2.0, 5.0)], 1)
    for column in range(2):
        heavy = weights[column] > 1e-6
        torch.testing.assert_close(nodes[column, heavy] / unit, torch.tensor([1.0, 2.0, 5.0]).double())
        torch.testing.assert_close(weights[column, heavy], shares[column])
    basis = krylov_basis(DenseKernel(unit * (root * values) @ root.mT), starts, 6)
    assert basis.shape == (30, 6)


def test_a_covariance_with_a_bulk_is_the_sum_of_both():
    rng = torch.Generator().manual_seed(0)
    factor = torch.linalg.qr(torch.randn(6, 2, generator=rng, dtype=torch.float64)).Q
    inside = Covariance(factor, torch.tensor([[2.0, 0.3], [0.3, 1.0]]).double(), torch.eye(2).double())
    variances, counts = torch.tensor([0.5, 0.1]).double(), torch.tensor([1.0, 3.0]).double()
    even = CovarianceWithBulk.around(inside, variances, counts, torch.ones(6).double())
    dense = inside.to_dense() + torch.eye(6).double() * (0.8 / 6)
    torch.testing.assert_close(even.to_dense(), dense)
    torch.testing.assert_close(even.diagonal(), dense.diagonal())
    torch.testing.assert_close(even.blocks(2)[1], dense[2:4, 2:4])
    torch.testing.assert_close(even.trace, dense.trace())
    torch.testing.assert_close(even.squared_norm, inside.squared_norm + 0.25 + 3 * 0.01)
    torch.testing.assert_close(even.quadratic(factor[:, 0]), inside.quadratic(factor[:, 0]))
