"""Weight directions from products with the kernel: those of a whole decomposition, and a sketch of what is left."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde.dynamics import MovingKernel
from sgdsde.dynamics.moving_kernel import initial_directions
from sgdsde.dynamics.moving_kernel.diagonal_tail import DiagonalTail, TailBlocks
from sgdsde.dynamics.moving_kernel.initial_directions import InitialDirections
from sgdsde.dynamics.moving_kernel.weight_subspace import WeightSubspace
from sgdsde.jacobian import jacobian

RANK = 10


@pytest.fixture
def by_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of any size are only multiplied with."""
    monkeypatch.setattr(initial_directions, "ALL_UP_TO", 0)


def network(n: int = 100, n_outputs: int = 3) -> sgdsde.Problem:
    """300 rows, 523 weights."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n + 20, 9, generator=generator, dtype=torch.float64)
    y = torch.randn(n + 20, n_outputs, generator=generator, dtype=torch.float64)
    model = sgdsde.networks.MLP(9, 40, n_outputs, activation="tanh", dtype=torch.float64, generator=generator)
    return sgdsde.Problem(model, x[:n], y[:n], loss=nn.MSELoss(), x_test=x[n:], y_test=y[n:])


def rows_of(problem: sgdsde.Problem) -> torch.Tensor:
    """J, [n*c, p]."""
    found = jacobian(problem.functional, problem.x_train)
    return torch.cat([block.reshape(problem.n_train * problem.n_outputs, -1) for block in found.values()], 1)


def test_directions_are_orthonormal_and_the_leading_ones_those_of_the_kernel(by_products):
    problem = network()
    linearization, j = sgdsde.linearize(problem), rows_of(problem)
    found = InitialDirections.of(linearization, RANK)
    w = j.mT @ found.dual
    assert w.shape[1] == initial_directions.BLOCKS * 8, "nothing is decomposed"
    torch.testing.assert_close(w.mT @ w, torch.eye(w.shape[1], dtype=torch.float64), rtol=0, atol=1e-8)
    torch.testing.assert_close(j @ w, found.features, rtol=0, atol=1e-8)
    basis = linearization.eigenbasis
    torch.testing.assert_close(found.values[:RANK], basis.values.flip(0)[:RANK], rtol=1e-5, atol=0)
    leading = j.mT @ (basis.vectors.flip(1) * basis.values.flip(0).rsqrt())[:, :RANK]
    assert torch.linalg.svdvals(leading.mT @ w[:, :RANK]).min() > 0.999


def test_the_rest_is_what_the_directions_leave_of_the_kernel(by_products, monkeypatch):
    """Exact trace; the effective size and the blocks by a sketch, here of many columns."""
    monkeypatch.setattr(initial_directions, "SKETCH", 2000)
    problem = network()
    linearization, j = sgdsde.linearize(problem), rows_of(problem)
    found = InitialDirections.of(linearization, RANK)
    left = linearization.kernel - found.features @ found.features.mT
    rest = found.rest
    torch.testing.assert_close(j @ (j.mT @ rest.dual), rest.features, rtol=0, atol=1e-8)
    assert (found.dual.mT @ rest.features).abs().max() < 1e-7, "orthogonal to the directions"
    assert float(rest.features.square().sum()) == pytest.approx(float(left.trace()), rel=1e-9)
    assert rest.size == pytest.approx(float(left.trace() ** 2 / left.square().sum()), rel=0.1)
    moved = left @ left
    expected = moved.diagonal() * (left.trace() / moved.trace())
    assert float((rest.features.square().sum(1) - expected).norm() / expected.norm()) < 0.1


@pytest.mark.usefixtures("by_products")
def test_the_tail_takes_the_sketch_in(monkeypatch):
    monkeypatch.setattr(initial_directions, "SKETCH", 500)
    problem = network()
    linearization = sgdsde.linearize(problem)
    found = InitialDirections.of(linearization, RANK)
    blocks = TailBlocks.of(linearization, found, RANK)
    left = linearization.kernel.trace() - found.features[:, :RANK].square().sum()
    torch.testing.assert_close(blocks.train.diagonal(dim1=2, dim2=3).sum(), left)
    assert len(blocks.sizes) == len(blocks.columns) == len(blocks.train) == len(blocks.test)
    assert blocks.sizes[-1] == found.rest.size
    assert blocks.columns.sum() == blocks.dual.shape[1]
    tail = DiagonalTail(blocks, parts=1)
    tail.variances[-1] += 1.0  # of the sketch alone
    directions = WeightSubspace.leading(linearization, found, rank=RANK)
    drawn = tail.draws(3000, directions, problem.params)
    expected = blocks.train[-1].diagonal(dim1=1, dim2=2).sum()
    assert float(drawn.moves.square().sum()) / 3000 == pytest.approx(float(expected), rel=0.1)


@pytest.mark.parametrize("words", [{}, {"momentum": 0.8}], ids=str)
def test_a_prediction_by_products_is_that_of_a_whole_decomposition(words, monkeypatch):
    """The noise's part of the loss within 3 % of what all eigenpairs give; without the rest a tenth is missing."""
    problem = network()
    linearization = sgdsde.linearize(problem)
    lr = 0.2 * sgdsde.stability.max_lr(linearization, 4, **words)
    sgd, quiet = sgdsde.SGD(lr, 4, **words), sgdsde.SGD(lr, 100, sampling="without_replacement", **words)
    moving, record = MovingKernel(rank=RANK, feedback=None), [10, 60]

    def losses(words: sgdsde.SGD) -> torch.Tensor:
        found = sgdsde.predict(linearization, words, 60, record=record, dynamics=moving)
        return torch.stack([found.train_loss.mean, found.test_loss.mean])

    silent, whole = losses(quiet), losses(sgd)
    monkeypatch.setattr(initial_directions, "ALL_UP_TO", 0)
    found = losses(sgd)
    monkeypatch.setattr(initial_directions, "_rest", lambda *arguments: None)
    without = losses(sgd)
    assert ((found - whole) / (whole - silent)).abs().max() < 0.03
    assert ((without - whole) / (whole - silent)).abs().max() > 2 * ((found - whole) / (whole - silent)).abs().max()


def test_a_truncated_linearization_is_as_good_as_a_whole_one():
    """Its directions are the kernel's own, whatever modes other dynamics follow, tails frozen or followed."""
    problem, sgd = network(24), sgdsde.SGD(0.05, 4)
    whole = sgdsde.linearize(problem)
    expected = sgdsde.predict(whole, sgd, 10, dynamics=MovingKernel()).train_loss.mean
    for tail in ("frozen", "followed"):
        truncated = whole.truncate(6, tail=tail)
        found = sgdsde.predict(truncated, sgd, 10, dynamics=MovingKernel())
        torch.testing.assert_close(found.train_loss.mean, expected, rtol=1e-9, atol=0)


@pytest.mark.usefixtures("by_products")
@pytest.mark.filterwarnings("ignore:the kernel is zero")
def test_a_kernel_of_zero_is_refused():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(-1.0)
    x = torch.randn(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    problem = sgdsde.Problem(model, x, x[:, :1], loss=nn.MSELoss())
    with pytest.raises(ValueError, match="different from zero, got zero: the outputs do not depend on the weights"):
        sgdsde.predict(problem, sgdsde.SGD(0.1, 4), 3, dynamics=MovingKernel())
