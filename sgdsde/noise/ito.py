"""The drift that noise in the weights gives to outputs that are curved in them."""

from __future__ import annotations

import torch
from torch import Tensor

from sgdsde._checks import complaint, whole_number
from sgdsde._functional import FunctionalModel, pulled
from sgdsde._types import Params
from sgdsde.linearization import Linearization

ROWS = 256
"""Examples of one pass: each keeps the graph of four passes through the network."""


def ito_term(
    linearization: Linearization, output_gradient: Tensor, *, n_directions: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """Gamma: E[f(theta + d theta)] - f(theta) - J E[d theta], a unit of the covariance of d theta, times two.

        Gamma_a(x) = tr(Sigma Hess_theta f_a(x)) = sum_k d^2/dh^2 f_a(x; theta_0 + h w_k),   Sigma = sum_k w_k w_k^T

    Sigma is the covariance of the per-example gradients. With V as in ``noise_direction``, v = V xi, it is
    J^T V V^T J, so w_k = J^T V q_k with q_k the eigenvectors of V^T K V [n, n], and the leading ones carry most of it.

    Args:
        output_gradient: r, [n, c]. n_directions: how many w_k, the largest first; default all n.
    Returns:
        Gamma at the training examples, [n, c], and at the test examples, [m, c] or None. SGD moves the mean output by
        (phi lr^2 / 2B) Gamma a step. Zero for a model linear in its parameters.
    Raises:
        ValueError: n_directions is not between 1 and n.
    Exactness: exact with all directions, at the initial weights.
    Cost: two backward passes over the training set and three over all data for each direction; p numbers.
    Source: Ito's formula; Hayou, Doucet, Rousseau, arXiv:1905.13654.
    """
    problem, functional = linearization.problem, linearization.problem.functional
    n = problem.n_train
    count = n if n_directions is None else whole_number("n_directions", n_directions, minimum=1)
    if count > n:
        raise ValueError(complaint("n_directions", f"at most n_train={n}", count, "omit it for all"))
    cotangents = _cotangents(linearization, output_gradient, count)
    train = torch.zeros(n, problem.n_outputs).to(output_gradient)
    test = None if problem.x_test is None else torch.zeros(problem.n_test, problem.n_outputs).to(output_gradient)
    for cotangent in cotangents:
        direction = weight_direction(functional, problem.x_train, cotangent.to(functional.dtype))
        train += second_derivative(functional, problem.x_train, direction).to(train)
        if test is not None and problem.x_test is not None:
            test += second_derivative(functional, problem.x_test, direction).to(test)
    return train, test


def _cotangents(linearization: Linearization, output_gradient: Tensor, count: int) -> Tensor:
    """V q_k for the largest eigenvalues of V^T K V, [count, n, c]."""
    n, c = output_gradient.shape
    kernel = linearization.dense_kernel.view(n, c, n, c)
    inner = torch.einsum("ia,iajb,jb->ij", output_gradient, kernel, output_gradient)
    inner = inner - inner.mean(0, keepdim=True)
    inner = inner - inner.mean(1, keepdim=True)
    vectors = torch.linalg.eigh(inner + inner.mT).eigenvectors.flip(1)[:, :count]  # in any unit
    centered = (vectors - vectors.mean(0)).mT / n**0.5
    return centered[:, :, None] * output_gradient


def weight_direction(functional: FunctionalModel, x: Tensor, cotangent: Tensor) -> Params:
    """J^T v for v [n, c], by parameter name."""
    total = {name: torch.zeros_like(value) for name, value in functional.params.items()}
    for start in range(0, len(x), ROWS):
        rows = slice(start, start + ROWS)
        (part,) = pulled(functional, functional.params, x[rows], cotangent[None, rows])[1]
        for name in total:
            total[name] += part[name]
    return total


def second_derivative(functional: FunctionalModel, x: Tensor, direction: Params) -> Tensor:
    """d^2/dh^2 f(x; theta_0 + h w) at h = 0, [n, c], by reverse-mode passes only."""
    blocks = []
    for start in range(0, len(x), ROWS):
        step = torch.zeros((), dtype=functional.dtype, device=functional.device, requires_grad=True)
        with torch.enable_grad():
            params = {name: value + step * direction[name] for name, value in functional.params.items()}
            outputs = functional.forward(params, x[start : start + ROWS])
            blocks.append(_along(_along(outputs, step), step).detach())
    return torch.cat(blocks)


def _along(outputs: Tensor, step: Tensor) -> Tensor:
    """d outputs / d step: the derivative of <weights, outputs> by step, linear in the weights, is derived by them."""
    if not outputs.requires_grad:
        return torch.zeros_like(outputs)
    weights = torch.zeros_like(outputs, requires_grad=True)
    (slope,) = torch.autograd.grad((weights * outputs).sum(), step, create_graph=True, materialize_grads=True)
    if not slope.requires_grad:
        return torch.zeros_like(outputs)
    return torch.autograd.grad(slope, weights, create_graph=True, materialize_grads=True)[0]
