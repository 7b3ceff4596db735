"""Draws of the state-dependent gradient noise, without a matrix square root."""

from __future__ import annotations

from torch import Tensor


def noise_direction(output_gradient: Tensor, xi: Tensor) -> Tensor:
    """v with Cov(v) = C(r) exactly, from one standard normal number an EXAMPLE.

        v_i = r_i (xi_i - mean xi) / sqrt(n)

    Args:
        output_gradient: r, [..., n, c]. xi: [..., n], independent N(0, 1).
    Returns:
        [..., n, c]; K v is one draw of the per-example gradient's deviation, seen in the outputs.
    Exactness: exact for every n and c; C(r) = blockdiag(r_i r_i^T)/n - r r^T/n^2.
    """
    n = output_gradient.shape[-2]
    return output_gradient * ((xi - xi.mean(-1, keepdim=True)) / n**0.5).unsqueeze(-1)
