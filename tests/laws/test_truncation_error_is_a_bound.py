"""With a frozen tail, the expected loss on a truncated eigenbasis is off by no more than the bound; it is tight."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import sgdsde
from sgdsde import SGD, dynamics, stability
from sgdsde.dynamics.moments import truncation_bound
from sgdsde.dynamics.moments.modes import Modes
from sgdsde.dynamics.moments.truncation_bound import _Sharpness
from sgdsde.kernel import ImplicitKernel, KroneckerKernel, LowRankKernel, TiledKernel
from tests.problems import AFFINE, LINEAR, digits_problem, linear_problem
from tests.settings import chosen

RECORD = [0, 1, 3, 10, 40]
ROUNDING = 1e-9
"""One mode in the tail and no noise: the bound is the error itself."""

WORDS = chosen(
    "plain",
    "without replacement",
    "momentum",
    "nesterov",
    "momentum, dampening",
    "decay",
    "momentum, decay",
    "label noise",
) | {"schedule": {"schedule": True}}
NEAR_THE_LIMIT = ("plain", "without replacement", "momentum, dampening", "decay", "label noise")


def training(linearization: sgdsde.Linearization, batch_size: int, share: float, words: dict) -> SGD:
    """SGD at this share of the mean-square limit, less by 1 - momentum."""
    words = dict(words)
    limit = stability.max_lr(linearization, batch_size, weight_decay=words.get("weight_decay", 0))
    lr = share * limit * (1 - words.get("momentum", 0))
    if words.pop("schedule", False):
        return SGD(lambda k: lr * (1.0 if k < 5 else 0.3), lambda k: batch_size + k % 2)
    return SGD(lr, batch_size, **words)


def error_and_bound(
    linearization: sgdsde.Linearization, rank: int, sgd: SGD, kind: dynamics.Dynamics, record: list[int] = RECORD
) -> tuple[torch.Tensor, torch.Tensor]:
    whole = sgdsde.predict(linearization, sgd, record[-1], record=record, dynamics=kind)
    part = sgdsde.predict(linearization.truncate(rank, tail="frozen"), sgd, record[-1], record=record, dynamics=kind)
    assert whole.truncation_error is None
    return (part.train_loss.mean - whole.train_loss.mean).abs(), part.truncation_error


@pytest.mark.parametrize("words", WORDS)
def test_the_error_is_below_the_bound(words):
    share = 0.9 if words in NEAR_THE_LIMIT else 0.2
    for case in (*LINEAR[::2], AFFINE[1]):
        linearization = sgdsde.linearize(case.problem())
        rank = len(linearization.eigenbasis.values)
        for batch_size in (1, 3):
            sgd = training(linearization, batch_size, share, WORDS[words])
            for kept in {1, rank - 1}:
                for kind in (dynamics.MomentRecursion(), dynamics.GradientDescent()):
                    error, bound = error_and_bound(linearization, kept, sgd, kind)
                    assert (error <= bound * (1 + ROUNDING) + 1e-13).all(), (case.name, batch_size, kept, error, bound)


@pytest.fixture(scope="module")
def digits() -> sgdsde.Linearization:
    return sgdsde.linearize(digits_problem(96, n_test=16))


CONTINUOUS = [
    dynamics.GradientFlow(),
    dynamics.OrnsteinUhlenbeck(),
    dynamics.OrnsteinUhlenbeck(freeze="init"),
    dynamics.MomentEquations(order=1),
]


@pytest.mark.parametrize("kind", CONTINUOUS, ids=["flow", "frozen mean", "frozen start", "moments"])
def test_the_bound_holds_for_differential_equations_at_small_steps(digits, kind):
    sgd = training(digits, 16, 0.05, {})
    error, bound = error_and_bound(digits, 30, sgd, kind)
    assert (error <= 1.02 * bound + 1e-13).all()
    assert (error[1:] > bound[1:] / 20).all()


@pytest.mark.parametrize(("batch_size", "factor"), [(4, 10), (32, 5)])
def test_the_bound_is_no_empty_word_where_the_tail_hardly_moves(digits, batch_size, factor):
    error, bound = error_and_bound(digits, 60, training(digits, batch_size, 0.1, {}), dynamics.MomentRecursion())
    assert (error <= bound).all()
    assert (error[1:] > bound[1:] / factor).all()
    assert bound[-1] < 0.02


def test_a_bound_that_leaves_out_the_mean_of_the_tail_fails(digits, monkeypatch):
    monkeypatch.setattr(truncation_bound._TailMoments, "change", lambda self: self._trace())
    error, bound = error_and_bound(digits, 60, training(digits, 32, 0.1, {}), dynamics.GradientDescent())
    assert (error[1:] > bound[1:]).all()


def test_a_bound_that_leaves_out_the_noise_of_the_tail_fails(monkeypatch):
    # Orthogonal examples, so that nothing but the tail moves the tail; labels are noisy and nothing else is.
    features = np.diag([3.0, 2.0, 1.0, 0.5])[:, None, :]
    linearization = sgdsde.linearize(linear_problem(features, np.zeros((4, 1)), np.zeros(4)))
    sgd = SGD(0.05, 4, sampling="without_replacement", label_noise_std=1.0)
    error, bound = error_and_bound(linearization, 2, sgd, dynamics.MomentRecursion(), [0, 1, 2, 3])
    assert (error <= bound).all()
    assert (error[1:] > bound[1:] / 2).all()
    monkeypatch.setattr(truncation_bound._TailMoments, "_trace", lambda self: 0.0)
    error, bound = error_and_bound(linearization, 2, sgd, dynamics.MomentRecursion(), [0, 1, 2, 3])
    assert (error[1:] > bound[1:]).all()


def test_a_tail_without_eigenvalues_is_no_truncation(digits):
    rank = len(digits.eigenbasis.values)
    assert digits.truncate(rank, tail="frozen").basis.tail is None
    low = LINEAR[2].problem()  # rank 2 of 4
    whole = sgdsde.linearize(low)
    assert (
        whole.truncate(2, tail="frozen").basis.tail is None or whole.truncate(2, tail="frozen").basis.tail.trace < 1e-12
    )
    sgd = training(whole, 1, 0.5, {})
    a, b = (sgdsde.predict(one, sgd, 20) for one in (whole, whole.truncate(3, tail="frozen")))
    torch.testing.assert_close(a.train_loss.mean, b.train_loss.mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(a.test_loss.mean, b.test_loss.mean, rtol=1e-9, atol=1e-12)


def test_every_operator_gives_the_same_prediction(digits, tmp_path):
    problem = digits.problem
    sgd, expected = training(digits, 8, 0.2, {"weight_decay": 1e-3}), None
    full = TiledKernel.create(tmp_path / "full", problem.model, problem.x_train, tile=40)
    low = digits.truncate(40, tail="frozen").basis
    kernels = {
        "dense": None,
        "tiled": full,
        "implicit": ImplicitKernel(problem.functional, problem.x_train),
        "one output": TiledKernel.create(
            tmp_path / "each", problem.model, problem.x_train, tile=40, outputs="per_class"
        ).output(0),
        "kronecker": KroneckerKernel(full, 1),
        "low rank": LowRankKernel(low.values, low.vectors),
    }
    for name, kernel in kernels.items():
        linearization = sgdsde.linearize(problem, kernel=kernel).truncate(40, tail="frozen")
        predicted = sgdsde.predict(linearization, sgd, 30, record=RECORD[:-1])
        if expected is None:
            expected = predicted
        for side in ("train_loss", "test_loss"):
            found, wanted = getattr(predicted, side), getattr(expected, side)
            torch.testing.assert_close(found.mean, wanted.mean, rtol=1e-7, atol=1e-10, msg=name)
            torch.testing.assert_close(found.std, wanted.std, rtol=1e-6, atol=1e-10, msg=name)
        if name == "low rank":
            assert predicted.truncation_error is None  # this kernel has no tail
        else:
            torch.testing.assert_close(predicted.truncation_error, expected.truncation_error, rtol=1e-5, atol=1e-12)


def test_paths_and_runs_take_any_operator_without_truncation(digits, tmp_path):
    problem = digits.problem
    kernel = TiledKernel.create(tmp_path / "full", problem.model, problem.x_train, tile=40)
    on_disk = sgdsde.linearize(problem, kernel=kernel, rank=5)
    sgd = training(digits, 8, 0.2, {})
    for paths in (
        dynamics.SDEPaths(n_paths=8),
        dynamics.SDEPaths(n_paths=8, integrator=dynamics.EulerMaruyama(substeps=2)),
    ):
        a, b = (sgdsde.predict(one, sgd, 20, dynamics=paths) for one in (digits, on_disk))
        torch.testing.assert_close(a.train_loss.samples, b.train_loss.samples, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(a.test_loss.samples, b.test_loss.samples, rtol=1e-8, atol=1e-12)
        assert b.truncation_error is None
    a, b = (sgdsde.run_ensemble(one, sgd, 20, 4) for one in (digits, on_disk))
    torch.testing.assert_close(a.test_loss.samples, b.test_loss.samples, rtol=1e-8, atol=1e-12)
    for integrator in (dynamics.ExponentialEuler(), dynamics.WeakOrder2(), dynamics.FrozenNoise()):
        by_modes = dynamics.SDEPaths(n_paths=8, integrator=integrator)
        assert sgdsde.predict(on_disk, sgd, 20, dynamics=by_modes).truncation_error is not None


def test_what_needs_the_whole_kernel_says_so(digits, monkeypatch):
    shuffled = SGD(0.1, 8, sampling="shuffled")
    message = "cannot represent shuffled epochs on a truncated eigenbasis; use dynamics.LinearizedSGD"
    with pytest.raises(ValueError, match=message):
        sgdsde.predict(digits.truncate(10, tail="frozen"), shuffled, 5)
    implicit = sgdsde.linearize(
        digits.problem, kernel=ImplicitKernel(digits.problem.functional, digits.problem.x_train)
    )
    monkeypatch.setattr("sgdsde._memory.free_bytes", lambda device: 1000)
    with pytest.raises(MemoryError, match=re.escape("use products with the operator, or linearize(problem, rank=...)")):
        sgdsde.predict(implicit, SGD(0.1, 8), 5)


def test_a_kernel_that_does_not_fit_is_never_formed(digits, monkeypatch):
    one = digits.problem
    problem = sgdsde.Problem(one.model, one.x_train.repeat(3, 1), one.y_train.repeat(3, 1), loss=one.loss)
    dense = sgdsde.linearize(problem, rank=5)
    assert isinstance(dense.kernel, torch.Tensor)
    monkeypatch.setattr("sgdsde.kernel.spectrum.DENSE_UP_TO", 0)  # as if it had thousands of rows
    monkeypatch.setattr("sgdsde.kernel.operator.KernelOperator.to_dense", None)
    made = sgdsde.linearize(problem, rank=5, memory=600_000)  # the kernel takes 663,552 bytes
    assert isinstance(made.kernel, ImplicitKernel)
    leading, whole = (each.basis.values.sort(descending=True).values for each in (made, dense))
    torch.testing.assert_close(leading[:5], whole[:5], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(leading, whole, rtol=1e-6, atol=1e-9)  # of the tail, sensitive to rounding
    torch.testing.assert_close(made.weight_outputs, dense.weight_outputs)


def test_the_kernel_of_another_problem_is_refused(digits, tmp_path):
    problem, other = digits.problem, digits_problem(96, width=16)
    few = problem.x_train[:40]
    stored = TiledKernel.create(tmp_path / "few", problem.model, few, outputs="per_class")
    for kernel in (stored, stored.output(0), KroneckerKernel(stored, 1)):
        with pytest.raises(
            ValueError, match=r"the kernel in .*few must be made of inputs x1 \w+, got \w+; make it with"
        ):
            sgdsde.linearize(problem, kernel=kernel)
    with pytest.raises(ValueError, match=r"the kernel in .*few must be made of parameters \w+, got"):
        sgdsde.linearize(other, kernel=stored)
    for model, x, received in ((other.model, problem.x_train, "weights"), (problem.model, few, "inputs")):
        message = f"kernel must be of the problem's model and training set, got other {received}"
        with pytest.raises(ValueError, match=message):
            sgdsde.linearize(problem, kernel=ImplicitKernel(model, x))


def test_it_is_saved_and_older_files_load(digits, tmp_path):
    predicted = sgdsde.predict(digits.truncate(20, tail="frozen"), training(digits, 8, 0.1, {}), 10)
    predicted.save(tmp_path / "a.npz")
    loaded = sgdsde.Trajectory.load(tmp_path / "a.npz")
    assert torch.equal(loaded.truncation_error, predicted.truncation_error)
    assert "truncation_error" in predicted.to_dataframe()
    assert predicted.to_xarray()["truncation_error"].dims == ("step",)
    without = sgdsde.predict(digits, training(digits, 8, 0.1, {}), 10)
    without.save(tmp_path / "b.npz")
    assert sgdsde.Trajectory.load(tmp_path / "b.npz").truncation_error is None
    assert "truncation_error" not in without.to_dataframe()


def test_the_curvature_of_a_minibatch_is_an_operator_like_the_others():
    problem = digits_problem(6, width=16)
    modes = Modes.of(sgdsde.linearize(problem).truncate(4, tail="frozen"))
    rows = modes.vectors.view(6, 1, -1)
    kernel = (modes.vectors * modes.values) @ modes.vectors.mT
    seen = _Sharpness(modes, (rows * modes.values) @ rows.mT, 0.3)
    dense = kernel / 6 + 0.3 * kernel.diagonal().diag()
    torch.testing.assert_close(seen.to_dense(), dense)
    torch.testing.assert_close(seen.diag(), dense.diagonal())
