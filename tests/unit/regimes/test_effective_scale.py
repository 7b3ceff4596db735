"""SGD's shift of the regime: an identity on every path, an expectation by enumeration, a prediction before training."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import sgdsde
from sgdsde import regimes
from sgdsde.networks import DiagonalLinear


def problem(scale: float, n: int = 20, d: int = 40) -> sgdsde.Problem:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((n, d))
    beta = np.zeros(d)
    beta[:3] = [1, -0.7, 0.5]
    model = DiagonalLinear(d, scale=scale, dtype=torch.float64)
    return sgdsde.Problem(model, torch.from_numpy(x), torch.from_numpy(x @ beta)[:, None], loss=nn.MSELoss())


def trained(at: sgdsde.Problem, lr: float, n_steps: int, seed: int = 0) -> tuple[DiagonalLinear, np.ndarray]:
    """One run of torch's SGD with single examples; the network and sum log(1 - 4 lr^2 G^2) along it."""
    d = at.x_train.shape[1]
    model = DiagonalLinear(d, scale=float(at.model.plus.detach()[0]), dtype=torch.float64)
    optimizer, rng, logs = torch.optim.SGD(model.parameters(), lr=lr), np.random.default_rng(seed), np.zeros(d)
    for _ in range(n_steps):
        i = int(rng.integers(at.n_train))
        x, y = at.x_train[i : i + 1], at.y_train[i : i + 1]
        gradient = (2 * (model(x) - y) * x).detach()[0].numpy()
        logs += np.log(np.abs(1 - 4 * lr**2 * gradient**2))
        optimizer.zero_grad()
        nn.MSELoss()(model(x), y).backward()
        optimizer.step()
    return model, logs


def simulated(at: sgdsde.Problem, lr: float, n_steps: int, runs: int = 64) -> np.ndarray:
    """Mean over coordinates of log |w_+ w_-| / scale^2 after SGD with single examples, [runs]."""
    x, y, scale = at.x_train.numpy(), at.y_train.numpy()[:, 0], float(at.model.plus.detach()[0])
    rng, n = np.random.default_rng(0), at.n_train
    plus = np.full((runs, x.shape[1]), scale)
    minus = plus.copy()
    for _ in range(n_steps):
        i = rng.integers(n, size=runs)
        residual = ((plus**2 - minus**2) * x[i]).sum(1) - y[i]
        gradient = 2 * residual[:, None] * x[i]
        plus, minus = plus * (1 - 2 * lr * gradient), minus * (1 + 2 * lr * gradient)
    return (np.log(np.abs(plus * minus)) - 2 * np.log(scale)).mean(1)


def test_the_product_of_the_weights_is_known_on_every_path() -> None:
    at = problem(0.3)
    model, logs = trained(at, 0.004, 300)
    product = (model.plus * model.minus).detach().numpy()
    assert np.log(np.abs(product)) - 2 * np.log(0.3) == pytest.approx(logs, rel=1e-10, abs=1e-12)
    assert regimes.effective_scale_of(model).numpy() == pytest.approx(0.3 * np.exp(logs / 2), rel=1e-10)
    assert np.abs(logs).max() > 0.01


def test_sgd_ends_at_the_interpolant_of_its_effective_scale() -> None:
    """Relative distance below 1e-3 at lr = 0.004, where the interpolant of the start is twenty times farther."""
    at = problem(0.1)
    model, _ = trained(at, 0.004, 5000)
    x, end = at.x_train, model.coefficients.detach()
    y = x @ end  # at any time: the interpolant of what has been fitted so far
    assert float((y - at.y_train[:, 0]).abs().max()) < 0.1
    mine = regimes.interpolant(x, y, scale=regimes.effective_scale_of(model))
    flow = regimes.interpolant(x, y, scale=0.1)
    distance = float((mine - end).norm() / end.norm())
    assert distance < 1e-3
    assert float((flow - end).norm() / end.norm()) > 10 * distance


@pytest.mark.parametrize("sampling", ["with_replacement", "without_replacement"])
def test_the_expected_square_of_a_minibatch_gradient_is_that_of_all_batches(sampling: str) -> None:
    rng = np.random.default_rng(0)
    n, batch_size = 4, 2
    x, residual = rng.standard_normal((n, 6)), rng.standard_normal(n)
    batches = (
        itertools.product(range(n), repeat=2) if sampling == "with_replacement" else itertools.permutations(range(n), 2)
    )
    wanted = np.mean([(2 / batch_size * residual[list(b)] @ x[list(b)]) ** 2 for b in batches], 0)
    factor = sgdsde.SGD(0.1, batch_size, sampling=sampling).plan(n, 1).noise_factor(0)
    mean = 2 / n * residual @ x
    found = factor * (4 / n * residual**2 @ x**2 - mean**2) + mean**2
    assert found == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("batch_size", [1, 4, 20])
def test_the_first_step_is_exact(batch_size: int) -> None:
    """One short step from known outputs: the trapezoidal rule takes half of E G^2 at either end."""
    at = problem(0.5)
    lr = 1e-4
    sampling = "without_replacement" if batch_size == 20 else "with_replacement"
    sgd = sgdsde.SGD(lr, batch_size, sampling=sampling)
    found = 2 * np.log(regimes.effective_scale(sgdsde.linearize(at), sgd, 1).numpy() / 0.5)
    x, y = at.x_train.numpy(), at.y_train.numpy()[:, 0]
    mean = (2 / 20 * -y @ x) ** 2
    factor = sgd.plan(20, 1).noise_factor(0)
    wanted = -4 * lr**2 * (factor * (4 / 20 * y**2 @ x**2 - mean) + mean)
    assert found == pytest.approx(wanted, rel=2e-2)


@pytest.mark.parametrize(
    ("scale", "share", "n_steps", "measured", "tolerance"),
    [(0.5, 0.4, 1500, -0.0051, 0.05), (0.5, 0.7, 900, -0.0149, 0.15), (0.3, 0.4, 1500, -0.0386, 0.06)],
)
def test_the_shift_is_predicted_before_training(
    scale: float, share: float, n_steps: int, measured: float, tolerance: float
) -> None:
    """z = 1.1 and 3.1; 64 runs give the measured shift within 1.2 %."""
    at = problem(scale)
    linearization = sgdsde.linearize(at)
    lr = share * sgdsde.stability.max_lr(linearization, 1)
    runs = simulated(at, lr, n_steps)
    assert runs.mean() == pytest.approx(measured, rel=0.05)
    for weighting in ("examples", "mean_field"):
        found = regimes.effective_scale(linearization, sgdsde.SGD(lr, 1), n_steps, weighting=weighting)
        shift = float(2 * (found / scale).log().mean())
        assert shift == pytest.approx(runs.mean(), rel=tolerance)


def test_full_batches_leave_the_scale_nearly_alone() -> None:
    at = problem(0.5)
    linearization = sgdsde.linearize(at)
    lr = 0.4 * sgdsde.stability.max_lr(linearization, 1)
    noisy = regimes.effective_scale(linearization, sgdsde.SGD(lr, 1), 500)
    full = regimes.effective_scale(linearization, sgdsde.SGD(lr, 20, sampling="without_replacement"), 500)
    mean_field = regimes.effective_scale(
        linearization, sgdsde.SGD(lr, 20, sampling="without_replacement"), 500, weighting="mean_field"
    )
    assert float((full / 0.5).log().abs().max()) < float((noisy / 0.5).log().abs().min())
    assert torch.equal(mean_field, torch.full_like(mean_field, 0.5))


def test_bad_input_gets_one_clear_error() -> None:
    linearization = sgdsde.linearize(problem(0.5, 5, 6))
    sgd = sgdsde.SGD(0.01, 1)
    with pytest.raises(ValueError, match="sgd must be plain"):
        regimes.effective_scale(linearization, sgdsde.SGD(0.01, 1, momentum=0.9), 10)
    with pytest.raises(ValueError, match="weighting must be one of"):
        regimes.effective_scale(linearization, sgd, 10, weighting="none")
    deep = sgdsde.Problem(
        DiagonalLinear(6, depth=3, scale=0.5, dtype=torch.float64),
        linearization.problem.x_train,
        linearization.problem.y_train,
        loss=nn.MSELoss(),
    )
    with pytest.raises(ValueError, match="DiagonalLinear of depth 3"):
        regimes.effective_scale(sgdsde.linearize(deep), sgd, 10)
    with pytest.raises(ValueError, match="where the product is kept"):
        regimes.effective_scale_of(deep.model)
    of = linearization.problem
    robust = sgdsde.linearize(sgdsde.Problem(of.model, of.x_train, of.y_train, loss=nn.HuberLoss()))
    with pytest.raises(ValueError, match="loss must be nn"):
        regimes.effective_scale(robust, sgd, 10)
