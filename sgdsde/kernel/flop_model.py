"""Operations and bytes of each term of a kernel, in both ways, counted."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from sgdsde.kernel.layers.parameter_terms import Term, Way
from sgdsde.kernel.layers.structure import Structure

Outputs: TypeAlias = Literal["full", "trace", "per_class"]
"""Entries of K[(i,a),(j,b)]: all [n1*c, n2*c], summed over a = b [n1, n2], or those with a = b [c, n1, n2]."""

ENTRY = 16
"""Operations of a matrix product that take as long as reading and writing one number, about, on CPU cores."""


SMALL = 1024
"""Columns up to which the Jacobians of several parameters are joined, to be multiplied as one matrix."""


@dataclass(frozen=True)
class Job:
    """Size of a kernel: examples on both sides (the same ones when symmetric), outputs, bytes a number."""

    n1: int
    n2: int
    symmetric: bool
    n_outputs: int
    outputs: Outputs
    itemsize: int

    @property
    def pairs(self) -> int:
        """Pairs of examples that are computed."""
        return self.n1 * (self.n1 + 1) // 2 if self.symmetric else self.n1 * self.n2

    @property
    def examples(self) -> int:
        return self.n1 if self.symmetric else self.n1 + self.n2

    @property
    def entries(self) -> int:
        """Numbers that a pair of examples has in the result."""
        return {"full": self.n_outputs**2, "trace": 1, "per_class": self.n_outputs}[self.outputs]


@dataclass(frozen=True)
class LayerPlan:
    """One term of a kernel as it will be made.

    Attributes:
        label: its parameters. way: how it is contracted.
        tile_operations: multiplications and additions of the products between examples, all pairs together.
        example_operations: of the products that make the factors of one example.
        entries: numbers that are read and written one by one, all pairs together.
        held: bytes of its factors for one example. working: bytes that a tile takes for one pair of examples.
    """

    label: str
    way: Way
    tile_operations: int
    example_operations: int
    entries: int
    held: int
    working: int


def layer_plan(term: Term, job: Job) -> LayerPlan:
    """The cheaper of the two ways, by counted operations."""
    ways = [_by_jacobian(term, job)]
    if term.has_gram:
        ways.append(_by_gram(term, job))

    def cost(plan: LayerPlan) -> int:
        numbers = plan.entries + (job.examples * plan.held // job.itemsize)
        return plan.tile_operations + job.examples * plan.example_operations + ENTRY * numbers

    return min(ways, key=cost)


def jacobian_plan(label: str, size: int, job: Job) -> LayerPlan:
    """Plan for Jacobians with ``size`` columns that are there already."""
    c = job.n_outputs
    pair = 2 * (c * c if job.outputs == "full" else c) * size
    return LayerPlan(label, "jacobian", job.pairs * pair, 0, 0, c * size * job.itemsize, 0)


def _by_jacobian(term: Term, job: Job) -> LayerPlan:
    example = 2 * job.n_outputs * term.positions * term.width[0] * term.width[1]
    return replace(jacobian_plan(term.label, term.size, job), example_operations=example)


def _by_gram(term: Term, job: Job) -> LayerPlan:
    (q, o), places, c = term.width, term.positions, job.n_outputs
    inputs = places**2 * (1 if term.lookup else 2 * q)
    mixed = job.outputs == "full" and c > 1
    if term.delta != "any":
        deltas, held, working = 0, 0, 1
    elif places == 1:
        deltas, held, working = 2 * (c * c if mixed else c) * o, c * o, 1 + job.entries
    elif mixed:
        deltas, held = 2 * places**2 * c * o + 2 * c * c * places * o, c * places * o
        working = 2 * places**2 + 2 * places * c * o + c * c
    else:
        deltas, held, working = 2 * places**2 * c * o, c * places * o, 3 * places**2
    sizes = (places * (1 if term.lookup else q) + held) * job.itemsize
    entries = job.pairs * max(working, job.entries)
    return LayerPlan(term.label, "gram", job.pairs * (inputs + deltas), 0, entries, sizes, working * job.itemsize)


def network_operations(structure: Structure, n_outputs: int) -> int:
    """Operations of a forward and c backward passes to the inputs of all layers but the first, for one example."""
    passes = []
    for use in structure.watched.uses:
        if use.kind in ("matrix", "convolution") and use.weight is not None:
            q, o = use.width
            passes.append(2 * use.positions * q * o * use.groups)
    return sum(passes) + n_outputs * sum(passes[1:])


@dataclass(frozen=True)
class Demand:
    """Bytes: held and observed of an example, as factors and while these are made; working of a pair in a tile."""

    held: int
    observed: int
    working: int

    @classmethod
    def of(cls, layers: tuple[LayerPlan, ...], observed: int, job: Job) -> Demand:
        """Jacobians of a few examples are made beside the place where they are held, and small ones joined there."""
        jacobians = [layer.held for layer in layers if layer.way == "jacobian"]
        small = SMALL * job.n_outputs * job.itemsize
        copies = sum(jacobians) + sum(held for held in jacobians if held < small)
        working = max((layer.working for layer in layers), default=0)
        return cls(sum(layer.held for layer in layers), observed + copies, working)


def observation_bytes(structure: Structure, n_outputs: int, itemsize: int) -> int:
    """Bytes kept of one example while its factors are made: inputs, gradients, patches, one converted copy.

    Args:
        itemsize: of a number, in all dtypes that it is held in together.
    """
    uses = structure.watched.uses
    inputs = [math.prod(use.inputs) for use in uses]
    deltas = [n_outputs * math.prod(use.outputs) for use in uses]
    patches = [2 * use.positions * use.groups * use.width[0] for use in uses if use.geometry is not None and use.weight]
    return itemsize * (sum(inputs) + sum(deltas) + max(deltas, default=0) + max(patches, default=0))
