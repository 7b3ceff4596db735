"""The quadratic at the initial outputs: G^{1/2} K G^{1/2} written out, and symmetric to the last bit."""

from __future__ import annotations

import torch

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
