"""The directions beyond the leading ones: what leaves them out, keeps their variances, and follows all of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde.dynamics import MomentRecursion, MovingKernel
from sgdsde.dynamics.moving_kernel.diagonal_tail import DiagonalTail, TailBlocks, TailedCovariance
from sgdsde.dynamics.moving_kernel.initial_directions import InitialDirections
from sgdsde.dynamics.moving_kernel.weight_subspace import WeightSubspace
from sgdsde.dynamics.output_law import Covariance


def linear_problem() -> sgdsde.Problem:
    """40 weights, two outputs, a spectrum over two decades."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 20, generator=generator, dtype=torch.float64) * torch.logspace(0, -1, 20, dtype=torch.float64)
    y = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    return sgdsde.Problem(
        nn.Linear(20, 2, bias=False).double(), x[:24], y[:24], loss=nn.MSELoss(), x_test=x[24:], y_test=y[24:]
    )


@pytest.mark.parametrize("words", [{}, {"momentum": 0.8}, {"label_noise_std": 0.5}], ids=str)
def test_variances_beyond_the_leading_directions_are_nearly_enough(words, monkeypatch):
    """Of 40 directions 8 are followed: within a tenth of the noise's part of the loss; without the others half is lost.

    Measured: 3 to 7 %, and 48 to 53 % without.
    """
    problem = linear_problem()
    linearization = sgdsde.linearize(problem)
    limit = sgdsde.stability.max_lr(linearization, 3, momentum=words.get("momentum", 0.0))
    sgd, record = sgdsde.SGD(0.3 * limit, 3, **words), [5, 40, 150]
    exact = sgdsde.predict(linearization, sgd, 150, record=record, dynamics=MomentRecursion())
    quiet = sgdsde.SGD(0.3 * limit, 24, sampling="without_replacement", momentum=words.get("momentum", 0.0))
    silent = sgdsde.predict(linearization, quiet, 150, record=record, dynamics=MomentRecursion())
    moving = MovingKernel(rank=8, feedback=None)

    def missed() -> float:
        found = sgdsde.predict(linearization, sgd, 150, record=record, dynamics=moving)
        sides = ("train_loss", "test_loss")
        return max(
            float(
                (
                    (getattr(found, side).mean - getattr(exact, side).mean)
                    / (getattr(exact, side).mean - getattr(silent, side).mean)
                )
                .abs()
                .max()
            )
            for side in sides
        )

    assert missed() < 0.1
    monkeypatch.setattr(TailBlocks, "of", classmethod(lambda *arguments: None))
    assert missed() > 0.4


def test_the_groups_hold_the_kernel_that_is_left():
    linearization = sgdsde.linearize(linear_problem())
    basis, found = linearization.eigenbasis, InitialDirections.of(linearization, 8)
    tail = TailBlocks.of(linearization, found, 8)
    rest = (basis.vectors[:, :-8] * basis.values[:-8]) @ basis.vectors[:, :-8].mT
    expected = torch.stack([rest[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] for i in range(24)])
    torch.testing.assert_close(tail.train.sum(0), expected)
    assert tail.sizes.sum() == len(basis.values) - 8
    assert TailBlocks.of(linearization, found, len(basis.values)) is None


def test_a_deviation_that_the_jacobian_turns_from_is_no_longer_seen():
    problem = linear_problem()
    linearization = sgdsde.linearize(problem)
    found = InitialDirections.of(linearization, 8)
    directions, blocks = WeightSubspace.leading(linearization, found, rank=8), TailBlocks.of(linearization, found, 8)
    tail = DiagonalTail(blocks, parts=1)
    tail.variances += 1.0
    trace = float(blocks.train.diagonal(dim1=2, dim2=3).sum())
    drawn = tail.draws(400, directions, problem.params)
    assert (directions.rows @ drawn.rows.mT).abs().max() < 1e-10
    assert float(drawn.moves.square().sum()) / 400 == pytest.approx(trace, rel=0.1)
    tail.turn(trace, directions, problem.params)
    torch.testing.assert_close(tail.variances, torch.ones_like(tail.variances))
    tail.turn(4 * trace, directions, problem.params)  # the trace of a Jacobian that has grown elsewhere
    torch.testing.assert_close(tail.variances * tail.scale, torch.ones_like(tail.variances))


def test_the_covariance_of_both_parts_is_that_of_the_matrix():
    generator = torch.Generator().manual_seed(1)
    factor, root, vector = (torch.randn(6, k, generator=generator, dtype=torch.float64) for k in (3, 3, 1))
    extra = torch.randn(3, 2, 2, generator=generator, dtype=torch.float64)
    extra, core = extra @ extra.mT, root[:3] @ root[:3].mT
    covariance = TailedCovariance(factor, core, factor.mT @ factor, extra)
    dense = Covariance(factor, core, factor.mT @ factor).to_dense() + torch.block_diag(*extra)
    torch.testing.assert_close(covariance.to_dense(), dense)
    torch.testing.assert_close(covariance.trace, dense.trace())
    torch.testing.assert_close(covariance.squared_norm, dense.square().sum())
    torch.testing.assert_close(covariance.diagonal(), dense.diagonal())
    torch.testing.assert_close(covariance.quadratic(vector[:, 0]), vector[:, 0] @ dense @ vector[:, 0])
