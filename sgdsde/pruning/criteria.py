"""Criteria that need no data: what a weight is worth, and the frame that all criteria share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor, nn

from sgdsde._checks import complaint, whole_number, word
from sgdsde._streams import numpy_stream, torch_stream
from sgdsde._types import Params
from sgdsde.problem import Problem
from sgdsde.pruning.masks import Masks
from sgdsde.pruning.selection import Schedule
from sgdsde.pruning.weights import Subject, Where, same_shapes


@dataclass(frozen=True)
class Draw:
    """What a criterion may depend on besides the network: the seed, the round 0, 1, ..., and how many examples."""

    seed: int = 0
    round: int = 0
    n_examples: int | None = None

    def indices(self, n_train: int) -> Tensor | None:
        """Training examples to score with, drawn without replacement; None: all of them."""
        if self.n_examples is None or self.n_examples >= n_train:
            return None
        order = numpy_stream(self.seed, "pruning examples", 0).permutation(n_train)
        return torch.from_numpy(order[: self.n_examples]).sort().values


@dataclass(frozen=True)
class Criterion(ABC):
    """A score for every prunable weight, the largest to be kept; abstract.

    Args:
        n_rounds: rounds of scoring and removing. schedule: density after round k of n, ``"exponential"`` d^(k/n) or
            ``"linear"`` 1 - (1 - d) k/n.
    """

    _: KW_ONLY
    n_rounds: int = 1
    schedule: Schedule = "exponential"
    needs_data: ClassVar[bool] = False

    def __post_init__(self) -> None:
        whole_number("n_rounds", self.n_rounds, minimum=1)
        word("schedule", self.schedule, get_args(Schedule))

    def scores(
        self,
        problem_or_model: Problem | nn.Module,
        masks: Masks | None = None,
        *,
        where: Where = None,
        n_examples: int | None = None,
        seed: int = 0,
    ) -> Params:
        """Float64 scores by parameter name, of the weights as they are; -inf for those that are removed already.

        Args:
            masks: removed weights, which are zero in the forward pass; those of the model itself count too.
            where: keeps weights by name. n_examples: of the training set, drawn by ``seed``; None: all.
        Raises:
            TypeError: a criterion that needs data asked of a bare model. ValueError: masks of another model; scores
                that are not numbers.
        Cost: one pass in float64 (criteria with data: of all examples); the model itself stays as it is.
        """
        subject = Subject.of(problem_or_model, where)
        kept = dict(subject.kept)
        if masks is not None:
            same_shapes(dict(masks), subject.weights)
            kept |= {name: kept[name] & mask.to(kept[name].device) for name, mask in masks.items()}
        found = self.score_subject(subject, kept, Draw(whole_number("seed", seed), 0, n_examples))
        return {name: torch.where(kept[name], value, -math.inf) for name, value in found.items()}

    def score_subject(self, subject: Subject, kept: Params, draw: Draw) -> Params:
        """The scores of one round, checked; those of removed weights mean nothing."""
        if self.needs_data and subject.problem is None:
            subject.examples(type(self).__name__, None)
        found = self._score(subject, kept, draw)
        for name, value in found.items():
            if not torch.isfinite(value.sum()) and not torch.isfinite(value[kept[name]]).all():
                remedy = "check that the loss and its gradient are finite at the initial weights"
                received = f"NaN or infinite ones in {name!r}"
                raise ValueError(complaint(f"scores of {type(self).__name__}", "finite", received, remedy))
        return found

    @abstractmethod
    def _score(self, subject: Subject, kept: Params, draw: Draw) -> Params:
        """Float64 scores by name at the weights of which ``kept`` is left."""


@dataclass(frozen=True)
class Random(Criterion):
    """Uniform numbers from a stream of their own: masks never share draws with weights of the same seed."""

    def _score(self, subject: Subject, kept: Params, draw: Draw) -> Params:
        found = {}
        for index, (name, weight) in enumerate(subject.weights.items()):
            stream = torch_stream(draw.seed, f"pruning at random, round {draw.round}", index, torch.device("cpu"))
            values = torch.rand(weight.shape, dtype=torch.float64, generator=stream)
            found[name] = values.to(kept[name].device)
        return found


@dataclass(frozen=True)
class Magnitude(Criterion):
    """|w| as the forward pass sees it: with the factor sigma_w / sqrt(fan_in) of ``parametrization="ntk"``.

    Over the whole network the layers of widest fan-in are emptied first.
    Source: Han et al., arXiv:1506.02626, at initialization.
    """

    def _score(self, subject: Subject, kept: Params, draw: Draw) -> Params:
        return {name: subject.effective(name) for name in subject.weights}
