"""Inner products of per-example loss gradients, from the kernel: g_i . g_j = r_i^T K_ij r_j."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde._checks import complaint, finite_entries
from sgdsde._types import Params
from sgdsde.kernel import KernelPlan, KroneckerKernel, factors, tile
from sgdsde.linearization import Linearization, problem_of
from sgdsde.problem import Problem

ROWS = 1024
"""Outputs on a side of a tile."""


@dataclass(frozen=True)
class GramTile:
    """g_i . g_j for i in ``rows``, j in ``columns``, [b1, b2]; tiles above the diagonal are left out."""

    rows: slice
    columns: slice
    values: Tensor


def gradient_gram(
    problem_or_linearization: Problem | Linearization,
    output_gradient: Tensor | None = None,
    *,
    params: Params | None = None,
    memory: int | None = None,
) -> Tensor:
    """Inner products of the loss gradients of all pairs of examples, [n, n], float64.

        G_ij = g_i . g_j = r_i^T K_ij r_j,   g_i = J_i^T r_i

    Args:
        output_gradient: r, [n, c]; default dl_i/df_i at the outputs. A common sign in it hides confusion: pass -y, say,
            for a network whose outputs are far from zero at the start.
        params: weights to take in place of the problem's own, by name; a problem only.
        memory: bytes for a tile and its factors.
    Raises:
        ValueError: an output gradient of another shape, or not finite.
    Exactness: that of the kernel, 1e-12 relative in float64; any model and loss.
    Cost: that of the kernel, n^2 numbers and one tile; never the n^2 c^2 numbers of K.
    """
    n = problem_of(problem_or_linearization).n_train
    gram: Tensor | None = None
    for part in gram_tiles(problem_or_linearization, output_gradient, params=params, memory=memory):
        gram = part.values.new_empty(n, n) if gram is None else gram
        gram[part.rows, part.columns] = part.values
        gram[part.columns, part.rows] = part.values.mT
    assert gram is not None
    return gram


def gram_tiles(
    problem_or_linearization: Problem | Linearization,
    output_gradient: Tensor | None = None,
    *,
    params: Params | None = None,
    diagonal_only: bool = False,
    memory: int | None = None,
) -> Iterator[GramTile]:
    """The lower half of ``gradient_gram`` tile by tile; with ``diagonal_only`` the tiles on the diagonal."""
    if isinstance(problem_or_linearization, Linearization):
        if params is not None:
            raise ValueError(complaint("params", "given with a Problem", "a Linearization", "pass its .problem"))
        yield from _of_kernel(problem_or_linearization, output_gradient, diagonal_only)
    else:
        yield from _of_model(
            problem_of(problem_or_linearization),
            output_gradient,
            params=params,
            diagonal_only=diagonal_only,
            memory=memory,
        )


def output_gradient_of(problem: Problem, outputs: Tensor, given: Tensor | None) -> Tensor:
    """r [n, c] in float64: what was given, checked, or the loss's own."""
    if given is None:
        y = problem.y_train
        return problem.criterion.gradient(outputs, y.to(outputs.dtype) if y.is_floating_point() else y).double()
    if not isinstance(given, Tensor) or list(given.shape) != [problem.n_train, problem.n_outputs]:
        received = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(complaint("output_gradient", f"[{problem.n_train}, {problem.n_outputs}]", received))
    return finite_entries("output_gradient", given.double().to(outputs.device))


def _of_model(
    problem: Problem, given: Tensor | None, *, params: Params | None, diagonal_only: bool, memory: int | None
) -> Iterator[GramTile]:
    functional = problem.functional if params is None else dataclasses.replace(problem.functional, params=params)
    x, n, c = problem.x_train, problem.n_train, problem.n_outputs
    block = x[: min(n, max(1, ROWS // c))]
    plan = KernelPlan.make(functional, functional.params, block, block, c, memory=memory)
    rows = min(plan.rows, len(block))
    with torch.no_grad():
        outputs = torch.cat([functional.forward(functional.params, x[i : i + rows]) for i in range(0, n, rows)])
    finite_entries("model output", outputs)
    r = output_gradient_of(problem, outputs.double(), given)
    for i in range(0, n, rows):
        left = factors(functional, x[i : i + rows], plan=plan)
        for j in range(i if diagonal_only else 0, i + 1, rows):
            right = left if i == j else factors(functional, x[j : j + rows], plan=plan)
            kernel = tile(left, right, plan=plan).double()
            above, beside = slice(i, min(n, i + rows)), slice(j, min(n, j + rows))
            yield GramTile(above, beside, contracted(kernel, r[above], r[beside]))
            del right
        del left


def _of_kernel(linearization: Linearization, given: Tensor | None, diagonal_only: bool) -> Iterator[GramTile]:
    problem = linearization.problem
    n, c = problem.n_train, problem.n_outputs
    r = output_gradient_of(problem, linearization.outputs.double(), given)
    if isinstance(linearization.kernel, KroneckerKernel):
        base = linearization.kernel.base.to_dense().double() * linearization.kernel.scale
        yield GramTile(slice(0, n), slice(0, n), base * (r @ r.mT))
        return
    kernel, rows = linearization.dense_kernel, max(1, ROWS // c)
    for i in range(0, n, rows):
        for j in range(i if diagonal_only else 0, i + 1, rows):
            above, beside = slice(i, min(n, i + rows)), slice(j, min(n, j + rows))
            window = kernel[i * c : above.stop * c, j * c : beside.stop * c].double()
            yield GramTile(above, beside, contracted(window, r[above], r[beside]))


def contracted(kernel: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """l_i^T K_ij r_j, [b1, b2], of a tile [b1 c, b2 c] and output gradients [b1, c] and [b2, c]."""
    (b1, c), b2 = left.shape, len(right)
    half = (kernel.view(b1 * c, b2, c) * right).sum(-1)
    return (half.view(b1, c, b2) * left[:, :, None]).sum(1)
