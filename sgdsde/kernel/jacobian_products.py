"""Derivatives of a network along directions: J^T u for many u, J w for many w.

Three ways, the fastest first, and a test that says whether a way is right for a model:

    Vectorized      vmap over vjp and over jvp
    TwiceBackward   plain backward passes; J w by deriving <J^T u, w>, linear in u, by u
    ByRows          rows of the Jacobian, a few examples at a time
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.func import jvp, vjp

from sgdsde._checks import complaint
from sgdsde._functional import FunctionalModel, vectorize
from sgdsde._types import Params
from sgdsde.jacobian import jacobian

EXAMPLES_BY_ROWS = 4


class Directional(ABC):
    """Products with the Jacobian of a batch, for k vectors at once."""

    def __init__(self, functional: FunctionalModel) -> None:
        self.functional = functional

    @abstractmethod
    def pull(self, x: Tensor, cotangents: Tensor) -> Params:
        """J^T u: x [b, ...], u [k, b, c] to tensors [k, *shape] by parameter."""

    @abstractmethod
    def push(self, x: Tensor, directions: Params) -> Tensor:
        """J w: w as tensors [k, *shape] by parameter, to [k, b, c]."""


class Vectorized(Directional):
    def pull(self, x: Tensor, cotangents: Tensor) -> Params:
        backward = vjp(lambda params: self.functional.forward(params, x), self.functional.params)[1]
        (result,) = vectorize(backward)(cotangents)
        return {name: value.detach() for name, value in result.items()}

    def push(self, x: Tensor, directions: Params) -> Tensor:
        def along(direction: Params) -> Tensor:
            slope: Tensor = jvp(
                lambda params: self.functional.forward(params, x), (self.functional.params,), (direction,)
            )[1]
            return slope

        with torch.no_grad(), warnings.catch_warnings():
            # The first forward-mode call of a process compiles decompositions in a way that torch itself deprecates.
            warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
            return vectorize(along)(directions).detach()


class TwiceBackward(Directional):
    def pull(self, x: Tensor, cotangents: Tensor) -> Params:
        leaves = self._leaves()
        with torch.enable_grad():
            outputs = self.functional.forward(leaves, x)
        found = [
            torch.autograd.grad(
                outputs, list(leaves.values()), u, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for u in cotangents
        ]
        return {name: torch.stack([part[i].to_dense() for part in found]) for i, name in enumerate(leaves)}

    def push(self, x: Tensor, directions: Params) -> Tensor:
        leaves = self._leaves()
        with torch.enable_grad():
            outputs = self.functional.forward(leaves, x)
            weights = torch.zeros_like(outputs, requires_grad=True)
            pulled = torch.autograd.grad(
                outputs, list(leaves.values()), weights, create_graph=True, allow_unused=True, materialize_grads=True
            )
            count = len(next(iter(directions.values())))
            slopes = []
            for k in range(count):
                product = sum(
                    ((g.to_dense() * directions[name][k]).sum() for name, g in zip(leaves, pulled)),
                    weights.new_zeros(()),
                )
                if not product.requires_grad:
                    slopes.append(torch.zeros_like(outputs))
                    continue
                (slope,) = torch.autograd.grad(
                    product, weights, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                slopes.append(slope)
        return torch.stack(slopes).detach()

    def _leaves(self) -> Params:
        return {name: value.detach().requires_grad_() for name, value in self.functional.params.items()}


class ByRows(Directional):
    def pull(self, x: Tensor, cotangents: Tensor) -> Params:
        k, shapes = len(cotangents), {name: value.shape for name, value in self.functional.params.items()}
        total = {name: value.new_zeros(k, value.numel()) for name, value in self.functional.params.items()}
        for rows in _pieces(len(x)):
            for name, block in jacobian(self.functional, x[rows]).items():
                total[name] += cotangents[:, rows].reshape(k, -1) @ block
        return {name: value.view(k, *shapes[name]) for name, value in total.items()}

    def push(self, x: Tensor, directions: Params) -> Tensor:
        flat = {name: value.reshape(len(value), -1) for name, value in directions.items()}
        k, slopes = len(next(iter(flat.values()))), []
        for rows in _pieces(len(x)):
            blocks = jacobian(self.functional, x[rows])
            slope = sum((flat[name] @ block.mT for name, block in blocks.items()), torch.zeros(()).to(x.device))
            slopes.append(slope.view(k, len(x[rows]), -1))
        return torch.cat(slopes, dim=1)


def _pieces(n: int) -> list[slice]:
    return [slice(start, start + EXAMPLES_BY_ROWS) for start in range(0, n, EXAMPLES_BY_ROWS)]


def directional(functional: FunctionalModel, x: Tensor, n_outputs: int) -> Directional:
    """The fastest way that passes the test on two examples of x [n, ...].

    Raises:
        ValueError: none does; names what went wrong with each.
    """
    kinds: list[type[Directional]] = [Vectorized, TwiceBackward, ByRows]
    faults = []
    for kind in kinds if functional.vectorizes else kinds[1:]:
        way = kind(functional)
        try:
            fault = _fault(way, x[: 2 if len(x) > 1 else 1], n_outputs)
        except Exception as error:  # what a layer raises where a derivative is missing is of any type
            fault = f"{type(error).__name__}: {error}".split("\n")[0]
        if not fault:
            return way
        faults.append(f"{kind.__name__}: {fault}")
    remedy = "use empirical_ntk or TiledKernel"
    raise ValueError(complaint("model", "one whose Jacobian can be multiplied", "; ".join(faults), remedy))


def _fault(way: Directional, x: Tensor, n_outputs: int) -> str:
    """Why not: J^T u against plain backward passes, and u . J w against (J^T u) . w; empty where both hold."""
    functional = way.functional
    tolerance = 1e-8 if functional.dtype == torch.float64 else 1e-3
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(2, len(x), n_outputs, generator=generator, dtype=torch.float64).to(x.device, functional.dtype)
    w = {
        name: torch.randn(2, *value.shape, generator=generator, dtype=torch.float64).to(value)
        for name, value in functional.params.items()
    }
    pulled, pushed = way.pull(x, u), way.push(x, w)
    expected = TwiceBackward(functional).pull(x, u)
    for name, value in expected.items():
        if not torch.isfinite(value).all():
            return f"a Jacobian that is not finite in {name!r}"
        if (pulled[name] - value).norm() > tolerance * value.norm() + torch.finfo(value.dtype).tiny:
            return f"J^T u off in parameter {name!r}"
    forward = torch.einsum("kbc,kbc->k", u, pushed)
    backward, scale = torch.zeros_like(forward), torch.zeros_like(forward)
    for name in w:
        left, right = expected[name].reshape(2, -1), w[name].reshape(2, -1)
        backward += (left * right).sum(1)
        scale += left.norm(dim=1) * right.norm(dim=1)
    return "" if bool(((forward - backward).abs() <= tolerance * scale).all()) else "J w off"
