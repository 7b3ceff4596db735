"""Memory and operations of a kernel, known before anything is allocated."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from sgdsde import _memory
from sgdsde._checks import complaint, word
from sgdsde._functional import FunctionalModel
from sgdsde._types import Params
from sgdsde.jacobian import ExampleBytes
from sgdsde.kernel.flop_model import (
    Demand,
    Job,
    LayerPlan,
    Outputs,
    jacobian_plan,
    layer_plan,
    network_operations,
    observation_bytes,
)
from sgdsde.kernel.hardware_rates import Rates
from sgdsde.kernel.layers.structure import Structure, structure_of

COMFORTABLE = 2**27
"""Bytes beyond which more examples at once make nothing faster."""

TILE_ROWS = 400
"""Rows of a tile: large enough for a matrix product at full rate, small enough for a cache."""

ALIGNED = 16
"""Rows come in multiples of this number, which the kernels of matrix products like."""


@dataclass(frozen=True)
class KernelPlan:
    """Memory and operations of a kernel, known before anything is allocated.

    Attributes:
        rows: examples a block, whose factors are held; two blocks at once where all examples are not one block.
        n_outputs, dtype, outputs: c, and dtype and kind of the result.
        n1, n2: examples; symmetric: only half is computed.
        step: examples that run through the network at once. tile: examples on a side of the tiles.
        structure: what the model is made of; None: plain Jacobians.
        layers: how each term is made.
        result_bytes: of the result. example_bytes: of the factors of one example. workspace_bytes: beside both.
        network: operations of the passes of one example through the network.
        rates: measured speeds, for ``seconds``; None until they are asked for.
    """

    rows: int
    n_outputs: int
    dtype: torch.dtype
    outputs: Outputs
    n1: int
    n2: int
    symmetric: bool
    step: int
    tile: int
    structure: Structure | None
    layers: tuple[LayerPlan, ...]
    result_bytes: int
    example_bytes: int
    workspace_bytes: int
    network: int
    rates: Rates | None = None

    @classmethod
    def make(
        cls,
        functional: FunctionalModel,
        params: Params,
        x1: Tensor,
        x2: Tensor | None,
        n_outputs: int,
        *,
        memory: int | None = None,
        dtype: torch.dtype | None = None,
        outputs: Outputs = "full",
        method: Literal["structured", "jacobian"] = "structured",
    ) -> KernelPlan:
        """The largest blocks that the budget allows; MemoryError when one example does not fit.

        Args:
            params: the parameters whose kernel it is, some or all of the model's. x2: None means x1.
            method: "jacobian" makes and multiplies plain Jacobians, the slow path that is right by construction.
        """
        word("outputs", outputs, ("full", "trace", "per_class"))
        word("method", method, ("structured", "jacobian"))
        dtype = _kernel_dtype(dtype)
        job = Job(len(x1), len(x1 if x2 is None else x2), x2 is None, n_outputs, outputs, dtype.itemsize)
        allowed = _memory.budget(memory, functional.device)
        structure = structure_of(functional, params, x1, n_outputs) if method == "structured" else None
        making = ExampleBytes.of(functional, params, x1[:1], n_outputs)
        if structure is None:
            layers = tuple(jacobian_plan(name, value.numel(), job) for name, value in params.items())
            demand = Demand.of(layers, making.held + making.making, job)
        else:
            layers = tuple(layer_plan(term, job) for term in structure.terms)
            itemsize = sum({dtype.itemsize, functional.dtype.itemsize})  # factors of another dtype stand beside them
            demand = Demand.of(layers, making.making + observation_bytes(structure, n_outputs, itemsize), job)
        result = job.n1 * job.n2 * job.entries * dtype.itemsize
        rows, step, tile, workspace = _sizes(allowed, result, demand, job)
        return cls(
            rows=rows,
            step=step,
            tile=tile,
            workspace_bytes=workspace,
            n_outputs=n_outputs,
            dtype=dtype,
            outputs=outputs,
            n1=job.n1,
            n2=job.n2,
            symmetric=job.symmetric,
            structure=structure,
            layers=layers,
            result_bytes=result,
            example_bytes=demand.held,
            network=0 if structure is None else network_operations(structure, n_outputs),
        )

    @property
    def made_examples(self) -> int:
        """Examples whose factors are made, counted again for each time that a block is made again."""
        if self.symmetric:
            return self.n1 + sum(self.n1 - stop for stop in range(self.rows, self.n1, self.rows))
        return self.n2 + self.n1 * -(-self.n2 // self.rows)

    @property
    def operations(self) -> int:
        """Multiplications and additions of all matrix products."""
        made = self.network + sum(layer.example_operations for layer in self.layers)
        return self.made_examples * made + sum(layer.tile_operations for layer in self.layers)

    @property
    def seconds(self) -> float | None:
        """Seconds of matrix products and passes over the tiles at the measured rates, the checks of the model aside."""
        if self.rates is None:
            return None
        network, entries = self.made_examples * self.network, sum(layer.entries for layer in self.layers)
        products = (self.operations - network) / self.rates.products
        return network / self.rates.network + products + entries / self.rates.entries

    def timed(self, functional: FunctionalModel) -> KernelPlan:
        """The plan with the speed of this machine, measured in a few hundredths of a second."""
        return replace(self, rates=Rates.measure(functional.dtype, self.dtype, functional.device))

    def __str__(self) -> str:
        return explained(self)

    @property
    def total_bytes(self) -> int:
        """Bytes of tensors alive at once, at most: result, factors, workspace."""
        return self.result_bytes + self.held_examples * self.example_bytes + self.workspace_bytes

    @property
    def held_examples(self) -> int:
        """Examples whose factors are alive at once."""
        if self.symmetric and self.rows >= self.n1:
            return self.n1
        return min(self.rows, self.n1) + min(self.rows, self.n2)


def _sizes(allowed: int, result: int, demand: Demand, job: Job) -> tuple[int, int, int, int]:
    """Rows, step, tile and workspace: as large as they should be and as they may be."""
    most, left = max(job.n1, job.n2), allowed - result
    share = max(left // 4, 1)
    step = _evenly(most, min(COMFORTABLE, share) // demand.observed)
    tile = min(most, _tile(job, most))
    while tile > 1 and tile * tile * demand.working > min(share, COMFORTABLE):
        tile = -(-tile // 2)
    for examples, side in ((step, tile), (1, 1)):
        workspace = max(examples * demand.observed, side * side * demand.working)
        if job.examples * demand.held <= left - workspace:
            return most, examples, side, workspace
        rows = (left - workspace) // max(2 * demand.held, 1)  # blocks, two at once
        if rows >= 1:
            rows = _evenly(most, rows)
            return rows, _evenly(rows, examples), min(side, rows), workspace
    raise MemoryError(_too_little(allowed, result, demand, job))


def _evenly(n: int, most: int) -> int:
    """The length of the fewest equal parts of n that are at most ``most`` (or 1) long."""
    most = max(1, min(n, most))
    return -(-n // -(-n // most))


def _tile(job: Job, most: int) -> int:
    """Examples on a side of a tile: a symmetric kernel saves half only when it has several tiles."""
    c = job.n_outputs if job.outputs == "full" else 1
    multiple = ALIGNED // math.gcd(ALIGNED, c)
    examples = min(-(-TILE_ROWS // c), -(-most // 2) if job.symmetric else most)
    return max(1, examples - examples % multiple if examples > multiple else examples)


def explained(plan: KernelPlan) -> str:
    """The plan in words and numbers, a line for each term."""
    kind = {"full": "all pairs of outputs", "trace": "summed over outputs", "per_class": "one block an output"}
    half = ", symmetric: half of it is computed" if plan.symmetric else ""
    name, seconds = str(plan.dtype).removeprefix("torch."), plan.seconds
    blocks = (-(-plan.n1 // plan.rows)) * (-(-plan.n2 // plan.rows))
    lines = [
        f"kernel of {plan.n1} x {plan.n2} examples with {plan.n_outputs} outputs, {kind[plan.outputs]}, {name}{half}",
        f"memory: {plan.total_bytes:,} bytes = result {plan.result_bytes:,} + factors of {plan.held_examples} examples "
        f"{plan.held_examples * plan.example_bytes:,} + workspace {plan.workspace_bytes:,}",
        f"blocks: {blocks} of at most {plan.rows} x {plan.rows} examples, in tiles of {plan.tile} x {plan.tile}; "
        f"{plan.step} examples at once through the network, {plan.made_examples} in all",
        f"{'operations':>12} {'bytes/example':>14}  how                     parameters",
    ]
    names = {"gram": "inputs and gradients", "jacobian": "Jacobian"}
    for layer in plan.layers:
        count = layer.tile_operations + plan.made_examples * layer.example_operations
        lines.append(f"{count:12.3g} {layer.held:14,}  {names[layer.way]:22}  {layer.label}")
    lines.append(f"{plan.made_examples * plan.network:12.3g} {'':14}  passes through the network")
    lines.append(f"{plan.operations:12.3g} {plan.example_bytes:14,}  in all")
    if plan.rates is not None and seconds is not None:
        lines.append(f"expected: {seconds:.3g} s at {plan.rates}")
    return "\n".join(lines)


def _too_little(allowed: int, result: int, demand: Demand, job: Job) -> str:
    needed = 2 * demand.held + max(demand.observed, demand.working)
    remedy = f"the kernel takes {result:,} and two examples with {job.n_outputs} outputs {needed:,}; raise it"
    if result > allowed:
        remedy += ", or use sgdsde.kernel.TiledKernel (on disk) or ImplicitKernel (never formed)"
    return complaint("memory", f"at least {result + needed:,} bytes", f"{allowed:,}", remedy)


def _kernel_dtype(dtype: torch.dtype | None) -> torch.dtype:
    if dtype not in (None, torch.float64, torch.float32):
        raise ValueError(complaint("dtype", "torch.float64 or torch.float32", dtype))
    return dtype or torch.float64
