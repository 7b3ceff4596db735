"""Products with the Jacobian of a batch at any weights: J W^T and U J for rows W of weights and U of outputs.

By layers, y_t = W x_t + b, from inputs and gradients at the results, d_iat = df_a(x_i) / dy_t:

    (J w)_ia = sum over t of d_iat . (w x_it + w_b)        (u J) = sum over i, a, t of u_ia d_iat x_it^T

One pass through the network serves any number of directions, where derivatives along them take a pass each.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde._functional import FunctionalModel
from sgdsde._types import Params
from sgdsde.kernel.jacobian_products import Directional, directional
from sgdsde.kernel.layers.capture import Observation
from sgdsde.kernel.layers.parameter_terms import Term, deltas_of, inputs_of, jacobian_of
from sgdsde.kernel.layers.structure import Structure, structure_of

VECTORS, ROWS = 64, 256
"""Directions and examples of one pass of derivatives."""

NUMBERS = 2**23
"""Held between the two products of a layer."""


class JacobianProducts(ABC):
    """J of the examples x at some weights; rows of weights [k, p] are in the order of the model's parameters."""

    @abstractmethod
    def push(self, rows: Tensor) -> Tensor:
        """J W^T, [n*c, k]."""

    @abstractmethod
    def pull(self, cotangents: Tensor) -> Tensor:
        """U J, [k, p], for U [k, n*c]."""

    def trace(self) -> float | None:
        """|J|^2, the trace of the kernel of these examples, or None where it is not known."""
        return None


@dataclass(frozen=True, eq=False)
class NetworkJacobian:
    """J of a model at any weights and examples, by layers where its structure is known, by derivatives elsewhere.

    Attributes:
        structure: of the kernel, or None. derivatives: products one direction after the other, or None.
    """

    functional: FunctionalModel
    n_outputs: int
    structure: Structure | None
    derivatives: Directional | None = None

    @classmethod
    def of(cls, functional: FunctionalModel, x: Tensor, n_outputs: int) -> NetworkJacobian:
        """Raises ValueError where no way to multiply with J is right."""
        structure = structure_of(functional, functional.params, x, n_outputs)
        if structure is not None and structure.terms and not any(term.lookup for term in structure.terms):
            return cls(functional, n_outputs, structure)
        return cls(functional, n_outputs, None, directional(functional, x, n_outputs))

    def at(self, params: Params, x: Tensor) -> JacobianProducts:
        """Cost: by layers one forward and c backward passes."""
        functional = dataclasses.replace(self.functional, params=params)
        if self.structure is not None:
            return LayerProducts.of(functional, self.structure, x, self.n_outputs)
        assert self.derivatives is not None
        return DerivativeProducts(type(self.derivatives)(functional), x, self.n_outputs)


@dataclass(frozen=True, eq=False)
class DerivativeProducts(JacobianProducts):
    """Some directions and examples at a time."""

    derivatives: Directional
    x: Tensor
    n_outputs: int

    def push(self, rows: Tensor) -> Tensor:
        shapes = {name: value.shape for name, value in self.derivatives.functional.params.items()}
        slopes = []
        for some in rows.split(VECTORS):
            parts = some.split([shape.numel() for shape in shapes.values()], dim=1)
            directions = {name: part.reshape(-1, *shapes[name]) for name, part in zip(shapes, parts)}
            moved = torch.cat([self.derivatives.push(piece, directions) for piece in self.x.split(ROWS)], dim=1)
            slopes.append(moved.flatten(1))
        return torch.cat(slopes).mT

    def pull(self, cotangents: Tensor) -> Tensor:
        functional, n = self.derivatives.functional, len(self.x)
        rows = cotangents.new_zeros(len(cotangents), functional.n_params)
        for start in range(0, len(cotangents), VECTORS):
            some = cotangents[start : start + VECTORS].view(-1, n, self.n_outputs)
            for first in range(0, n, ROWS):
                pulled = self.derivatives.pull(self.x[first : first + ROWS], some[:, first : first + ROWS])
                flat = torch.cat([pulled[name].reshape(len(some), -1) for name in functional.params], dim=1)
                rows[start : start + VECTORS] += flat
        return rows


@dataclass(frozen=True, eq=False)
class LayerProducts(JacobianProducts):
    """From the factors of every term, all examples at once."""

    layers: tuple[Layer, ...]
    n_params: int

    @classmethod
    def of(cls, functional: FunctionalModel, structure: Structure, x: Tensor, n_outputs: int) -> LayerProducts:
        offsets, total = {}, 0
        for name, value in functional.params.items():
            offsets[name], total = total, total + value.numel()
        unit = torch.eye(n_outputs, dtype=functional.dtype, device=functional.device)
        blocks = [
            _layers(functional, structure, structure.observe(functional, piece, unit), offsets)
            for piece in x.split(ROWS)
        ]
        return cls(tuple(layer.joined(rest) for layer, *rest in zip(*blocks)), total)

    def push(self, rows: Tensor) -> Tensor:
        first, *rest = self.layers
        total = first.push(rows)
        for layer in rest:
            total = total + layer.push(rows)
        return total

    def pull(self, cotangents: Tensor) -> Tensor:
        rows = cotangents.new_zeros(len(cotangents), self.n_params)
        for layer in self.layers:
            layer.add_pull(cotangents, rows)
        return rows

    def trace(self) -> float:
        return sum(layer.trace() for layer in self.layers)


class Layer(ABC):
    """The part of J that belongs to one parameter, or to a weight and its bias."""

    @abstractmethod
    def joined(self, others: list[Layer]) -> Layer:
        """The same of these examples and further ones."""

    @abstractmethod
    def push(self, rows: Tensor) -> Tensor:
        """[n*c, k] for rows of all weights [k, p]."""

    @abstractmethod
    def add_pull(self, cotangents: Tensor, rows: Tensor) -> None:
        """Writes to the weights of this layer in rows [k, p]."""

    @abstractmethod
    def trace(self) -> float:
        """The sum of the squares of its entries."""


@dataclass(frozen=True, eq=False)
class ExplicitLayer(Layer):
    """The Jacobian of one parameter, [n*c, p'], at its place among the weights."""

    jacobian: Tensor
    place: slice

    def joined(self, others: list[Layer]) -> Layer:
        pieces = [self.jacobian, *(other.jacobian for other in others if isinstance(other, ExplicitLayer))]
        return dataclasses.replace(self, jacobian=torch.cat(pieces))

    def push(self, rows: Tensor) -> Tensor:
        return self.jacobian @ rows[:, self.place].mT

    def add_pull(self, cotangents: Tensor, rows: Tensor) -> None:
        rows[:, self.place] = cotangents @ self.jacobian

    def trace(self) -> float:
        return float(self.jacobian.square().sum())


@dataclass(frozen=True, eq=False)
class OuterLayer(Layer):
    """A matrix at T positions: inputs x [n, T, q], gradients at the results d [n, c, T, o].

    Attributes:
        flipped: the weight is [q, o] where a linear layer has [o, q]. bias: its place and scale, or None.
    """

    x: Tensor
    deltas: Tensor
    place: slice
    flipped: bool
    bias: tuple[slice, float] | None

    def joined(self, others: list[Layer]) -> Layer:
        more = [other for other in others if isinstance(other, OuterLayer)]
        x, deltas = (
            torch.cat([getattr(self, name), *(getattr(each, name) for each in more)]) for name in ("x", "deltas")
        )
        return dataclasses.replace(self, x=x, deltas=deltas)

    def push(self, rows: Tensor) -> Tensor:
        (n, _, places, o), q, k = self.deltas.shape, self.x.shape[-1], len(rows)
        weights = self._weights(rows[:, self.place], o, q)
        slopes = []
        at_once = max(1, NUMBERS // (k * places * o))
        for start in range(0, n, at_once):
            x, deltas = self.x[start : start + at_once], self.deltas[start : start + at_once]
            moved = (x.flatten(0, 1) @ weights.flatten(0, 1).mT).view(len(x), places, k, o)
            if places > 1:
                moved = moved.transpose(1, 2)
            slopes.append(deltas.flatten(2) @ moved.reshape(len(x), k, places * o).mT)
        total = torch.cat(slopes).flatten(0, 1)
        if self.bias is not None:
            place, scale = self.bias
            total = total + (scale * self.deltas.sum(2)).flatten(0, 1) @ rows[:, place].mT
        return total

    def add_pull(self, cotangents: Tensor, rows: Tensor) -> None:
        (n, c, places, o), q, k = self.deltas.shape, self.x.shape[-1], len(rows)
        weights = rows.new_zeros(k * o, q)
        at_once = max(1, NUMBERS // (k * places * o))
        by_example = cotangents.view(k, n, c).transpose(0, 1)
        for start in range(0, n, at_once):
            some = slice(start, start + at_once)
            x, drawn = self.x[some], by_example[some] @ self.deltas[some].flatten(2)  # [n, k, T o]
            drawn = drawn.view(len(x), k, places, o).permute(1, 3, 0, 2).reshape(k * o, -1)
            weights += drawn @ x.flatten(0, 1)
        weights = weights.view(k, o, q)
        rows[:, self.place] = (weights.mT if self.flipped else weights).reshape(k, -1)
        if self.bias is not None:
            place, scale = self.bias
            rows[:, place] = cotangents @ (scale * self.deltas.sum(2)).flatten(0, 1)

    def trace(self) -> float:
        inputs, deltas = (part @ part.mT for part in (self.x, self.deltas.transpose(1, 2).flatten(2)))
        total = float((inputs * deltas).sum())
        if self.bias is not None:
            total += self.bias[1] ** 2 * float(self.deltas.sum(2).square().sum())
        return total

    def _weights(self, rows: Tensor, o: int, q: int) -> Tensor:
        """[k, o, q]."""
        return rows.view(-1, q, o).mT if self.flipped else rows.view(-1, o, q)


def _layers(
    functional: FunctionalModel, structure: Structure, seen: Observation, offsets: dict[str, int]
) -> list[Layer]:
    layers: list[Layer] = []
    for term in structure.terms:
        if _is_outer(term, functional.n_outputs):
            layers.append(_outer_layer(functional, structure, seen, term, offsets))
            continue
        for part in term.parts(functional.params):
            jacobian = jacobian_of(part, structure.watched, seen, functional.dtype)
            flat = jacobian.reshape(jacobian.shape[0] * jacobian.shape[1], -1)
            layers.append(ExplicitLayer(flat, _place(functional, part.name, offsets)))
    return layers


def _is_outer(term: Term, n_outputs: int) -> bool:
    """Whether the factors are cheaper to multiply with than the Jacobian that they make: not at many positions."""
    q, places = term.width[0], term.positions
    return term.has_gram and (places == 1 or n_outputs * q > places * (n_outputs + q))


def _outer_layer(
    functional: FunctionalModel, structure: Structure, seen: Observation, term: Term, offsets: dict[str, int]
) -> OuterLayer:
    use = structure.watched.uses[term.uses[0]]
    assert use.weight is not None
    x = inputs_of(term, structure.watched, seen, functional.dtype)
    deltas = deltas_of(term, structure.watched, seen, functional.dtype).contiguous()
    bias = None
    if term.bias is not None:
        bias = _place(functional, term.bias, offsets), term.bias_scale
    place = _place(functional, term.name, offsets)
    return OuterLayer(x, deltas, place, use.flipped != use.weight.flipped, bias)


def _place(functional: FunctionalModel, name: str, offsets: dict[str, int]) -> slice:
    return slice(offsets[name], offsets[name] + functional.params[name].numel())
