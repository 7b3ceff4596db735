"""Neural tangent transfer: a sparse network that mimics outputs and tangent kernel of a dense one, without labels.

    mean (f_S - f_T)^2 + gamma mean (K_S(x1, x2) - K_T(x1, x2))^2 + (l2 / density) |W_S|^2

over batches whose halves are x1 and x2, all pairs of outputs; the teacher T is the dense network at initialization and
the student S starts there. Masks are the largest weights of each layer, redrawn on the way.

Source: Liu and Zenke, arXiv:2006.08228.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import jacrev

from sgdsde._checks import complaint, fraction, nonnegative_number, positive_number, whole_number
from sgdsde._functional import FunctionalModel, vectorize
from sgdsde._progress import ticker
from sgdsde._streams import numpy_stream
from sgdsde._types import Params, Progress
from sgdsde.problem import Problem
from sgdsde.pruning.masks import Masks
from sgdsde.pruning.network import PrunedNetwork, owned_copy
from sgdsde.pruning.selection import keep_largest
from sgdsde.pruning.weights import Subject

TEST_EXAMPLES = 32
"""Examples of the distances reported, those of the test set where there is one."""


@dataclass(frozen=True, eq=False)
class TransferHistory:
    """How close the student came, on examples that were not trained on where the problem has a test set.

    Attributes:
        steps: int64 [T]. output_distance: mean (f_S - f_T)^2, [T]. kernel_distance: mean (K_S - K_T)^2, [T].
        gamma: as used. masks: those at the end.
        has_converged: whether both distances changed by less than a tenth over the last quarter.
    """

    steps: Tensor
    output_distance: Tensor
    kernel_distance: Tensor
    gamma: float
    masks: Masks

    @property
    def has_converged(self) -> bool:
        """Whether the curves changed by less than 10 % over the last quarter of the steps."""
        start = 3 * len(self.steps) // 4 - 1
        return all(
            abs(float(curve[-1] / curve[max(start, 0)]) - 1) < 0.1
            for curve in (self.output_distance, self.kernel_distance)
        )


def transfer(
    problem: Problem,
    density: float,
    *,
    n_steps: int = 1500,
    batch_size: int = 64,
    lr: float = 5e-4,
    gamma: float | None = 1e-3,
    l2: float = 1e-4,
    redraw: int = 100,
    all_columns: bool = False,
    seed: int = 0,
    progress: Progress = None,
) -> tuple[PrunedNetwork, TransferHistory]:
    """A sparse network whose outputs and kernel are those of the dense one, and how close it came.

    Args:
        problem: the dense network and inputs; targets and loss are not looked at.
        density: kept share of every prunable weight, in (0, 1].
        n_steps, batch_size, lr: of Adam; the batch is cut in two halves.
        gamma: weight of the kernel term; None: so that it starts at five times the output term.
        l2: weight of |W_S|^2 / density.
        redraw: steps between two choices of masks; the last is kept for one such period at least.
        all_columns: differentiate the student's kernel by removed weights too, as the published code does; ours, the
            default, is the kernel that training of the sparse network has.
    Returns:
        The ``PrunedNetwork`` and a ``TransferHistory``.
    Exactness: none is promised; read ``has_converged`` and both distances. Gradients pass through the mask, the choice
        of the mask is not differentiated.
    Cost: per step two Jacobians of half a batch and a backward pass through them.
    """
    density, n_steps = _share(density), whole_number("n_steps", n_steps, minimum=1)
    lr, l2 = positive_number("lr", lr), nonnegative_number("l2", l2)
    redraw = whole_number("redraw", redraw, minimum=1)
    batch_size = whole_number("batch_size", batch_size, minimum=2, remedy="the batch is cut in two halves")
    batch_size = min(batch_size, problem.n_train)
    pair = _Pair.of(problem, all_columns)
    masks = pair.drawn(density)
    checked = (problem.x_train if problem.x_test is None else problem.x_test)[:TEST_EXAMPLES]
    at_start = pair.distances(masks, checked)
    if gamma is None:
        gamma = 5 * at_start[0] / at_start[1] if at_start[1] > 0 else 0.0
    gamma = nonnegative_number("gamma", gamma)
    optimizer = torch.optim.Adam(list(pair.student.values()), lr=lr)
    stream = numpy_stream(whole_number("seed", seed), "neural tangent transfer", 0)
    record = {0: at_start}
    ticks = ticker(progress, n_steps, "neural tangent transfer")
    for step in range(1, n_steps + 1):
        chosen = torch.from_numpy(stream.permutation(problem.n_train)[:batch_size]).to(problem.device)
        optimizer.zero_grad()
        outputs, kernel = pair.terms(masks, problem.x_train[chosen])
        size = sum((pair.student[name] * mask).square().sum() for name, mask in masks.items())
        (outputs + gamma * kernel + l2 / density * size).backward()
        optimizer.step()
        if step % redraw == 0 and step <= n_steps - redraw:
            masks = pair.drawn(density)
        if step % max(n_steps // 40, 1) == 0 or step == n_steps:
            record[step] = pair.distances(masks, checked)
        ticks.update(1)
    ticks.close()
    return pair.result(problem, masks, record, gamma)


def _share(density: float) -> float:
    if fraction("density", density) == 0:
        raise ValueError(complaint("density", "in (0, 1]", density))
    return float(density)


@dataclass(frozen=True, eq=False)
class _Pair:
    """The dense teacher, constant, and the weights of the student."""

    functional: FunctionalModel
    teacher: Params
    student: Params
    network: nn.Module
    prunable: tuple[str, ...]
    all_columns: bool

    @classmethod
    def of(cls, problem: Problem, all_columns: bool) -> _Pair:
        subject = Subject.of(problem)
        if not all(bool(kept.all()) for kept in subject.kept.values()):
            raise ValueError(complaint("problem", "that of a dense network", "a pruned one", "pass the dense Problem"))
        teacher = {name: value.detach().clone() for name, value in problem.params.items()}
        student = {name: value.clone().requires_grad_() for name, value in teacher.items()}
        return cls(problem.functional, teacher, student, subject.module, tuple(subject.weights), all_columns)

    def drawn(self, density: float) -> Params:
        """The largest weights of every layer, as they are now."""
        scores = {name: self.student[name].detach().abs().double() for name in self.prunable}
        everything = {name: torch.ones_like(value, dtype=torch.bool) for name, value in scores.items()}
        return keep_largest(scores, everything, density, "layer")

    def terms(self, masks: Params, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both distances on a batch, differentiable in the student's weights."""
        half = len(x) // 2
        outputs = (self.functional.forward(self._masked(masks, self.student), x) - self._dense_outputs(x)).square()
        student = self._kernel(self.student, masks, x[:half], x[half:])
        teacher = self._kernel(self.teacher, {}, x[:half], x[half:]).detach()
        return outputs.mean(), (student - teacher).square().mean()

    def distances(self, masks: Params, x: Tensor) -> tuple[float, float]:
        outputs, kernel = self.terms(masks, x)
        return float(outputs.detach()), float(kernel.detach())

    def _dense_outputs(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.functional.forward(self.teacher, x)

    @staticmethod
    def _masked(masks: Params, params: Params) -> Params:
        return {name: value * masks[name] if name in masks else value for name, value in params.items()}

    def _kernel(self, params: Params, masks: Params, x1: Tensor, x2: Tensor) -> Tensor:
        """[n1, c, n2, c], through the masks or, with ``all_columns``, at the sparse point."""
        point = self._masked(masks, params) if self.all_columns else params
        inside = {} if self.all_columns else masks

        def outputs(values: Params, example: Tensor) -> Tensor:
            return self.functional.forward(self._masked(inside, values), example[None])[0]

        jacobian = vectorize(jacrev(outputs), (None, 0))
        first, second = jacobian(point, x1), jacobian(point, x2)
        blocks = [torch.tensordot(first[name].flatten(2), second[name].flatten(2), ([2], [2])) for name in params]
        return torch.stack(blocks).sum(0)

    def result(
        self, problem: Problem, masks: Params, record: dict[int, tuple[float, float]], gamma: float
    ) -> tuple[PrunedNetwork, TransferHistory]:
        network = owned_copy(self.network)
        with torch.no_grad():
            for name, value in network.named_parameters():
                if name in self.student:
                    value.copy_(self.student[name])
                value.requires_grad_(name in problem.params)
        made = Masks(masks).with_paths_of(network)
        curves = torch.tensor(list(record.values()), dtype=torch.float64)
        history = TransferHistory(torch.tensor(list(record)), curves[:, 0], curves[:, 1], gamma, made)
        return PrunedNetwork(network, masks), history
