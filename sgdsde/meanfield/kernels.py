"""Kernels of infinitely wide networks: the NNGP kernel Sigma and the tangent kernel K, of a ``networks`` instance.

    Sigma^1 = K^1 = sigma_b^2 + sigma_w^2 x . x' / d
    Sigma^l = sigma_b^2 + sigma_w^2 E phi(u) phi(v),   K^l = K^{l-1} sigma_w^2 E phi'(u) phi'(v) + Sigma^l

for (u, v) of covariance Sigma^{l-1}, l = 2 ... depth + 1, the read-out included. A residual block adds s_l^2 times the
same increments to Sigma and K. Convolutions average over patches (``layouts``). All c outputs are independent: the
kernel of the c-output network is K (x) I_c, which ``per_output`` writes out, sample-major.

Source: Jacot, Gabriel, Hongler, arXiv:1806.07572; Hayou, Doucet, Rousseau, arXiv:1905.13654. Checked against networks
    of finite width and against stored numbers of neural-tangents.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from sgdsde._checks import complaint, positive_number, real_floating, word
from sgdsde.meanfield.activation import Activation
from sgdsde.meanfield.chebyshev_tables import Dual, dual_at
from sgdsde.meanfield.position_pairs import AllPositions, DenseLayout, Layout, SamePosition
from sgdsde.meanfield.variance import second_moments
from sgdsde.networks import CNN, MLP, ConvResNet, Network, ResNet

Which: TypeAlias = Literal["ntk", "nngp"]

# Below 2^15 entries torch runs an operation on one thread, with nothing to wait for. The tiles are shared among as many
# threads instead: one start per tile where there was one per operation, which a busy machine stalls.
TILE_ENTRIES = 32_000
DEVICE_TILE_ENTRIES = 1 << 24
TEMPORARIES = 8  # float64 arrays of a tile's size alive at once


class Kernels(NamedTuple):
    """Both kernels of one pass, [n1, n2] float64 each."""

    nngp: Tensor
    ntk: Tensor


@dataclass(frozen=True)
class _Step:
    """One application of phi and an affine map; a residual block adds scale^2 times its result."""

    dual: Dual
    s1: Tensor
    s2: Tensor
    scale: float
    is_residual: bool


def analytic_kernels(x1: Tensor, x2: Tensor | None, network: Network, *, memory: float | None = None) -> Kernels:
    """The NNGP and the tangent kernel of the infinitely wide network, both [n1, n2], float64, on the device of x1.

    Args:
        x1, x2: inputs [n, ...] as the network takes them; x2 None: x1 against itself, computed once per pair.
        network: an ``MLP``, ``ResNet``, ``CNN`` or ``ConvResNet`` in NTK parametrization; its width and its weights
            do not matter, its depth, activation, sigma_w, sigma_b and read-out do.
        memory: bytes for temporaries beside the results; None: some 2 MB for each thread.
    Raises:
        TypeError: another kind of network. ValueError: inputs of another shape, standard parametrization (its tangent
            kernel grows with the width), a tile that does not fit in ``memory``, an activation that cannot be
            tabulated.
    Exactness: closed forms (ReLU, leaky ReLU, erf) to rounding, other activations to 1e-9 per layer.
    Cost: per layer one arcsin and a dozen flops for each pair of examples (and positions).
    """
    layout = _layout(network)
    if network.parametrization != "ntk":
        remedy = 'use parametrization="ntk"; in the standard one the tangent kernel grows like the width'
        raise ValueError(complaint("parametrization", "'ntk'", repr(network.parametrization), remedy))
    x1 = _inputs("x1", x1, network)
    other = x1 if x2 is None else _inputs("x2", x2, network).to(x1.device)
    steps = _steps(network, layout, x1, other)
    side_1, side_2 = _tile(layout.entries(), x1, other, memory)
    nngp, ntk = (torch.empty(len(x1), len(other), dtype=torch.float64, device=x1.device) for _ in range(2))

    def fill(tile: tuple[slice, slice]) -> None:
        rows, columns = tile
        block = _recursion(network, layout, steps, (x1[rows], other[columns]), tile)
        for whole, part in zip((nngp, ntk), block):
            whole[rows, columns] = part
            if x2 is None:
                whole[columns, rows] = part.T if rows != columns else (part + part.T) / 2

    # Of a symmetric kernel, tiles below the diagonal are mirror images.
    tiles = [(r, c) for r in _slices(len(x1), side_1) for c in _slices(len(other), side_2)]
    tiles = [(r, c) for r, c in tiles if x2 is not None or c.start >= r.start]
    with ThreadPoolExecutor(torch.get_num_threads() if x1.device.type == "cpu" else 1) as pool:
        list(pool.map(fill, tiles))
    return Kernels(nngp, ntk)


def analytic_ntk(
    x1: Tensor, x2: Tensor | None, network: Network, *, kernel: Which = "ntk", memory: float | None = None
) -> Tensor:
    """The tangent kernel of the infinitely wide network, [n1, n2]; ``kernel="nngp"`` for the other. As
    ``analytic_kernels``, which has both at the cost of one."""
    word("kernel", kernel, ("ntk", "nngp"))
    return getattr(analytic_kernels(x1, x2, network, memory=memory), kernel)


def analytic_nngp(x1: Tensor, x2: Tensor | None, network: Network, *, memory: float | None = None) -> Tensor:
    """The covariance of one output at initialization in the limit of infinite width, [n1, n2]."""
    return analytic_kernels(x1, x2, network, memory=memory).nngp


def per_output(kernel: Tensor, n_outputs: int) -> Tensor:
    """kernel (x) I_c, [n1 c, n2 c]: the kernel of a network of c outputs, sample-major."""
    return torch.kron(kernel, torch.eye(n_outputs, dtype=kernel.dtype, device=kernel.device))


def _layout(network: Network) -> Layout:
    if isinstance(network, CNN | ConvResNet):
        kind = SamePosition if network.readout == "flatten" else AllPositions
        return kind(network.image_size, network.kernel_size)
    if isinstance(network, MLP | ResNet):
        return DenseLayout()
    remedy = "meanfield.correlation_map iterates any activation by hand"
    expected = "an instance of networks.MLP, ResNet, CNN or ConvResNet"
    raise TypeError(complaint("network", expected, type(network).__name__, remedy))


def _inputs(name: str, x: Tensor, network: Network) -> Tensor:
    x = real_floating(name, x).detach().to(torch.float64)
    if isinstance(network, MLP | ResNet):
        if x.ndim < 2 or x[0].numel() != network.in_features:
            raise ValueError(complaint(name, f"[n, {network.in_features}]", f"shape {list(x.shape)}"))
        return x.flatten(1)
    assert isinstance(network, CNN | ConvResNet)
    return network.check_images(x)


def _steps(network: Network, layout: Layout, x1: Tensor, x2: Tensor) -> list[_Step]:
    """The duals of all layers, from the variances of all inputs: a table must span every tile."""
    activation = Activation(network.activation)
    scales = list(getattr(network, "block_scales", [1.0] * (network.depth - 1)))
    is_residual = isinstance(network, ResNet | ConvResNet)
    sw2, sb2 = network.sigma_w**2, network.sigma_b**2
    variances = [sb2 + sw2 * layout.first_variance(x) for x in ((x1,) if x2 is x1 else (x1, x2))]
    steps: list[_Step] = []
    for scale, residual in [(scale, is_residual) for scale in scales] + [(1.0, False)]:
        deviations = [q.sqrt() for q in variances]
        low, high = min(float(s.min()) for s in deviations), max(float(s.max()) for s in deviations)
        dual = dual_at(activation, low, high, steps[-1].dual if steps else None)
        steps.append(_Step(dual, deviations[0], deviations[-1], scale, residual))
        grown = [sb2 + sw2 * layout.spread_variance(second_moments(activation, q)[0]) for q in variances]
        variances = [q + scale**2 * new if residual else new for q, new in zip(variances, grown)]
    return steps


def _recursion(
    network: Network, layout: Layout, steps: list[_Step], x: tuple[Tensor, Tensor], parts: tuple[slice, slice]
) -> tuple[Tensor, Tensor]:
    """Sigma and K of one tile, through all layers."""
    sw2, sb2 = network.sigma_w**2, network.sigma_b**2
    sigma = layout.first(*x).mul_(sw2).add_(sb2)
    ntk = sigma.clone()
    for step in steps[:-1]:
        residual = sigma.clone() if step.is_residual else None
        product, slopes = step.dual.pair_(sigma, layout.rows(step.s1, parts[0]), layout.rows(step.s2, parts[1]))
        increment = layout.spread(product).mul_(sw2).add_(sb2)
        moved = layout.spread(slopes.mul_(ntk)).mul_(sw2).add_(increment)
        if residual is None:
            sigma, ntk = increment, moved
        else:
            sigma, ntk = residual.add_(increment, alpha=step.scale**2), ntk.add_(moved, alpha=step.scale**2)
    last = steps[-1]
    product, slopes = last.dual.pair_(sigma, layout.rows(last.s1, parts[0]), layout.rows(last.s2, parts[1]))
    n1, n2 = len(x[0]), len(x[1])
    nngp = layout.read(product, n1, n2).mul_(sw2).add_(sb2)
    return nngp, layout.read(slopes.mul_(ntk), n1, n2).mul_(sw2).add_(nngp)


def _tile(entries: int, x1: Tensor, x2: Tensor, memory: float | None) -> tuple[int, int]:
    """Rows and columns of a tile."""
    n1, n2, is_cpu = len(x1), len(x2), x1.device.type == "cpu"
    budget = usual = max(TILE_ENTRIES if is_cpu else DEVICE_TILE_ENTRIES, entries)
    workers = torch.get_num_threads() if is_cpu else 1
    if memory is not None:
        budget = int(positive_number("memory", memory) // (8 * TEMPORARIES * workers))
        if budget < entries:
            needed = 8 * TEMPORARIES * workers * entries
            raise ValueError(complaint("memory", f"at least {needed} bytes for one pair of examples", f"{memory:g}"))
        budget = min(budget, usual)
    pairs = max(1, budget // entries)
    # Square where x1 meets itself, so that the mirror images of tiles are tiles.
    columns = min(n2, math.isqrt(pairs) if x1 is x2 else pairs)
    return max(1, min(n1, columns if x1 is x2 else pairs // columns)), columns


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
