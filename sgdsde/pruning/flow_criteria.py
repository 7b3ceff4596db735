"""Criteria that follow the paths through a network: SynFlow, and the exact loss of the path kernel's trace."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from sgdsde._checks import complaint, whole_number
from sgdsde._types import Params
from sgdsde.pruning.criteria import Criterion, Draw
from sgdsde.pruning.linear_pass import LinearPass, Rescaling, check_linear, check_used_once, linear_outputs, ones_input
from sgdsde.pruning.streamed_weights import FlowWeights, powered
from sgdsde.pruning.weights import Subject

SMALLEST, LARGEST = 1e-280, 1e280
"""Outputs outside of this range are computed again layer by layer rescaled."""


@dataclass(frozen=True)
class SynFlow(Criterion):
    """|w|^p dR_p/d(|w|^p), R_p = 1^T prod_l |W_l|^p x: the sum of |v|^p over the paths v through the weight.

    The pass is linear: activations and biases are left out (published codes keep them, which empties layers under
    tanh). Then the scores of every layer that all paths pass add up to R_p, and those into a neuron to those out of it.

    Args:
        n_rounds: a round must remove fewer weights than the smallest cut of the network has, else layers are emptied.
        power: p; 2 gives the sum of v^2, our reading of SynFlow-L2.
        example: None: ones, no data. A tensor of inputs [n, ...]: the mean of |x|^p over them. ``"data"``: that of the
            training set.
    Raises:
        ValueError: a layer without a linear pass; an input shape that nothing tells; a residual network so deep that R
            leaves the range of float64.
    Exactness: to rounding. In networks whose layers follow each other at any depth: there the layers are rescaled by
        powers of two when R leaves the range, which changes all scores by one factor.
    Cost: one forward and one backward pass of one example.
    Source: Tanaka et al., arXiv:2006.05467; Gebhart et al., arXiv:2101.10552.
    """

    n_rounds: int = 100
    power: int = 1
    example: Tensor | Literal["data"] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("power", self.power, minimum=1)
        if not (self.example is None or isinstance(self.example, Tensor) or self.example == "data"):
            raise ValueError(complaint("example", 'a tensor of inputs [n, ...], "data" or None', repr(self.example)))

    def __eq__(self, other: object) -> bool:
        """Whether both say the same; examples in tensors must be one and the same."""
        if not isinstance(other, SynFlow):
            return NotImplemented
        if (self.n_rounds, self.schedule, self.power) != (other.n_rounds, other.schedule, other.power):
            return False
        mine, theirs = self.example, other.example
        return mine is theirs or (isinstance(mine, str) and isinstance(theirs, str))

    def _score(self, subject: Subject, kept: Params, draw: Draw) -> Params:
        x = self._input(subject)
        if draw.round == 0:
            check_linear(subject, x)
        return flow_scores(subject, kept, x, self.power)

    def _input(self, subject: Subject) -> Tensor:
        if self.example is None:
            return ones_input(subject)
        if isinstance(self.example, Tensor):
            examples = self.example.double()
        else:
            examples, _ = subject.examples('SynFlow(example="data")', None)
        return (examples.abs() ** self.power).mean(0, keepdim=True)


def flow_scores(subject: Subject, kept: Params, x: Tensor, power: int) -> Params:
    """|w|^p dR_p/d(|w|^p) by name, up to one common power of two where R_p leaves the range of float64."""
    total, scores = _one_pass(subject, kept, x, LinearPass(power))
    if SMALLEST < total < LARGEST and all(bool(torch.isfinite(value.sum())) for value in scores.values()):
        return scores
    rescaled, scores = _one_pass(subject, kept, x, LinearPass(power, Rescaling()))
    sums = torch.stack([value.sum() for value in scores.values()])
    if rescaled == 0 or torch.allclose(sums, sums[0].expand_as(sums), rtol=1e-9, atol=0):
        return scores
    received = f"one of about {total:.3g}, in a network whose layers do not simply follow each other"
    raise ValueError(complaint("sum over paths", "within the range of float64", received, "use a smaller depth"))


def _one_pass(subject: Subject, kept: Params, x: Tensor, mode: LinearPass) -> tuple[float, Params]:
    weights = FlowWeights(subject, kept, mode.power)
    with torch.enable_grad(), weights.recomputed():
        total = linear_outputs(subject, weights, x, mode).sum()
    if total.requires_grad:
        total.backward()
    unused = {name: torch.zeros_like(subject.values(name)) for name in subject.weights if name not in weights.scores}
    scores = weights.scores | unused
    return float(total.detach()), {name: scores[name] for name in subject.weights}


def powered_weights(subject: Subject, kept: Params, power: int) -> Params:
    """|w|^p of the kept weights, zero elsewhere, float64 leaves by name."""
    return {name: powered(subject.values(name), kept[name], power).requires_grad_() for name in subject.weights}


@dataclass(frozen=True)
class PathKernelTrace(Criterion):
    """What the trace of the path kernel loses when the weight goes: g + a dT/da, a = w^2, g = dR_2/da, T = sum of g.

    T = Tr Pi is a polynomial of degree one in every a, so this is the loss itself and no approximation.
    Source: derived in docs/pruning.md; the path kernel: Gebhart et al., arXiv:2101.10552.
    Raises, Exactness: see ``SynFlow``; out of the range of float64 it is refused.
    Cost: two backward passes of one example.
    """

    n_rounds: int = 100

    def _score(self, subject: Subject, kept: Params, draw: Draw) -> Params:
        x = ones_input(subject)
        if draw.round == 0:
            check_linear(subject, x)
            check_used_once(subject, x)
        trace, slopes, leaves = path_kernel_slopes(subject, kept, x)
        with torch.enable_grad():
            second = torch.autograd.grad(trace, list(leaves.values()), allow_unused=True, materialize_grads=True)
        values = zip(leaves.items(), slopes, second)
        return {name: slope.detach() + leaf.detach() * more for (name, leaf), slope, more in values}


def path_kernel_slopes(subject: Subject, kept: Params, x: Tensor) -> tuple[Tensor, list[Tensor], Params]:
    """Tr Pi = sum of dR_2/d(w^2) over the kept weights, its terms, and the leaves w^2, all differentiable."""
    leaves = powered_weights(subject, kept, 2)
    with torch.enable_grad():
        total = linear_outputs(subject, leaves, x, LinearPass(2)).sum()
        slopes = torch.autograd.grad(
            total, list(leaves.values()), create_graph=True, allow_unused=True, materialize_grads=True
        )
        trace = sum(((slope * kept[name]).sum() for name, slope in zip(leaves, slopes)), torch.zeros_like(total))
    if not bool(torch.isfinite(trace)):
        raise ValueError(complaint("trace of the path kernel", "within the range of float64", float(trace)))
    return trace, list(slopes), leaves
