"""Claim: near the outputs the limits of a loss are those of its quadratic: squared error with kernel G^1/2 K G^1/2.

Against the dense map of second moments, X -> A X A^T + (phi lr^2/B) K C(G X G) K with A = I - (lr/n) K G, and against
squared error itself, written as a function that the library does not know.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import sgdsde
from sgdsde import stability
from sgdsde.noise import output_noise
from sgdsde.stability.limits import sufficient_lr
from tests.problems import BY_NAME, classification_problem

SAMPLINGS = ("with_replacement", "without_replacement")


def radius(linearization: sgdsde.Linearization, sgd: sgdsde.SGD) -> float:
    """Of the dense map on the range of K, a column a basis matrix."""
    problem, kernel = linearization.problem, linearization.dense_kernel
    n, c, lr = problem.n_train, problem.n_outputs, sgd.lr_at(0)
    curvature = torch.block_diag(*problem.criterion.hessian(linearization.outputs, linearization.targets))
    values, vectors = torch.linalg.eigh(curvature @ kernel @ curvature)
    root = vectors[:, values > 1e-10 * values.max()]
    step = torch.eye(n * c, dtype=kernel.dtype) - lr / n * curvature @ kernel
    columns = []
    for i in range(root.shape[1] ** 2):
        basis = torch.zeros(root.shape[1] ** 2, dtype=kernel.dtype)
        basis[i] = 1.0
        moment = root @ basis.view(root.shape[1], -1) @ root.mT  # of the output gradients r = G e
        noise = output_noise(
            curvature @ kernel, moment, n_train=n, batch_size=sgd.batch_size_at(0), sampling=sgd.sampling
        )
        columns.append((root.mT @ (step @ moment @ step.mT + lr**2 * noise) @ root).flatten().numpy())
    return float(np.abs(np.linalg.eigvals(np.stack(columns, 1))).max())


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_limit_is_where_the_dense_map_has_radius_one(sampling: str) -> None:
    linearization = sgdsde.linearize(classification_problem())
    limit = stability.max_lr(linearization, 2, sampling=sampling)
    assert radius(linearization, sgdsde.SGD(limit, 2, sampling=sampling)) == pytest.approx(1, abs=1e-6)
    smaller = sgdsde.SGD(0.5 * limit, 2, sampling=sampling)
    found = stability.mean_square_radius(linearization, smaller)
    assert found == pytest.approx(radius(linearization, smaller), abs=1e-6)
    assert sufficient_lr(linearization, 2, sampling=sampling) <= limit
    assert stability.max_lr_full_batch(linearization) > limit


def test_squares_by_automatic_differentiation_have_the_limits_of_squares() -> None:
    known = BY_NAME["two outputs, null space"].problem()
    general = sgdsde.Problem(known.model, known.x_train, known.y_train, loss=lambda f, y: (f - y).square().mean())
    for ask in (
        lambda p: stability.max_lr(p, 2),
        lambda p: stability.max_lr(p, 2, momentum=0.9),
        lambda p: stability.max_lr(p, 2, weight_decay=0.1),
        stability.max_lr_full_batch,
        stability.critical_batch_size,
        lambda p: stability.mean_square_radius(p, sgdsde.SGD(0.1, 2)),
    ):
        assert ask(general) == pytest.approx(ask(known), rel=1e-7)


def test_losses_without_a_positive_curvature_are_refused() -> None:
    x, y = torch.ones(4, 2), torch.zeros(4, 1)
    for loss, message in (
        (nn.L1Loss(), "twice differentiable"),
        (
            lambda f, t: torch.cos(f - t).mean(),
            "of positive curvature at the initial outputs, got one with eigenvalues",
        ),
    ):
        model = nn.Linear(2, 1)
        nn.init.constant_(model.weight, 0.1)
        nn.init.zeros_(model.bias)
        with pytest.raises(ValueError, match=message):
            stability.max_lr(sgdsde.Problem(model, x, y, loss=loss), 2)
