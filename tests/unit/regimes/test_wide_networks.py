"""What wide shallow networks learn: exact kernels, splines, the rate in width, the way there."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.interpolate import CubicSpline, make_smoothing_spline
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

import sgdsde
from sgdsde import regimes
from sgdsde.networks import ShallowReLU
from sgdsde.regimes import Gaussian, Sphere, Uniform

X = torch.tensor([-1, -0.6, -0.1, 0.4, 1]).double()
Y = torch.tensor([0.3, -0.5, 0.6, 0.1, -0.4]).double()
GRID = torch.linspace(-1, 1, 201, dtype=torch.float64)
LAWS = [
    (Uniform(1.0, 2.0), 1),
    (Sphere(1.5), 1),
    (Sphere(2.0), 2),
    (Sphere(2.0), 3),
    (Gaussian(0.8, 1.2), 1),
    (Gaussian(1, 0.5), 3),
]


def gap(one: Tensor, two: Tensor) -> float:
    return float((one - two).abs().max())


def natural() -> Tensor:
    return torch.from_numpy(CubicSpline(X, Y, bc_type="natural")(GRID.numpy()))


@pytest.mark.parametrize(("law", "d"), LAWS, ids=str)
def test_feature_kernels_are_the_mean_over_neurons(law: object, d: int) -> None:
    """4e5 draws: every entry within 5 standard errors."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(3, d, dtype=torch.float64, generator=generator)
    points = points / points.norm(dim=1, keepdim=True) * torch.tensor([[1.0], [0.5], [0.8]])
    w, b = law.draw(400_000, d, generator)
    features = torch.relu(points @ w.mT + b)
    products = features[:, None] * features
    found = regimes.feature_kernel(points, points, law)
    assert (((found - products.mean(-1)) / products.std(-1)).abs() < 5 / 400_000**0.5).all()


@pytest.mark.parametrize("law", [Uniform(1.3, 0.7), Gaussian(0.8, 1.2), Sphere(2.0)], ids=str)
def test_curvature_density_is_that_of_the_kinks(law: object) -> None:
    """int zeta over an interval = E[w^2; kink inside], by 4e5 draws within 5 standard errors, also where it decays."""
    w, b = law.draw(400_000, 1, torch.Generator().manual_seed(1))
    kink, density = -b / w[:, 0], regimes.curvature_density(law)
    for low, high in ((-0.3, 0.4), (0.5, 1.5), (-4.0, -2.5)):
        inside = torch.where((kink > low) & (kink < high), w[:, 0] ** 2, 0.0)
        wanted = quad(lambda c: float(density(c)), low, high)[0]
        assert float(inside.mean()) == pytest.approx(wanted, abs=5 * float(inside.std()) / 400_000**0.5 + 1e-12)


def test_constant_density_gives_the_natural_cubic_spline() -> None:
    spline = regimes.curvature_spline(X, Y, 0.37)
    points = torch.linspace(-1, 1, 301, dtype=torch.float64)
    assert np.abs(spline(points).numpy() - CubicSpline(X, Y, bc_type="natural")(points.numpy())).max() < 1e-9
    outside = spline(torch.tensor([1.0, 2.0, 3.0]).double())
    assert float(outside[0] + outside[2]) == pytest.approx(2 * float(outside[1]), abs=1e-12)
    second = CubicSpline(X, Y, bc_type="natural").derivative(2)
    wanted = sum(quad(lambda c: float(second(c)) ** 2, a, b)[0] for a, b in pairwise(X.tolist())) / 0.37
    assert spline.penalty == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("lam", [1e-4, 0.1, 10.0])
def test_constant_density_gives_the_smoothing_spline(lam: float) -> None:
    spline = regimes.curvature_spline(X, Y, 0.25, smoothing=lam)
    wanted = make_smoothing_spline(X.numpy(), Y.numpy(), lam=lam / 0.25)(GRID.numpy())
    assert np.abs(spline(GRID).numpy() - wanted).max() < 1e-8


def test_a_weighted_spline_has_the_least_penalty_among_interpolants() -> None:
    """Perturbed by functions that vanish at the data, int (h'')^2/zeta grows; zeta = 1 has another minimum."""
    zeta = regimes.curvature_density(Gaussian(1.0, 0.3))
    spline, points = regimes.curvature_spline(X, Y, zeta), torch.linspace(-1, 1, 4001, dtype=torch.float64)
    step = float(points[1] - points[0])

    def penalty(h: Tensor) -> float:
        second = (h[2:] - 2 * h[1:-1] + h[:-2]) / step**2
        return float((second.square() / zeta(points[1:-1])).sum() * step)

    best = penalty(spline(points))
    assert best == pytest.approx(spline.penalty, rel=1e-3)
    vanishing = torch.stack([points - x for x in X]).prod(0)
    for k in range(3):
        for size in (-0.05, 0.05):
            assert penalty(spline(points) + size * vanishing * points**k) > best
    assert gap(spline(points), regimes.curvature_spline(X, Y, 1.0)(points)) > 0.1


@pytest.mark.parametrize(("radius", "wanted"), [(1, 0.0131), (2, 0.0060), (4, 0.0031), (8, 0.0015), (16, 0.0008)])
def test_the_limit_is_the_natural_spline_only_as_kinks_spread(radius: float, wanted: float) -> None:
    found = gap(regimes.wide_limit(X, Y, GRID, Uniform(1.0, radius)), natural())
    assert found == pytest.approx(wanted, abs=1.5e-4)


@pytest.mark.parametrize(("sb", "weighted", "plain"), [(0.3, 0.009, 0.40), (1.0, 0.008, 0.08), (4.0, 0.005, 0.006)])
def test_gaussian_neurons_give_the_spline_of_their_density(sb: float, weighted: float, plain: float) -> None:
    law = Gaussian(1.0, sb)
    limit = regimes.wide_limit(X, Y, GRID, law)
    spline = regimes.curvature_spline(X, Y, regimes.curvature_density(law))(GRID)
    assert gap(limit, spline) == pytest.approx(weighted, abs=1.5e-3)
    assert gap(spline, natural()) == pytest.approx(plain, rel=0.2)


def test_the_limit_interpolates_in_several_dimensions() -> None:
    x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 3
    y = x[:, 0].sin() + x[:, 1] ** 2
    for law in (Sphere(2.0), Gaussian()):
        assert gap(regimes.wide_limit(x, y, x, law), y) < 1e-8
    doubled = regimes.wide_limit(torch.cat([x, x[:1]]), torch.cat([y, y[:1]]), x, Sphere(2.0))
    assert gap(doubled, regimes.wide_limit(x, y, x, Sphere(2.0))) < 1e-6


def read_out_only(width: int, radius: float, seed: int) -> Tensor:
    """The interpolant of least |v| of ``width`` random neurons: gradient descent on the read-out from f = 0."""
    w, b = Uniform(1.0, radius).draw(width, 1, torch.Generator().manual_seed(seed))
    at, on = (torch.relu(p[:, None] @ w.mT + b) for p in (GRID, X))
    return at @ (on.mT @ torch.linalg.solve(on @ on.mT, Y))


def test_networks_approach_the_limit_at_a_rate_of_one_half() -> None:
    """Mean sup error of 40 networks at three widths: slope -0.5 within 0.1; against the spline it floors."""
    limit, widths = regimes.wide_limit(X, Y, GRID, Uniform(1.0, 2.0)), (400, 1600, 6400)
    runs = [[read_out_only(width, 2.0, seed) for seed in range(40)] for width in widths]
    errors = [np.mean([gap(run, limit) for run in each]) for each in runs]
    assert errors == pytest.approx([0.0781, 0.0379, 0.0184], rel=0.15)
    slope = np.polyfit(np.log(widths), np.log(errors), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.1)


@pytest.mark.parametrize("law", [Sphere(2.0), Gaussian(1.0, 1.0)], ids=str)
def test_networks_of_several_inputs_approach_their_limit_at_the_same_rate(law: object) -> None:
    """Eight points in the disk, 30 networks a width, mean sup error on 40 others: slope -0.5 within 0.1."""
    generator = torch.Generator().manual_seed(3)
    x, at = (2 * torch.rand(n, 2, dtype=torch.float64, generator=generator) - 1 for n in (8, 40))
    y = torch.sin(3 * x[:, 0]) * x[:, 1]
    limit, widths, errors = regimes.wide_limit(x, y, at, law), (400, 1600, 6400), []
    for width in widths:
        found = []
        for seed in range(30):
            w, b = law.draw(width, 2, torch.Generator().manual_seed(seed))
            on, there = (torch.relu(points @ w.mT + b) for points in (x, at))
            found.append(gap(there @ (on.mT @ torch.linalg.solve(on @ on.mT, y)), limit))
        errors.append(np.mean(found))
    assert np.polyfit(np.log(widths), np.log(errors), 1)[0] == pytest.approx(-0.5, abs=0.1)


def test_flow_of_a_wide_network_is_that_of_the_limit() -> None:
    """The read-out of 8000 neurons by exact flow, at three times: within 0.05 of f_t; late flow interpolates."""
    width = 8000
    w, b = Uniform(1.0, 2.0).draw(width, 1, torch.Generator().manual_seed(0))
    on = torch.relu(X[:, None] @ w.mT + b)
    values, vectors = torch.linalg.eigh(on @ on.mT)
    for time in (1e-3, 1e-1, 10.0):
        filters = -torch.expm1(-2 * time / 5 * values)
        wanted = vectors @ (filters * (vectors.mT @ Y))
        found = regimes.wide_limit(X, Y, X, Uniform(1.0, 2.0), time=time, width=width)
        assert gap(found, wanted) < 0.05
    assert gap(regimes.wide_limit(X, Y, X, Uniform(1.0, 2.0), time=1e9, width=width), Y) < 1e-8


def test_flow_and_smoothing_spline_are_alike_and_not_equal() -> None:
    """Filters differ by up to .2036, by .1019 for the best constant .53; never by more."""
    a = np.logspace(-4, 4, 8001)

    def apart(constant: float) -> float:
        return float(np.abs(1 - np.exp(-a) - a / (a + constant)).max())

    best = minimize_scalar(apart, bounds=(0.1, 1.5), method="bounded")
    assert apart(1.0) == pytest.approx(0.2036, abs=2e-4)
    assert best.fun == pytest.approx(0.1019, abs=2e-4)
    assert best.x == pytest.approx(0.53, abs=0.01)


@pytest.mark.parametrize(
    ("n_t", "wanted", "tenfold"), [(1e3, 0.025, 0.119), (1e4, 0.047, 0.225), (1e5, 0.105, 0.413), (1e6, 0.017, 0.136)]
)
def test_the_trajectory_is_near_a_smoothing_spline_of_the_right_strength(
    n_t: float, wanted: float, tenfold: float
) -> None:
    """R = 8; ten times the strength is three to eight times farther."""
    law = Uniform(1.0, 8.0)
    flow = regimes.wide_limit(X, Y, GRID, law, time=n_t / 100, width=100)
    lam, zeta = regimes.smoothing_strength(n_t / 100, 100, 5), 1 / 64
    for factor, expected in ((1, wanted), (10, tenfold)):
        spline = regimes.curvature_spline(X, Y, zeta, smoothing=factor * lam)(GRID)
        assert gap(flow, spline) == pytest.approx(expected, abs=0.004)
    assert regimes.smoothing_strength(1.0, 10, 5, nn.MSELoss()) == 5 / 20


def trained(width: int, batch: int, n_steps: int, seed: int) -> tuple[Tensor, float]:
    """All weights by torch's SGD at lr = 0.9 of the limit: function on the grid, largest move of w."""
    law = Uniform(1.0, 1.0)
    model = ShallowReLU(width, law, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    kernel = regimes.feature_kernel(X, X, law)
    sharp = float(torch.linalg.eigvalsh(kernel)[-1]) / 5 if batch == 5 else float(kernel.diagonal().max())
    start, rng = model.weight.detach().clone(), np.random.default_rng(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.9 / sharp / width)
    for _ in range(n_steps):
        i = slice(None) if batch == 5 else rng.integers(5, size=batch)
        optimizer.zero_grad()
        nn.MSELoss()(model(X[i, None]), Y[i, None]).backward()
        optimizer.step()
    with torch.no_grad():
        return model(GRID[:, None])[:, 0], float((model.weight - start).abs().max())


@pytest.mark.slow
def test_training_all_weights_ends_in_the_limit_for_gradient_descent_and_sgd() -> None:
    """R = 1, 2 seeds: error and largest move of the hidden layer fall with the width, SGD and GD meet."""
    limit = regimes.wide_limit(X, Y, GRID, Uniform(1.0, 1.0))
    errors, moves, apart = [], [], []
    for width in (64, 1024):
        found = [(trained(width, 5, 12_000, seed), trained(width, 1, 30_000, seed)) for seed in range(2)]
        errors.append(np.mean([gap(descent[0], limit) for descent, _ in found]))
        moves.append(np.mean([descent[1] for descent, _ in found]))
        apart.append(np.mean([gap(descent[0], sgd[0]) for descent, sgd in found]))
    assert errors[1] < errors[0] / 1.5
    assert errors[1] < 0.12
    assert moves[1] < moves[0] / 5
    assert apart[1] < apart[0] / 3
    assert apart[1] < 0.01


def test_its_kernel_is_that_of_the_features_as_the_width_grows() -> None:
    """K/n -> kappa: the hidden layer's part falls as 1/n."""
    law, errors = Uniform(1.0, 2.0), []
    for width in (100, 10_000):
        model = ShallowReLU(width, law, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        assert gap(model(X[:, None]).detach(), torch.zeros(5, 1)) == 0
        kernel = sgdsde.empirical_ntk(model, X[:, None]) / width
        errors.append(gap(kernel, regimes.feature_kernel(X, X, law)))
    assert errors[1] < 0.05
    assert errors[1] < errors[0] / 3


def test_bad_input_gets_one_clear_error() -> None:
    with pytest.raises(ValueError, match="y must be one value at each x"):
        regimes.wide_limit(torch.zeros(2).double(), torch.tensor([0.0, 1.0]), X, Gaussian())
    with pytest.raises(ValueError, match="y must be one value at each x"):
        regimes.curvature_spline(torch.zeros(2).double(), torch.tensor([0.0, 1.0]), 1.0)
    with pytest.raises(ValueError, match="inputs must be within ab / aw"):
        regimes.feature_kernel(X, X, Uniform(1.0, 0.5))
    with pytest.raises(ValueError, match="inputs must be within radius"):
        regimes.wide_limit(X, Y, 3 * GRID, Sphere(1.0))
    with pytest.raises(ValueError, match="of one input for Uniform"):
        regimes.feature_kernel(torch.zeros(2, 2).double(), torch.zeros(2, 2).double(), Uniform())
    with pytest.raises(ValueError, match="x2 must be of 1 inputs"):
        regimes.feature_kernel(X, torch.zeros(2, 2).double(), Gaussian())
    with pytest.raises(ValueError, match="width must be even"):
        ShallowReLU(5, Uniform())
    with pytest.raises(ValueError, match="in_features must be 1 for Uniform"):
        ShallowReLU(4, Uniform(), in_features=2)
    with pytest.raises(TypeError, match="law must be Uniform, Gaussian or Sphere"):
        ShallowReLU(4, "uniform")
    with pytest.raises(ValueError, match="zeta must be positive"):
        regimes.curvature_spline(X, Y, lambda c: c)
    with pytest.raises(ValueError, match="time must be positive"):
        regimes.smoothing_strength(0.0, 10, 5)
    with pytest.raises(ValueError, match="loss must be a squared error"):
        regimes.smoothing_strength(1.0, 10, 5, nn.HuberLoss())
    with pytest.raises(ValueError, match="at least two different points"):
        regimes.curvature_spline(torch.zeros(1).double(), torch.zeros(1).double(), 1.0)
    with pytest.raises(ValueError, match="aw must be positive"):
        Uniform(0.0, 1.0)
