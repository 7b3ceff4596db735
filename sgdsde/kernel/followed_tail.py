"""The tail of a truncated eigenbasis by its own moments: Ritz vectors of what starts in it, a spectrum of the rest.

What a residual e_0 leaves outside of the leading eigenvectors, e_t, decays as (1 - lr s K_t/n)^k e_t, and that lies in
the Krylov space of e_t: Ritz vectors V of it, K_t V ~ V diag(t), follow it as eigenvectors would. Beside them the noise
of minibatches reaches the other directions too. These are many and not followed one by one: Gauss quadratures of random
vectors give their eigenvalues with multiplicities (``Bulk``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sgdsde._streams import torch_stream
from sgdsde.kernel.eigenbasis import Bulk, Eigenbasis, Tail, largest_of_blocks
from sgdsde.kernel.krylov import krylov_basis, random_signs, spectral_nodes, times
from sgdsde.kernel.operator import DenseKernel, KernelOperator

DIRECTIONS = 96
"""Ritz vectors from the residual at most, and from J theta_0, which only weight decay needs, a third of it."""

MOST_STEPS, FEWEST_STEPS = 12, 3
"""Of a Krylov space: twelve hold (1 - h)^k e for h k up to about thirty at the largest h of the tail."""

N_PROBES, PROBE_STEPS = 4, 16
"""Random vectors of the bulk's spectrum, and products with each."""


def follow_tail(
    kernel: KernelOperator, basis: Eigenbasis, starts: Sequence[Tensor], n_outputs: int, *, seed: int = 0
) -> Eigenbasis:
    """Leading eigenpairs together with Ritz vectors of the tail, and the spectrum of what is left.

    Args:
        basis: leading eigenpairs (``Eigenbasis.leading``). starts: what moves besides, [d, k] each, the residual first.
        seed: of the random vectors.
    Returns:
        ``basis`` itself where it has no tail.
    Cost: about 14 products with the columns of the starts, and 64 with random vectors.
    """
    if basis.tail is None:
        return basis
    found = _ritz_vectors(kernel, basis.vectors, starts)
    values, inner = torch.linalg.eigh(_symmetric(found.mT @ times(kernel, found)))
    floor = len(kernel) * torch.finfo(values.dtype).eps * float(basis.values[-1])
    kept = values > floor
    joined = _joined(basis, values[kept], found @ inner[:, kept])
    outside = torch.cat([basis.vectors, found], 1)
    probes = random_signs(len(kernel), N_PROBES, torch_stream(seed, "bulk", 0, outside.device)).to(outside)
    nodes, weights = spectral_nodes(kernel, probes, PROBE_STEPS, outside=outside)
    counts = weights / N_PROBES
    blocks = joined.left_out(kernel, n_outputs)
    trace = float(blocks.diagonal(dim1=1, dim2=2).sum().clamp_min(0))
    density = blocks.diagonal(dim1=1, dim2=2).sum(1).clamp_min(0)
    tail = replace(basis.tail, trace=trace, example=largest_of_blocks(blocks))
    return _with_bulk(joined, tail, nodes.flatten(), counts.flatten(), density, int(kept.sum()))


def halved(basis: Eigenbasis, starts: Sequence[Tensor]) -> Eigenbasis:
    """The same from half of the leading eigenpairs: what was not followed then tells what is not followed now.

    The other half and the Ritz vectors take the place of the kernel, so that no product with it is made.
    """
    tail = basis.tail
    assert tail is not None
    assert tail.bulk is not None
    bulk, r = tail.bulk, len(basis.values)
    first = r - max(1, (r - bulk.n_followed) // 2)
    values, vectors, kept = basis.values[:first], basis.vectors[:, :first], basis.vectors[:, first:]
    leading = Eigenbasis(basis.values[first:], kept, tail)
    small = DenseKernel(values.diag())
    found = _ritz_vectors(small, values.new_zeros(first, 0), [vectors.mT @ start for start in starts])
    ritz, inner = torch.linalg.eigh(_symmetric(found.mT @ (values[:, None] * found)))
    joined = _joined(leading, ritz, vectors @ (found @ inner))
    outside = torch.linalg.qr(found, mode="complete").Q[:, found.shape[1] :]
    others, turned = torch.linalg.eigh(_symmetric(outside.mT @ (values[:, None] * outside)))
    by_example = len(bulk.density), len(vectors) // len(bulk.density), len(others)
    rows = (vectors @ (outside @ turned)).view(by_example).square().sum(1)
    density = bulk.density * (tail.trace / len(bulk.density)) + rows @ others
    tail = replace(tail, largest=float(values[-1]), trace=tail.trace + float(others.sum()))
    counts = torch.cat([bulk.counts, torch.ones_like(others)])
    return _with_bulk(joined, tail, torch.cat([bulk.values, others]), counts, density, len(ritz))


def _ritz_vectors(kernel: KernelOperator, leading: Tensor, starts: Sequence[Tensor]) -> Tensor:
    """Orthonormal, orthogonal to the leading eigenvectors, spanning the Krylov spaces of all starts."""
    found = leading[:, :0]
    for start, directions in zip(starts, (DIRECTIONS, DIRECTIONS // 3)):
        steps = min(MOST_STEPS, max(FEWEST_STEPS, directions // start.shape[1]))
        space = krylov_basis(kernel, start, steps, outside=leading)
        found = krylov_basis(kernel, torch.cat([found, space], 1), 1, outside=leading)
    return found


def _joined(basis: Eigenbasis, values: Tensor, vectors: Tensor) -> Eigenbasis:
    """Eigenpairs and Ritz pairs, ascending."""
    values, vectors = torch.cat([values, basis.values]), torch.cat([vectors, basis.vectors], 1)
    order = values.argsort(stable=True)
    return Eigenbasis(values[order], vectors[:, order].contiguous())


def _with_bulk(
    joined: Eigenbasis, tail: Tail, nodes: Tensor, counts: Tensor, density: Tensor, n_followed: int
) -> Eigenbasis:
    """The spectrum scaled to the trace, which is known exactly."""
    kept = (nodes > 0) & (counts > 0)
    nodes, counts = nodes[kept], counts[kept]
    total = float((nodes * counts).sum())
    counts = counts * (tail.trace / total) if total > 0 else counts
    density = density / density.mean() if bool(density.any()) else torch.ones_like(density)
    return replace(joined, tail=replace(tail, bulk=Bulk(nodes, counts, density, n_followed)))


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2
