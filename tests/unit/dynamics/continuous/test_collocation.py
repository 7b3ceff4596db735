"""Adaptive panels: the forcing is never asked for beyond the last time, where a schedule may have ended."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sgdsde.dynamics.continuous.collocation import Collocation


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
