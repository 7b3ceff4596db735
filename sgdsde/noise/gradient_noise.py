"""Covariance of the minibatch gradient in the eigenbasis of the kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from sgdsde.noise.example_blocks import ExampleBlocks


class GradientNoise:
    """Q(M) = (phi/B) K (s^2/n D(M) - s^2/n^2 M) K + (s^2 v / (n B)) K^2 in coordinates U^T e, K = U diag(l) U^T.

    D(M) are the diagonal blocks of the examples, s the curvature of the loss, v the variance of fresh label noise.

    Args:
        values: l, [r]. vectors: U, [n*c, r]. n_outputs: c. loss_curvature: s.
    """

    def __init__(self, values: Tensor, vectors: Tensor, *, n_outputs: int, loss_curvature: float) -> None:
        self._values, self._n = values, len(vectors) // n_outputs
        self._scaled = ExampleBlocks(vectors * values, n_outputs)
        self._factor = loss_curvature**2 / self._n

    def of(self, blocks: Tensor, moment: Tensor, noise_factor: float) -> Tensor:
        """Q without label noise, [r, r], from D [n, c, c] and U^T M U [r, r], which is overwritten; phi/B is given."""
        noise = self._scaled.spread(blocks)
        noise.sub_(moment.mul_(self._values[:, None]).mul_(self._values), alpha=1 / self._n)
        return noise.mul_(noise_factor * self._factor)

    def add_labels(self, noise: Tensor | None, variance: float) -> Tensor:
        """Adds the noise of freshly drawn targets of variance v/B; it survives B = n."""
        noise = torch.zeros_like(self._values).diag() if noise is None else noise
        noise.diagonal().add_(self._values.square(), alpha=self._factor * variance)
        return noise
