"""Gradient confusion against per-example backward passes, its identities, its floor, and the published theorem."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sgdsde
from sgdsde import regimes
from sgdsde.kernel import DenseKernel, KroneckerKernel
from sgdsde.regimes import confusion as module
from sgdsde.regimes import gradient_products as gram_module
from tests.problems import classification_problem, conv_problem, linear_problem, mlp_problem


def by_backward(problem: sgdsde.Problem) -> Tensor:
    """g_i by one backward pass an example, [n, p]."""
    model, rows = problem.model, []
    for i in range(problem.n_train):
        loss = problem.loss(model(problem.x_train[i : i + 1]), problem.y_train[i : i + 1])
        parts = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows).detach()


def orthogonal_problem(n: int = 8, p: int = 16) -> sgdsde.Problem:
    """A linear model whose examples do not overlap."""
    rng = np.random.default_rng(0)
    x = np.linalg.qr(rng.standard_normal((p, n)))[0].T * np.linspace(0.5, 2, n)[:, None]
    return linear_problem(x[:, None, :], rng.standard_normal((n, 1)), np.zeros(p))


CASES = {"tanh, squared error": mlp_problem, "convolution": conv_problem, "cross-entropy": classification_problem}


@pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())
def test_products_are_those_of_backward_passes(make: object) -> None:
    problem = make()
    gradients = by_backward(problem)
    wanted = gradients @ gradients.mT
    for source in (problem, sgdsde.linearize(problem)):
        found = regimes.gradient_gram(source)
        assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-10
    confusion = regimes.gradient_confusion(problem)
    off = wanted - torch.diag(wanted.diagonal()) + torch.diag(torch.full((problem.n_train,), torch.inf))
    assert confusion.bound == pytest.approx(max(0.0, -float(off.min())), rel=1e-10)
    assert sorted(confusion.pair) == sorted(divmod(int(off.argmin()), problem.n_train))
    cosines = (wanted / wanted.diagonal().sqrt().outer(wanted.diagonal().sqrt())).numpy()
    below = cosines[np.tril_indices(problem.n_train, -1)]
    assert confusion.cosine_mean == pytest.approx(below.mean(), rel=1e-9)
    assert confusion.cosine_std == pytest.approx(below.std(), rel=1e-9)
    assert confusion.cosine_min == pytest.approx(below.min(), rel=1e-9)
    assert confusion.quantiles[0.1] == pytest.approx(np.quantile(below, 0.1), rel=1e-9)


@pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())
def test_its_identities_hold(make: object) -> None:
    """|grad L|^2, tr Sigma and the noise scale from two numbers of the Gram matrix."""
    problem = make()
    found, gradients = regimes.gradient_confusion(problem), by_backward(problem)
    mean = gradients.mean(0)
    assert found.squared_gradient == pytest.approx(float(mean @ mean), rel=1e-10)
    assert found.noise_trace == pytest.approx(float((gradients - mean).square().sum(1).mean()), rel=1e-10)
    assert found.noise_scale == pytest.approx(sgdsde.stability.gradient_noise_scale(problem), rel=1e-9)


def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tiles, and cosines counted in bins as for thousands of examples."""
    problem = classification_problem()
    whole, gram = regimes.gradient_confusion(problem), regimes.gradient_gram(problem)
    monkeypatch.setattr(gram_module, "ROWS", 6)
    monkeypatch.setattr(module, "WHOLE", 3)
    for source in (problem, sgdsde.linearize(problem)):
        tiled = regimes.gradient_confusion(source)
        assert torch.allclose(regimes.gradient_gram(source), gram, rtol=1e-12, atol=1e-14)
        for name in ("bound", "mean_product", "cosine_min", "cosine_mean", "cosine_std"):
            assert getattr(tiled, name) == pytest.approx(getattr(whole, name), rel=1e-10)
        assert tiled.pair == whole.pair
        # Of 21 pairs a quantile lies between two cosines that are far apart: the bins give one of the two.
        below = np.sort(_cosines(gram))
        for q, value in tiled.quantiles.items():
            low, high = below[int(np.floor(q * 20))], below[int(np.ceil(q * 20))]
            assert low - 0.1 < value < high + 0.1


def _cosines(gram: Tensor) -> np.ndarray:
    root = gram.diagonal().sqrt()
    return (gram / root.outer(root)).numpy()[np.tril_indices(len(gram), -1)]


def test_quantiles_in_bins_are_right_for_many_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    problem = linear_problem(rng.standard_normal((150, 1, 12)), rng.standard_normal((150, 1)), np.zeros(12))
    exact = regimes.gradient_confusion(problem)
    monkeypatch.setattr(module, "WHOLE", 10)
    binned = regimes.gradient_confusion(problem)
    for q, value in exact.quantiles.items():
        assert binned.quantiles[q] == pytest.approx(value, abs=1e-3)


def test_shared_kernels_and_other_weights() -> None:
    """Outputs that share one kernel; and weights on the way, against the linearization made there."""
    problem = mlp_problem()
    trace = sgdsde.empirical_ntk(problem.model, problem.x_train, outputs="trace")
    shared = KroneckerKernel(DenseKernel(trace), 2, scale=0.5)
    linearization = sgdsde.linearize(problem, kernel=shared)
    r = problem.criterion.gradient(linearization.outputs, problem.y_train)
    assert torch.allclose(regimes.gradient_gram(linearization), trace / 2 * (r @ r.mT), rtol=1e-12)
    moved = {name: value + 0.1 for name, value in problem.params.items()}
    model = mlp_problem().model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1
    there = sgdsde.Problem(model, problem.x_train, problem.y_train, loss=nn.MSELoss())
    assert torch.allclose(regimes.gradient_gram(problem, params=moved), regimes.gradient_gram(there), rtol=1e-10)


def test_a_common_sign_of_the_residuals_hides_confusion() -> None:
    """Far outputs give all r one sign; with the output gradient -y the confusion of the labels is seen."""
    rng = np.random.default_rng(0)
    x = np.abs(rng.standard_normal((10, 1, 4)))
    y = rng.permutation(np.repeat([1.0, -1.0], 5))[:, None]
    problem = linear_problem(x, y, np.full(4, 50.0))
    assert regimes.gradient_confusion(problem).bound == 0
    seen = regimes.gradient_confusion(problem, output_gradient=torch.from_numpy(-y))
    assert seen.bound > 0
    assert "no two of 10" in str(regimes.gradient_confusion(problem))


def test_at_a_stationary_point_the_floor_is_reached_by_no_less() -> None:
    """m/(n-1) where the gradient vanishes, 0 only at interpolation; away from it the general floor."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 1, 5)), rng.standard_normal((20, 1))
    least = np.linalg.lstsq(x[:, 0], y[:, 0], rcond=None)[0]
    found = regimes.gradient_confusion(linear_problem(x, y, least))
    assert abs(found.squared_gradient) < 1e-14 * found.mean_square
    assert found.floor == pytest.approx(found.mean_square / 19, rel=1e-10)
    assert found.bound >= found.floor
    assert found.noise_scale == np.inf
    interpolating = regimes.gradient_confusion(linear_problem(x, (x @ least), least))
    assert interpolating.bound < 1e-14
    away = regimes.gradient_confusion(linear_problem(x, y, least + 0.1))
    gram = regimes.gradient_gram(linear_problem(x, y, least + 0.1))
    floor = regimes.confusion_floor(gram.diagonal(), float(gram.sum()) / 400)
    assert floor == pytest.approx(away.floor, rel=1e-9, abs=1e-12)
    # It is attained: two opposite gradients.
    pair = regimes.gradient_confusion(linear_problem([[[1.0]], [[1.0]]], [[1.0], [-1.0]], [0.0]))
    assert pair.bound == pytest.approx(regimes.confusion_floor(torch.tensor([4.0, 4.0])), rel=1e-12)


@pytest.mark.parametrize("sampling", ["with_replacement", "without_replacement"])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_without_confusion_the_recursion_decouples(sampling: str, batch_size: int) -> None:
    problem = orthogonal_problem()
    linearization = sgdsde.linearize(problem)
    assert regimes.gradient_confusion(linearization).bound < 1e-14
    sgd = sgdsde.SGD(0.1, batch_size, sampling=sampling)
    predicted = sgdsde.predict(linearization, sgd, 50, record=[0, 1, 10, 50])
    mine = regimes.decoupled_loss(linearization, sgd, predicted.steps)
    assert mine.numpy() == pytest.approx(predicted.train_loss.mean.numpy(), rel=1e-10)
    limit = sgdsde.stability.max_lr(linearization, batch_size, sampling=sampling)
    assert regimes.decoupled_max_lr(linearization, sgd) == pytest.approx(limit, rel=1e-7)


def test_the_decoupled_step_is_the_mean_over_every_batch() -> None:
    problem = orthogonal_problem(4, 6)
    linearization = sgdsde.linearize(problem)
    kernel, residual = linearization.dense_kernel.diagonal().numpy(), linearization.residual.numpy()[:, 0]
    losses = []
    for batch in itertools.product(range(4), repeat=2):
        counts = np.bincount(batch, minlength=4)
        losses.append(((residual * (1 - 0.1 * 2 * kernel * counts / 2)) ** 2).mean())
    found = regimes.decoupled_loss(linearization, sgdsde.SGD(0.1, 2), torch.tensor([1]))
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-12)


def test_the_published_bound_holds_and_how_loose_it_is() -> None:
    """N = 20, d = 5, |x| = 1: the true floor falls with the step, the published one does not."""
    shares, d, noise = (0.5, 0.1, 0.05), 5, 0.3
    rng = np.random.default_rng(2)
    n = 20
    x = rng.standard_normal((n, d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = x @ rng.standard_normal(d) + noise * rng.standard_normal(n)
    problem = linear_problem(x[:, None], y[:, None], np.zeros(d))
    linearization = sgdsde.linearize(problem)
    least = float(((y - x @ np.linalg.lstsq(x, y, rcond=None)[0]) ** 2).mean())
    theorem = regimes.ConfusionTheorem(n, smoothness=2.0, pl_constant=2.0)
    assert sgdsde.stability.max_lr(linearization, 1) / theorem.max_lr > n / 2
    floors, found = [], []
    for share in shares:
        lr = share * theorem.max_lr
        steps = [0, 100, round(500 / share)]
        predicted = sgdsde.predict(linearization, sgdsde.SGD(lr, 1), steps[-1], record=steps)
        excess = predicted.train_loss.mean - least
        confusion = 2 * regimes.gradient_confusion(linearization).bound
        bound = theorem.bound(lr, predicted.steps, excess=float(excess[0]), confusion=confusion)
        assert (excess <= bound * (1 + 1e-12)).all()
        floors.append(theorem.floor(lr, confusion))
        found.append(float(excess[-1]))
    # 10 times smaller steps: the true excess falls about 10 times, the published floor to no less than a half.
    assert found[0] / found[-1] == pytest.approx(shares[0] / shares[-1], rel=0.15)
    assert floors[0] / floors[-1] < 2.1
    assert min(floors) > 1000 * found[0]


def test_confusion_falls_along_training_and_the_kernel_is_that_of_the_path() -> None:
    problem = mlp_problem()
    sgd = sgdsde.SGD(0.05, 2)
    found = regimes.confusion_path(problem, sgd, 200, record=[0, 20, 200])
    assert found.steps.tolist() == [0, 20, 200]
    assert found.confusions[0] == regimes.gradient_confusion(problem)
    assert found.losses[2] < found.losses[1] < found.losses[0]
    model = mlp_problem().model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        nn.MSELoss()(model(problem.x_train), problem.y_train).backward()
        optimizer.step()
    there = sgdsde.Problem(model, problem.x_train, problem.y_train, loss=nn.MSELoss())
    assert found.confusions[1].bound == pytest.approx(regimes.gradient_confusion(there).bound, rel=1e-6)
    assert found.largest == float(found.bounds.max())


def test_bad_input_gets_one_clear_error() -> None:
    problem = mlp_problem()
    with pytest.raises(ValueError, match=r"output_gradient must be \[7, 2\], got \[7\]"):
        regimes.gradient_gram(problem, torch.zeros(7))
    with pytest.raises(ValueError, match="output_gradient must be finite"):
        regimes.gradient_confusion(problem, output_gradient=torch.full((7, 2), torch.nan))
    with pytest.raises(TypeError, match="a Problem or a Linearization"):
        regimes.gradient_confusion(problem.model)
    with pytest.raises(ValueError, match="params must be given with a Problem"):
        regimes.gradient_gram(sgdsde.linearize(problem), params=problem.params)
    one = linear_problem([[[1.0]]], [[1.0]], [0.0])
    with pytest.raises(ValueError, match="n_train must be at least 2"):
        regimes.gradient_confusion(one)
    with pytest.raises(ValueError, match="at least two examples"):
        regimes.confusion_floor(torch.ones(1))
    with pytest.raises(ValueError, match="lr must be below"):
        regimes.ConfusionTheorem(10, 2.0, 1.0).rate(0.2)
    with pytest.raises(ValueError, match="pl_constant must be at most"):
        regimes.ConfusionTheorem(10, 2.0, 3.0)
    with pytest.raises(ValueError, match="kernel must be diagonal"):
        regimes.decoupled_loss(sgdsde.linearize(mlp_problem(n_outputs=1)), sgdsde.SGD(0.1, 1), torch.arange(3))
    with pytest.raises(ValueError, match="plain, constant"):
        regimes.decoupled_loss(
            sgdsde.linearize(orthogonal_problem()), sgdsde.SGD(0.1, 1, momentum=0.5), torch.arange(3)
        )
