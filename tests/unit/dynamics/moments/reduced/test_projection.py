"""Orthonormal bases of packed matrices, and the step projected on them, against dense linear algebra."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sgdsde.dynamics.moments.reduced import projection
from sgdsde.dynamics.moments.reduced.pairs import PairSpace, StepCoefficients
from sgdsde.dynamics.moments.reduced.projection import Projection, orthonormal, pair_products, project, span, with_bulk
from tests.unit.dynamics.moments.reduced.dense import Driven, normal, random_space, scaled, step, symmetric

EXACT = {"rtol": 1e-10, "atol": 1e-11}
LR, Q = 0.4, 0.3


@pytest.fixture(params=[(90, 1, 70), (45, 2, 70)], ids=["one output", "two outputs"])
def space(request: pytest.FixtureRequest) -> PairSpace:
    return random_space(*request.param)


@pytest.fixture(params=[projection.TILE, 150], ids=["one tile", "more than sixteen tiles"], autouse=True)
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(projection, "TILE", request.param)
    return request.param


def test_the_fixture_has_several_tiles(space, tile):
    assert (space.size / tile > 16) is (tile == 150)


def test_a_basis_is_orthonormal_and_holds_what_was_given(space):
    given = [10.0**i * space.pack(symmetric(space.rank, seed=i)) for i in range(5)]
    given.append(given[0] / 10 - 3 * given[3])
    basis, columns = orthonormal(given)
    assert basis.shape == (5, space.size), "one of six depends on the others"
    torch.testing.assert_close(basis @ basis.mT, torch.eye(5).double(), **EXACT)
    for column, matrix in zip(columns.mT, given):
        torch.testing.assert_close(column @ basis, matrix / matrix.norm(), **EXACT)


@pytest.mark.parametrize(("size", "kept"), [(1e-8, 3), (1e-13, 2)])
def test_a_direction_is_kept_down_to_rounding(space, size, kept):
    """What differs from the span of the others by 1e-8 of itself is a direction, by 1e-13 is rounding."""
    one, two, three = (space.pack(symmetric(space.rank, seed=i)) for i in range(3))
    near = one / one.norm() + two / two.norm() + size * three / three.norm()
    basis, columns = orthonormal([one, two, near])
    assert len(basis) == kept
    torch.testing.assert_close(basis @ basis.mT, torch.eye(kept).double(), rtol=0, atol=1e-13)
    torch.testing.assert_close(columns.mT[1] @ basis, two / two.norm(), rtol=0, atol=1e-13)
    torch.testing.assert_close(columns.mT[2] @ basis, near / near.norm(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("size", "kept"), [(1e-9, 2), (5e-11, 1)])
def test_rounding_grows_with_the_number_of_nearly_equal_matrices(space, size, kept):
    """Among 81 copies of one: a direction is relative to all of them together, nine times one of them."""
    one, other = space.pack(symmetric(space.rank, seed=0)), space.pack(symmetric(space.rank, seed=1))
    basis, _ = orthonormal([one] * 81 + [one / one.norm() + size * other / other.norm()])
    assert len(basis) == kept


def test_spans():
    columns = normal(6, 3, seed=1) @ torch.cat([torch.eye(3).double(), normal(3, 2, seed=2)], 1)
    found = span(columns)
    assert found.shape == (6, 3)
    torch.testing.assert_close(found.mT @ found, torch.eye(3).double(), **EXACT)
    torch.testing.assert_close(found @ (found.mT @ columns), columns, **EXACT)


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_the_projected_step_is_that_of_the_basis_seen_from_the_basis(space, decay):
    """V^T T V, T a step of SGD with its noise summed over examples one by one."""
    found = project(space, [space.pack(symmetric(space.rank, seed=i)) for i in range(4)])
    coefficients, root = StepCoefficients(LR, Q, decay), space.drift.sqrt()
    moved = []
    for vector in found.basis:
        moment = root[:, None] * space.unpack(vector) * root
        after, _ = step(space, coefficients, 1.0, Driven(), moment, moment[:, :1])
        moved.append(space.pack(scaled(space, after)))
    identity = torch.eye(4).double()
    torch.testing.assert_close(identity - found.step_loss(coefficients), found.basis @ torch.stack(moved).mT, **EXACT)
    squares = torch.stack([root[:, None] * space.unpack(vector) * root for vector in found.basis]).flatten(1)
    torch.testing.assert_close(found.a2, squares @ squares.mT, **EXACT)
    torch.testing.assert_close(space.unpack(pair_products(space)), unpacked_outer(space), **EXACT)


def unpacked_outer(space: PairSpace) -> torch.Tensor:
    """h_i h_j, as ``unpack`` reads what is packed without sqrt 2."""
    return space.unpack(space.pack_gains(torch.outer(space.drift, space.drift)))


def test_coordinates_of_one_and_of_several(space):
    given = [space.pack(symmetric(space.rank, seed=i)) for i in range(4)]
    found = project(space, given)
    whole = found.coordinates(torch.stack(given))
    torch.testing.assert_close(whole @ found.basis, torch.stack(given), **EXACT)
    torch.testing.assert_close(found.coordinates(given[2]), whole[2], **EXACT)
    z = found.subspace([0, 2])
    assert z.shape == (4, 2)
    for i, holds in ((0, True), (1, False), (2, True), (3, False)):
        left = whole[i] - z @ (z.mT @ whole[i])
        assert (float(left.norm()) < 1e-10 * float(whole[i].norm())) is holds


def bulk_of(space: PairSpace) -> SimpleNamespace:
    """Two nodes of directions that are not followed, and where they are."""
    density = 0.5 + torch.rand(space.n_train, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    pair = torch.tensor([0.3, 0.05]).double(), torch.tensor([5.0, 12.0]).double()
    return SimpleNamespace(drift=pair[0], counts=pair[1], density=density / density.mean())


def test_a_bulk_joins_with_coordinates_of_its_own(space):
    """T on (Y, v): modes and nodes see each other's share of every example, and lose their own."""
    bulk, n, c = bulk_of(space), space.n_train, space.n_outputs
    base = project(space, [space.pack(symmetric(space.rank, seed=i)) for i in range(4)])
    found = with_bulk(base, bulk, c)
    assert len(found) == 6
    assert found.n_bulk == 2
    y, v, root = normal(4, seed=1), torch.tensor([0.7, 0.2]).double(), space.drift.sqrt()
    state = torch.cat([y, bulk.counts.sqrt() * v / bulk.drift])
    moment = root[:, None] * space.unpack(y @ base.basis) * root
    own = (bulk.counts * v).sum() / (n * c) * bulk.density
    d = blocks_of_modes(space, moment) + own[:, None, None] * torch.eye(c).double()
    kept = 1 - LR * space.drift
    after = kept[:, None] * moment * kept
    noise = sum(
        n * (space.drift[:, None] * rows.mT) @ block @ (rows * space.drift)
        for rows, block in zip(space.vectors.view(n, c, -1), d)
    )
    after = after + LR**2 * Q * (noise - space.drift[:, None] * moment * space.drift)
    seen = (bulk.density * d.diagonal(dim1=1, dim2=2).sum(1)).sum() / c
    v_after = (1 - LR * bulk.drift) ** 2 * v + LR**2 * Q * bulk.drift**2 * (seen - v)
    expected = torch.cat([
        base.coordinates(space.pack(scaled(space, after))), bulk.counts.sqrt() * v_after / bulk.drift
    ])  # fmt: skip
    moved = state - found.step_loss(StepCoefficients(LR, Q)) @ state
    torch.testing.assert_close(moved, expected, **EXACT)
    assert found.subspace([0, 2]).shape == (6, 4), "nodes are always kept"
    nodes = torch.eye(6).double()[:, 4:]
    z = found.subspace([1])
    torch.testing.assert_close(z @ (z.mT @ nodes), nodes, **EXACT)


def blocks_of_modes(space: PairSpace, moment: torch.Tensor) -> torch.Tensor:
    rows = space.vectors.view(space.n_train, space.n_outputs, -1)
    return rows @ moment @ rows.mT


def test_an_empty_setting_moves_nothing(space):
    found: Projection = project(space, [space.pack(symmetric(space.rank, seed=0))])
    assert (found.step_loss(StepCoefficients(0.0, Q, 0.1)) == 0).all()
