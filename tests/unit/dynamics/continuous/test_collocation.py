"""Adaptive panels: the forcing is never asked for beyond the last time, where a schedule may have ended."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sgdsde.dynamics.continuous.collocation import Collocation, legendre_integrals


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("times", [[3.7], [0.0, 1.0, 3.7]], ids=str)
def test_no_panel_reaches_beyond_the_last_time(times, feedback):
    """u' = -rho u + 2 + cos t, whose solution is elementary; a forcing that ends with the interval."""
    rates = torch.tensor([0.5, 2.0], dtype=torch.float64)

    def forcing(time: float, u: Tensor) -> Tensor:
        assert 0 <= time <= times[-1]
        return torch.full_like(u, 2 + math.cos(time))

    solver = Collocation(rates, forcing, feedback=feedback, rtol=1e-6, n_nodes=6)
    found = list(solver.run(torch.zeros(2, dtype=torch.float64), times, 0.2))
    assert len(found) == len(times)
    time = torch.tensor(times[-1], dtype=torch.float64)
    exact = (rates * time.cos() + time.sin() - rates * torch.exp(-rates * time)) / (1 + rates**2)
    exact += 2 / rates * (1 - torch.exp(-rates * time))
    torch.testing.assert_close(found[-1], exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("y", [-0.7, 0.3, 1.0])
@pytest.mark.parametrize("z", [0.0, 0.4, 7.9, 8.1, 15.0, 90.0])
def test_the_integrals_of_a_decaying_polynomial_are_those_of_quadrature(z: float, y: float) -> None:
    """On both sides of where the formula changes, to 1e-12 of the integral of the exponential."""
    found = legendre_integrals(torch.tensor([[z]], dtype=torch.float64), y, 9)
    assert found.shape == (9, 1, 1)
    scale = (1 - math.exp(-z * (1 + y))) / z if z else 1 + y
    x, weights = np.polynomial.legendre.leggauss(60)
    pieces = np.linspace(-1, y, 31)  # of length 1/15 at most, z times that is small
    middles, half = (pieces[1:] + pieces[:-1]) / 2, (y + 1) / 60
    x, weights = (middles[:, None] + half * x).ravel(), np.tile(half * weights, 30)
    exact = np.polynomial.legendre.legvander(x, 8).T @ (weights * np.exp(-z * (y - x)))
    torch.testing.assert_close(found[:, 0, 0], torch.from_numpy(exact), rtol=1e-11, atol=1e-12 * scale)


class Counted(Collocation):
    """Keeps start and width of all panels that are tried."""

    tried: list[tuple[float, float]]

    def _panel(self, now, width, u, last):
        self.tried = [*getattr(self, "tried", []), (now, width)]
        return super()._panel(now, width, u, last)


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("rtol", [1e-3, 1e-7])
def test_few_panels_are_refused_and_none_is_more_than_twice_the_last(feedback, rtol):
    """A forcing that first moves fast and then slowly: panels grow with it, by what the error allows."""
    rates = torch.tensor([0.3, 1.0], dtype=torch.float64)

    def forcing(time: float, u: Tensor) -> Tensor:
        return torch.full_like(u, math.cos(3 * math.log1p(time))) + (0.1 * u if feedback else 0)

    solver = Counted(rates, forcing, feedback=feedback, rtol=rtol, n_nodes=6)
    (end,) = solver.run(torch.zeros(2, dtype=torch.float64), [400.0], 0.05)
    tried = solver.tried
    accepted = [width for (now, width), (after, _) in zip(tried, [*tried[1:], (400.0, 0.0)]) if after > now]
    assert sum(accepted) == pytest.approx(400.0)
    assert len(tried) < 1.25 * len(accepted)
    assert all(later <= 2 * width * (1 + 1e-12) for (_, width), (_, later) in itertools.pairwise(tried))
    assert max(accepted) > 20 * accepted[0], "they grow"
    fine = Collocation(rates, forcing, feedback=feedback, rtol=1e-11, n_nodes=10)
    (exact,) = fine.run(torch.zeros(2, dtype=torch.float64), [400.0], 0.05)
    torch.testing.assert_close(end, exact, rtol=20 * rtol, atol=20 * rtol)
