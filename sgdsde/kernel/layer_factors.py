"""Factors of the kernel of a block of examples: inputs of layers and gradients at their results, or Jacobians."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sgdsde._functional import FunctionalModel
from sgdsde._types import Params
from sgdsde.jacobian import jacobian
from sgdsde.kernel.flop_model import SMALL
from sgdsde.kernel.layers.capture import Observation
from sgdsde.kernel.layers.parameter_terms import Term, deltas_of, inputs_of, jacobian_of
from sgdsde.kernel.layers.structure import Structure
from sgdsde.kernel.memory_plan import KernelPlan


@dataclass(frozen=True, eq=False)
class Factor:
    """The part of a term that belongs to a block of examples.

    Attributes:
        term: None where this is a Jacobian, of one parameter or of several.
        x: inputs [b, T, q] (indices [b, T] of an embedding), or the Jacobian [b, c, p].
        deltas: gradients at the results [b, c, T, o] ([b, T, c, o] for the trace) where they depend on the example,
            [c, o] where they do not; None where they are the identity.
    """

    term: Term | None
    x: Tensor
    deltas: Tensor | None = None

    def narrow(self, start: int, stop: int) -> Factor:
        """Factors of the examples ``start`` to ``stop``, without a copy."""
        deltas = self.deltas
        if deltas is not None and deltas.ndim == 4:
            deltas = deltas[start:stop]
        return Factor(self.term, self.x[start:stop], deltas)


@dataclass(frozen=True, eq=False)
class Factors:
    """All factors of a block of examples that tiles of the kernel need, in the dtype of the result."""

    n_examples: int
    parts: tuple[Factor, ...]

    def narrow(self, start: int, stop: int) -> Factors:
        """Factors of the examples ``start`` to ``stop``, without a copy."""
        return Factors(min(stop, self.n_examples) - start, tuple(part.narrow(start, stop) for part in self.parts))


def factors(functional: FunctionalModel, x: Tensor, *, plan: KernelPlan, params: Params | None = None) -> Factors:
    """The factors of the examples x, [b, ...], to be used in any number of tiles.

    Args:
        params: the parameters that the plan was made for; default all of the model.
    Cost: one forward pass and c backward passes, ``plan.step`` examples at a time.
    """
    if plan.step >= len(x):
        return Factors(len(x), tuple(_parts(functional, x, plan, params)))
    held: list[Factor] = []
    for start in range(0, len(x), plan.step):
        # Nothing keeps the parts of a step while the next are made.
        _store(held, _parts(functional, x[start : start + plan.step], plan, params), start, len(x))
    return Factors(len(x), tuple(held))


def _store(held: list[Factor], parts: list[Factor], start: int, n: int) -> None:
    """Copy the factors of a few examples to their places among those of n."""
    if not held:
        held.extend(_enlarged(part, n) for part in parts)
    for whole, part in zip(held, parts):
        whole.x[start : start + len(part.x)] = part.x
        if whole.deltas is not None and part.deltas is not None and whole.deltas.ndim == 4:
            whole.deltas[start : start + len(part.x)] = part.deltas


def _enlarged(part: Factor, n: int) -> Factor:
    """Room for n examples in place of the few of a step."""
    deltas = part.deltas
    if deltas is not None and deltas.ndim == 4:
        deltas = deltas.new_empty(n, *deltas.shape[1:])
    return replace(part, x=part.x.new_empty(n, *part.x.shape[1:]), deltas=deltas)


def _parts(functional: FunctionalModel, x: Tensor, plan: KernelPlan, params: Params | None) -> list[Factor]:
    """The factors of a few examples; grams first, Jacobians after them, the small ones joined."""
    b, c = len(x), plan.n_outputs
    if plan.structure is None:
        blocks = jacobian(functional, x, params=params)
        return _joined([block.to(plan.dtype).view(b, c, -1) for block in blocks.values()])
    structure = plan.structure
    if not structure.terms:  # the outputs depend on none of the parameters
        return []
    seen = structure.observe(functional, x, torch.eye(c, dtype=functional.dtype, device=functional.device))
    grams, jacobians = [], []
    for term, layer in zip(structure.terms, plan.layers):
        if layer.way == "gram":
            grams.append(_gram_factor(term, structure, seen, plan))
            continue
        for part in term.parts(functional.params):
            jacobians.append(jacobian_of(part, structure.watched, seen, plan.dtype).reshape(b, c, -1))
    return grams + _joined(jacobians)


def _gram_factor(term: Term, structure: Structure, seen: Observation, plan: KernelPlan) -> Factor:
    x = inputs_of(term, structure.watched, seen, plan.dtype).contiguous()
    if term.delta == "identity":
        return Factor(term, x)
    deltas = deltas_of(term, structure.watched, seen, plan.dtype)
    if term.delta == "constant":
        return Factor(term, x, deltas[0, :, 0])
    return Factor(term, x, (deltas.transpose(1, 2) if plan.outputs == "trace" else deltas).contiguous())


def _joined(jacobians: list[Tensor]) -> list[Factor]:
    small = [jacobian for jacobian in jacobians if jacobian.shape[2] < SMALL]
    parts = [Factor(None, jacobian.contiguous()) for jacobian in jacobians if jacobian.shape[2] >= SMALL]
    return [*parts, Factor(None, torch.cat(small, 2))] if small else parts
