"""Packed symmetric matrices of several panels are the matrices, and every operation on them is the dense one."""

from __future__ import annotations

import itertools

import pytest
import torch

from sgdsde.dynamics.moments.reduced.pairs import PairSpace, StepCoefficients
from tests.unit.dynamics.moments.reduced.dense import Driven, normal, random_space, scaled, step, symmetric

COEFFICIENTS = StepCoefficients(0.4, 0.3, 0.2)
EXACT = {"rtol": 1e-11, "atol": 1e-12}


@pytest.fixture(params=[(90, 1, 70), (45, 2, 70), (12, 3, 20)], ids=["one output", "two outputs", "one panel"])
def space(request: pytest.FixtureRequest) -> PairSpace:
    return random_space(*request.param)


def coupling(space: PairSpace, blocks: torch.Tensor) -> torch.Tensor:
    """C(b) = W^T blockdiag(b) W."""
    w = space.vectors * space.drift.sqrt()
    return w.mT @ torch.block_diag(*blocks) @ w


def blocks_of(space: PairSpace, matrix: torch.Tensor) -> torch.Tensor:
    """C^T(Y), the diagonal blocks of W Y W^T."""
    w, c = space.vectors * space.drift.sqrt(), space.n_outputs
    whole = w @ matrix @ w.mT
    return torch.stack([whole[i : i + c, i : i + c] for i in range(0, len(w), c)])


def random_blocks(space: PairSpace) -> torch.Tensor:
    blocks = normal(space.n_train, space.n_outputs, space.n_outputs, seed=3)
    return blocks + blocks.mT


def test_a_large_rank_has_several_panels_and_a_small_one_a_single_one(space):
    edges = [(a, b) for a, b, _ in space.panels(space.empty())]
    assert [a for a, _ in edges] == [0, *(b for _, b in edges[:-1])]
    assert edges[-1][1] == space.rank
    assert (len(edges) > 1) is (space.rank == 70)
    assert space.size <= space.rank * (space.rank + edges[0][1]) / 2, "about half of the entries"


def test_products_of_packed_matrices_are_those_of_the_matrices(space):
    one, other = symmetric(space.rank, seed=1), symmetric(space.rank, seed=2)
    torch.testing.assert_close(space.unpack(space.pack(one)), one, **EXACT)
    torch.testing.assert_close(space.pack(one) @ space.pack(other), (one * other).sum(), **EXACT)
    torch.testing.assert_close(space.pack_gains(one) * space.pack(other), space.pack(one * other), **EXACT)
    torch.testing.assert_close(space.diagonal(space.drift), space.pack(space.drift.diag()), **EXACT)
    torch.testing.assert_close(space.diagonal_of(space.pack(one)), one.diagonal(), **EXACT)


@pytest.mark.parametrize("columns", [1, 3])
def test_products_of_vectors(space, columns):
    x, y = normal(space.rank, columns, seed=4), normal(space.rank, columns, seed=5)
    torch.testing.assert_close(space.unpack(space.products(x, y)), (x @ y.mT + y @ x.mT) / 2, **EXACT)
    torch.testing.assert_close(space.unpack(space.products(x, x)), x @ x.mT, **EXACT)
    torch.testing.assert_close(space.products(x[:, 0], y[:, 0]), space.products(x[:, :1], y[:, :1]), **EXACT)


def test_the_coupling_and_its_adjoint(space):
    matrix, blocks = symmetric(space.rank, seed=6), random_blocks(space)
    torch.testing.assert_close(space.unpack(space.from_blocks(blocks)), coupling(space, blocks), **EXACT)
    torch.testing.assert_close(space.to_blocks(space.pack(matrix)), blocks_of(space, matrix), **EXACT)
    gains = symmetric(space.rank, seed=7)
    coupled = blocks_of(space, gains * coupling(space, blocks))
    torch.testing.assert_close(space.couple(space.pack_gains(gains), blocks), coupled, **EXACT)
    single = space.single.to_blocks(space.pack(matrix).float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), blocks_of(space, matrix), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_one_step_is_elementwise_but_for_the_coupling(space, decay):
    """T = k0 - k1 A1 + k2 A2 + k3 n C C^T is a step of SGD, its noise summed over examples one by one."""
    coefficients = StepCoefficients(0.4, 0.3, decay)
    moment = symmetric(space.rank, seed=8)
    after, _ = step(space, coefficients, 1.0, Driven(), moment, moment[:, :1])
    y = space.pack(scaled(space, moment))
    kept = y - space.elementwise(coefficients) * y
    noise = coefficients.numbers[-1] * space.n_train * space.from_blocks(space.to_blocks(y))
    torch.testing.assert_close(space.unpack(kept + noise), scaled(space, after), **EXACT)


def test_panels_are_views_of_what_is_packed(space):
    packed = space.empty().zero_()
    for _, _, panel in space.panels(packed):
        panel += 1
    assert (packed == 1).all()
    assert sum(b * (b - a) for a, b, _ in space.panels(packed)) == len(packed) == space.size
    assert all(b == a for (_, b, _), (a, _, _) in itertools.pairwise(space.panels(packed)))
