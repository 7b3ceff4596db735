"""Variances of single modes and of a bulk, against 2 x 2 matrices and sums over examples."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import sgdsde
from sgdsde.dynamics.moments.variances import BulkState, Variances
from sgdsde.dynamics.output_law import Covariance, OutputLaw
from sgdsde.step import Step

N, C, S = 6, 2, 1.5


def normal(*size: int, seed: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("words", [{}, {"momentum": 0.7}, {"momentum": 0.7, "nesterov": True, "weight_decay": 0.2}])
def test_the_covariance_of_a_mode_and_its_buffer_is_that_of_a_matrix(words):
    """z' = G z + nu noise, mode by mode, over three steps."""
    drift, noise = torch.tensor([0.1, 0.8, 2.0], dtype=torch.float64), normal(3, 3, seed=1).square()
    state, dense = Variances(drift), torch.zeros(3, 2, 2).double()
    for k in range(3):
        modal = Step.of(sgdsde.SGD(0.3, 2, **words), 0.3, first=k == 0).modal(drift)
        state.advance(modal, noise[k])
        g, nu = modal.matrices, modal.gains
        dense = g @ dense @ g.mT + noise[k][:, None, None] * torch.outer(nu, nu)
    torch.testing.assert_close(state.ee, dense[:, 0, 0])
    if words:
        torch.testing.assert_close(state.eu, dense[:, 0, 1])
        torch.testing.assert_close(state.uu, dense[:, 1, 1])


def bulk_of(sgd: sgdsde.SGD, columns: int = 1) -> BulkState:
    density = 0.2 + torch.rand(N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bulk = SimpleNamespace(
        values=torch.tensor([0.4, 2.0], dtype=torch.float64),
        counts=torch.tensor([5.0, 2.0], dtype=torch.float64),
        density=density / density.mean(),
    )
    modes = SimpleNamespace(
        bulk=bulk, values=normal(3, seed=1), n_train=N, n_outputs=C, n_columns=columns, loss_curvature=S
    )
    state = BulkState(modes, sgd, sgd.plan(N, 3))
    state._variances.ee = torch.tensor([0.3, 0.7], dtype=torch.float64)
    return state


@pytest.mark.parametrize("words", [{}, {"weight_decay": 0.3}, {"label_noise_std": 0.4}], ids=str)
def test_one_step_of_a_bulk_by_hand(words):
    """v' = (1 - lr (h + wd))^2 v + lr^2 q h^2 (sum_i rho_i tr D_i / c - v) + lr^2 h^2 n v_labels / B."""
    sgd = sgdsde.SGD(0.25, 3, **words)
    state, blocks = bulk_of(sgd, columns=2), normal(N, C, C, seed=4)
    blocks = blocks @ blocks.mT
    before = state.variances.clone()
    state.see(blocks)
    state.advance(1, Step.of(sgd, 0.25, first=False))
    for j, h in enumerate((S * 0.4 / N, S * 2.0 / N)):
        seen = sum(float(state.density[i] * blocks[i].trace()) for i in range(N)) / C
        kept = 1 - 0.25 * (h + sgd.weight_decay)
        expected = kept**2 * before[j] + 0.25**2 / 3 * h**2 * (seen - before[j])
        expected += 0.25**2 * h**2 * N * 2 * sgd.label_noise_std**2 / 3
        assert float(state.variances[j]) == pytest.approx(float(expected), rel=1e-12)


def test_a_bulk_gives_every_example_its_share_of_the_variance():
    """And the outputs of an example the same; all together as much as its directions have."""
    state = bulk_of(sgdsde.SGD(0.25, 3))
    total = 5 * 0.3 + 2 * 0.7
    blocks = state.blocks()
    for i in range(N):
        torch.testing.assert_close(blocks[i], float(state.density[i]) * total / (N * C) * torch.eye(C).double())
    torch.testing.assert_close(blocks.diagonal(dim1=1, dim2=2).sum(), torch.tensor(total, dtype=torch.float64))
    factor = torch.linalg.qr(normal(N * C, 3, seed=2)).Q
    inside = Covariance(factor, torch.eye(3).double(), torch.eye(3).double())
    law = state.law(OutputLaw(0, 0.0, torch.zeros(N, C).double(), inside))
    torch.testing.assert_close(law.covariance.blocks(C), inside.blocks(C) + blocks)
    torch.testing.assert_close(law.covariance.trace, 3 + torch.tensor(total, dtype=torch.float64))
    other = state.law(
        OutputLaw(0, 0.0, torch.zeros(N, C).double(), inside), torch.tensor([0.0, 1.0], dtype=torch.float64)
    )
    torch.testing.assert_close(other.covariance.trace, torch.tensor(5.0, dtype=torch.float64))
    assert state.law(OutputLaw(0, 0.0, torch.zeros(N, C).double())).covariance is None


def test_a_bulk_goes_on_along_another_plan():
    sgd = sgdsde.SGD(0.25, 3)
    state, blocks = bulk_of(sgd), torch.eye(C).double().expand(N, C, C)
    state.see(blocks)
    state.follow(sgdsde.SGD(0.25, 1).plan(N, 9))
    before = state.variances.clone()
    state.advance(8, Step.of(sgd, 0.25, first=False))
    h = state.drift
    seen = float(state.density.sum())
    torch.testing.assert_close(state.variances, (1 - 0.25 * h) ** 2 * before + 0.25**2 * h**2 * (seen - before))


def test_a_covariance_with_an_uneven_bulk_is_bounded_as_its_parts_are():
    """Along a vector: inside exactly, outside of it by the density of every row."""
    state = bulk_of(sgdsde.SGD(0.25, 3))
    factor = torch.linalg.qr(normal(N * C, 3, seed=2)).Q
    root = normal(3, 3, seed=5)
    inside = Covariance(factor, root @ root.mT, torch.eye(3).double())
    covariance = state.law(OutputLaw(0, 0.0, torch.zeros(N, C).double(), inside)).covariance
    own = state.blocks().diagonal(dim1=1, dim2=2).flatten()
    torch.testing.assert_close(covariance.diagonal(), inside.diagonal() + own)
    torch.testing.assert_close(covariance.to_dense(), inside.to_dense() + own.diag())
    vector = normal(N * C, seed=6)
    outside = vector - factor @ (factor.mT @ vector)
    torch.testing.assert_close(covariance.quadratic(vector), inside.quadratic(vector) + (own * outside.square()).sum())
    torch.testing.assert_close(covariance.squared_norm, inside.squared_norm + 5 * 0.3**2 + 2 * 0.7**2)
