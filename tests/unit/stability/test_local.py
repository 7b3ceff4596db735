"""The quadratic at the initial outputs: G^{1/2} K G^{1/2} written out, and symmetric to the last bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde.stability.local import local_kernel
from tests.problems import classification_problem


def test_the_local_kernel_is_that_of_the_curvature_on_both_sides():
    linearization = sgdsde.linearize(classification_problem())
    found, curvature = local_kernel(linearization)
    probabilities = linearization.outputs.softmax(-1)
    hessians = torch.diag_embed(probabilities) - probabilities[:, :, None] * probabilities[:, None, :]
    values, vectors = torch.linalg.eigh(torch.block_diag(*hessians))
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
    torch.testing.assert_close(found, root @ linearization.kernel @ root, rtol=1e-9, atol=1e-11)
    assert torch.equal(found, found.mT)
    assert curvature == 1.0


def test_curvature_of_both_signs_is_refused():
    """Minus the cosine of the distance: curved upward near the target, downward far from it."""
    x = torch.eye(2, dtype=torch.float64)
    model = nn.Linear(2, 1, bias=False).double()
    problem = sgdsde.Problem(model, x, model(x).detach() + torch.tensor([[0.1], [3.0]]), loss=minus_cosine)
    with pytest.raises(ValueError, match="positive curvature at the initial outputs"):
        local_kernel(sgdsde.linearize(problem))


def minus_cosine(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return -(outputs - targets).cos().mean()
