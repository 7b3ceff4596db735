"""Diagonal linear networks: kernel, conserved quantities, end points, limits, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import linprog
from torch import Tensor, nn

import sgdsde
from sgdsde import regimes
from sgdsde.networks import DiagonalLinear, MatrixFactorization, Rescaled
from sgdsde.regimes.link import Link

DEPTHS = [2, 3, 4, 6]
ORACLES = [
    (2, 0.1, (0.06645664, 0.46121510, 0.02222631)),
    (3, 0.3, (0.06881707, 0.45887583, 0.02686255)),
    (4, 0.3, (0.02150621, 0.48730215, 0.00777896)),
]


def data(n: int = 20, d: int = 60, seed: int = 0) -> tuple[Tensor, Tensor, np.ndarray]:
    """Gaussian features and targets of three equal coefficients of norm 1."""
    x = np.random.default_rng(seed).standard_normal((n, d))
    beta = np.zeros(d)
    beta[:3] = 3**-0.5
    return torch.from_numpy(x), torch.from_numpy(x @ beta), beta


def weight_flow(x: np.ndarray, y: np.ndarray, scale: float, depth: int, time: float) -> tuple[np.ndarray, np.ndarray]:
    """w_+ and w_- by integrating gradient flow of the mean square in the weights themselves."""
    n, d = x.shape

    def slope(_: float, w: np.ndarray) -> np.ndarray:
        plus, minus = w[:d], w[d:]
        g = 2 / n * (x.T @ (x @ (plus**depth - minus**depth) - y))
        return np.r_[-depth * plus ** (depth - 1) * g, depth * minus ** (depth - 1) * g]

    found = solve_ivp(slope, (0, time), np.full(2 * d, scale), method="LSODA", rtol=1e-11, atol=1e-13).y[:, -1]
    return found[:d], found[d:]


@pytest.mark.parametrize("depth", DEPTHS)
def test_its_kernel_is_that_of_the_inputs(depth: int) -> None:
    x, _, _ = data(7, 5)
    model = DiagonalLinear(5, depth=depth, scale=0.7, dtype=torch.float64)
    wanted = 2 * depth**2 * 0.7 ** (2 * depth - 2) * x @ x.mT
    found = sgdsde.empirical_ntk(model, x)
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-14
    assert float(model(x).detach().abs().max()) == 0


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_flow_of_the_weights_is_the_mirror_flow_and_keeps_its_quantity(depth: int) -> None:
    rng = np.random.default_rng(0)
    x, y, scale = rng.standard_normal((4, 6)), rng.standard_normal(4), 0.4
    plus, minus = weight_flow(x, y, scale, depth, 0.7)
    found = regimes.mirror_flow(torch.from_numpy(x), torch.from_numpy(y), [0.0, 0.7], scale=scale, depth=depth)
    assert float(found[0].abs().max()) == 0
    assert found[1].numpy() == pytest.approx(plus**depth - minus**depth, rel=1e-7, abs=1e-9)
    if depth == 2:
        assert plus * minus == pytest.approx(scale**2, rel=1e-9)
    else:
        assert plus ** (2 - depth) + minus ** (2 - depth) == pytest.approx(2 * scale ** (2 - depth), rel=1e-9)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("scale", [0.6, 1.0])
def test_the_flow_ends_in_the_interpolant(depth: int, scale: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 6))
    y = x @ np.array([1, 0, 0, -0.5, 0, 0.0])
    end = regimes.mirror_flow(torch.from_numpy(x), torch.from_numpy(y), [500.0], scale=scale, depth=depth)[0]
    found = regimes.interpolant(torch.from_numpy(x), torch.from_numpy(y), scale=scale, depth=depth)
    assert float((end - found).abs().max()) < 1e-6


@pytest.mark.parametrize(("depth", "scale", "wanted"), ORACLES)
def test_one_equation_in_three_unknowns(depth: int, scale: float, wanted: tuple[float, ...]) -> None:
    found = regimes.interpolant(torch.tensor([[1, 2, 0.5]]).double(), torch.ones(1).double(), scale=scale, depth=depth)
    assert found.numpy() == pytest.approx(np.array(wanted), abs=1e-8)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("scale", [100.0, 10.0, 1.0, 0.3, 0.1])
def test_end_points_interpolate_and_minimize_the_penalty(depth: int, scale: float) -> None:
    """Residual 1e-12; the penalty grows along every direction in the null space of x, to both sides."""
    x, y, _ = data()
    found = regimes.interpolant(x, y, scale=scale, depth=depth)
    assert float((x @ found - y).abs().max()) < 5e-12
    least = regimes.penalty(found, scale, depth)
    null = torch.linalg.svd(x, full_matrices=True)[2][20:]
    for direction in null[:5]:
        for size in (-1e-2, 1e-2):
            assert regimes.penalty(found + size * direction, scale, depth) > least


@pytest.mark.parametrize("scale", [1e-3, 1e-4, 1e-6, 1e-8])
def test_depth_two_is_solved_at_any_scale(scale: float) -> None:
    x, y, beta = data()
    found = regimes.interpolant(x, y, scale=scale)
    assert float((x @ found - y).abs().max()) < 2e-14
    assert float((found - torch.from_numpy(beta)).square().sum()) < 1e-4


@pytest.mark.parametrize(
    ("scale", "error"), [(1, 0.614), (0.3, 0.551), (0.1, 0.206), (0.03, 0.0295), (0.01, 0.0039), (1e-3, 5e-5)]
)
def test_small_scales_recover_sparse_coefficients(scale: float, error: float) -> None:
    x, y, beta = data()
    found = regimes.interpolant(x, y, scale=scale).numpy()
    assert ((found - beta) ** 2).sum() == pytest.approx(error, rel=0.02)


def test_the_limits_are_the_interpolants_of_least_norm() -> None:
    x, y, _ = data(8, 12, seed=5)
    d = 12
    for depth in (2, 3, 4):
        least_square = torch.linalg.pinv(x) @ y
        assert float((regimes.interpolant(x, y, scale=100.0, depth=depth) - least_square).abs().max()) < 1e-5
    program = linprog(np.ones(2 * d), A_eq=np.hstack([x, -x]), b_eq=y.numpy(), bounds=[(0, None)] * (2 * d))
    least_sum = program.x[:d] - program.x[d:]
    assert regimes.interpolant(x, y, scale=1e-12).numpy() == pytest.approx(least_sum, abs=1e-3)
    assert regimes.interpolant(x, y, scale=1e-3, depth=3).numpy() == pytest.approx(least_sum, abs=1e-3)


@pytest.mark.parametrize("depth", [2, 3, 4, 7])
def test_link_inverse_potential_and_penalty_belong_together(depth: int) -> None:
    """h(h^-1(b)) = b, phi' = h, q' = h^-1, over 30 orders of magnitude of b."""
    link, b = Link(depth), np.array([1e-12, 1e-6, 1e-3, 0.1, 1.0, 10.0, 1e3, 1e7])
    t = link.inverse(b)
    z = t if depth == 2 else np.tanh(t)
    assert link.value(z) == pytest.approx(b, rel=1e-11)
    assert link.inverse(-b) == pytest.approx(-t, rel=1e-14)
    eps = 1e-5
    middle = z[2:6]
    derivative = (link.potential(middle * (1 + eps)) - link.potential(middle * (1 - eps))) / (2 * eps * middle)
    assert derivative == pytest.approx(link.value(middle), rel=1e-6)
    assert (link.value(middle * (1 + eps)) - link.value(middle * (1 - eps))) / (2 * eps * middle) == pytest.approx(
        link.slope(middle), rel=1e-5
    )
    derivative = (link.penalty(b * (1 + eps)) - link.penalty(b * (1 - eps))) / (2 * eps * b)
    assert derivative == pytest.approx(z, rel=1e-6)
    huge = np.array([1e20, 1e30])
    assert link.penalty(huge) / huge == pytest.approx(np.log(huge) - 1 if depth == 2 else np.ones(2), rel=1e-4)


def test_penalty_of_depth_two_is_the_published_one() -> None:
    beta, scale = torch.tensor([0.3, -2.0, 0.0]).double(), 0.5
    z = (beta / scale**2).numpy()
    wanted = scale**2 * (2 - np.sqrt(4 + z**2) + z * np.arcsinh(z / 2)).sum()
    assert float(regimes.penalty(beta, scale)) == pytest.approx(wanted, rel=1e-12)
    vector = torch.tensor([0.5, 0.1, 2.0]).double()
    alone = sum(float(regimes.penalty(beta[i : i + 1], float(vector[i]))) for i in range(3))
    assert float(regimes.penalty(beta, vector)) == pytest.approx(alone, rel=1e-14)


def test_a_vector_of_scales_moves_the_end_point_coordinate_by_coordinate() -> None:
    x, y, _ = data(3, 5)
    scale = torch.tensor([0.1, 1.0, 0.3, 0.5, 0.05]).double()
    found = regimes.interpolant(x, y, scale=scale)
    plus = minus = scale.numpy()
    end = regimes.mirror_flow(x, y, [2000.0], scale=scale)[0]
    assert plus is minus
    assert float((end - found).abs().max()) < 1e-6
    model = DiagonalLinear(5, scale=scale)
    assert torch.equal(model.plus.detach(), scale.float())


def test_duplicated_and_dependent_rows_are_no_obstacle() -> None:
    x, y, _ = data(4, 9)
    doubled = torch.cat([x, x[:2], (x[:1] + x[1:2])])
    targets = torch.cat([y, y[:2], y[:1] + y[1:2]])
    assert regimes.interpolant(doubled, targets, scale=0.1).numpy() == pytest.approx(
        regimes.interpolant(x, y, scale=0.1).numpy(), rel=1e-9
    )
    assert float(regimes.interpolant(x, 0 * y, scale=0.1).abs().max()) == 0


def test_bad_input_gets_one_clear_error() -> None:
    x, y, _ = data(4, 9)
    with pytest.raises(ValueError, match="y must be in the range of x"):
        regimes.interpolant(torch.cat([x, x]), torch.cat([y, y + 1]), scale=1.0)
    for depth in (3, 4):
        with pytest.raises(ValueError, match="linear program"):
            regimes.interpolant(x, y, scale=1e-8, depth=depth)
    for call in (regimes.interpolant, lambda x, y, **k: regimes.mirror_flow(x, y, [1.0], **k)):
        with pytest.raises(ValueError, match="scale must be positive"):
            call(x, y, scale=0.0)
        with pytest.raises(ValueError, match="depth must be at least 2"):
            call(x, y, scale=1.0, depth=1)
        with pytest.raises(ValueError, match=r"y must be \[4\]"):
            call(x, y[:3], scale=1.0)
        with pytest.raises(ValueError, match=r"scale must be positive, a number or \[9\]"):
            call(x, y, scale=torch.ones(3))
    with pytest.raises(ValueError, match="times must be increasing"):
        regimes.mirror_flow(x, y, [1.0, 1.0], scale=1.0)
    with pytest.raises(ValueError, match="depth must be at least 2"):
        DiagonalLinear(3, depth=1, scale=1.0)
    with pytest.raises(ValueError, match=r"x must be \[n, 3\]"):
        DiagonalLinear(3, scale=1.0)(torch.ones(2, 4))


def test_rescaled_networks_start_at_zero_with_a_scaled_kernel() -> None:
    x, _, _ = data(6, 4)
    net = sgdsde.networks.MLP(
        4, 8, 2, activation="tanh", dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    scaled = Rescaled(net, 3.0)
    assert float(scaled(x).detach().abs().max()) == 0
    assert torch.allclose(sgdsde.empirical_ntk(scaled, x), 9 * sgdsde.empirical_ntk(net, x), rtol=1e-12)
    assert len([p for p in scaled.parameters() if p.requires_grad]) == len(list(net.parameters()))
    with pytest.raises(TypeError, match="model must be an nn"):
        Rescaled(lambda x: x, 1.0)
    with pytest.raises(ValueError, match="scale must be positive"):
        Rescaled(net, -1.0)


def test_matrix_factorization_starts_at_zero_and_trains() -> None:
    model = MatrixFactorization(3, 4, 6, scale=0.5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pairs = torch.tensor([[0, 1], [2, 3], [1, 1]])
    assert float(model(pairs).detach().abs().max()) == 0
    u, v = model.left.detach(), model.right.detach()
    kernel = sgdsde.empirical_ntk(model, pairs)
    wanted = torch.tensor(
        [
            [(i == k) * float(v[j] @ v[m]) + (j == m) * float(u[i] @ u[k]) for k, m in pairs.tolist()]
            for i, j in pairs.tolist()
        ]
    )
    assert torch.allclose(kernel, wanted.double(), rtol=1e-6)
    problem = sgdsde.Problem(model, pairs, torch.tensor([[1.0], [0.5], [-1.0]]).double(), loss=nn.MSELoss())
    sgd = sgdsde.SGD(0.1, 2)
    runs = sgdsde.run_ensemble(problem, sgd, 200, 4)
    assert float(runs.train_loss.mean[-1]) < 1e-3
    with pytest.raises(ValueError, match="width must be even"):
        MatrixFactorization(3, 4, 5, scale=1.0)
    with pytest.raises(ValueError, match="integer pairs"):
        model(torch.ones(2, 2))
