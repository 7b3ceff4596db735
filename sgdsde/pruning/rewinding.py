"""Iterative magnitude pruning with rewinding: train, remove the smallest, start again from the initial weights."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch

from sgdsde._checks import complaint, whole_number
from sgdsde._types import Params
from sgdsde.pruning.criteria import Criterion, Draw
from sgdsde.pruning.network import PrunedNetwork, owned_copy
from sgdsde.pruning.weights import Subject
from sgdsde.sampling import PADDING, batch_indices
from sgdsde.sgd import SGD, check_sgd


@dataclass(frozen=True)
class IterativeMagnitude(Criterion):
    """|w| after training, in rounds; each round starts from the initial weights that are left.

    Args:
        sgd: how each round is trained, label noise excepted. n_steps: updates a round; 0 is iterated ``Magnitude``.
    Raises:
        ValueError: training that diverges.
    Cost: ``n_rounds`` trainings, in the model's dtype.
    Source: Frankle and Carbin, arXiv:1803.03635.
    """

    sgd: SGD
    n_steps: int
    _: KW_ONLY
    n_rounds: int = 10
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sgd(self.sgd)
        whole_number("n_steps", self.n_steps)
        if self.sgd.label_noise_std:
            raise ValueError(complaint("sgd", "without label noise", f"label_noise_std={self.sgd.label_noise_std}"))

    def _score(self, subject: Subject, kept: Params, draw: Draw) -> Params:
        trained = PrunedNetwork(owned_copy(subject.module), kept)
        trainable = set(subject.problem.params) if subject.problem is not None else set()
        for name, value in trained.network.named_parameters():
            value.requires_grad_(name in trainable or f"network.{name}" in trainable)
        self._train(trained, subject, draw)
        after = Subject.of(trained, lambda name: name in subject.weights)
        return {name: after.effective(name) for name in subject.weights}

    def _train(self, network: PrunedNetwork, subject: Subject, draw: Draw) -> None:
        problem, sgd = subject.problem, self.sgd
        assert problem is not None
        chosen = draw.indices(problem.n_train)
        x = problem.x_train if chosen is None else problem.x_train[chosen.to(problem.device)]
        y = problem.y_train if chosen is None else problem.y_train[chosen.to(problem.device)]
        words = {"momentum": sgd.momentum, "dampening": sgd.dampening, "nesterov": sgd.nesterov}
        params = [value for value in network.parameters() if value.requires_grad]
        optimizer = torch.optim.SGD(params, lr=sgd.lr_at(0), weight_decay=sgd.weight_decay, **words)  # type: ignore[arg-type]
        batches = batch_indices(sgd, len(x), self.n_steps, seed=draw.seed, run=0)
        for step, batch in enumerate(batches):
            batch = batch[batch != PADDING].to(problem.device)
            optimizer.param_groups[0]["lr"] = sgd.lr_at(step)
            optimizer.zero_grad()
            with torch.enable_grad():
                loss = problem.criterion.mean(network(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
        if not all(bool(torch.isfinite(value.sum())) for value in params):
            received = f"weights that are not finite after {self.n_steps} steps at lr={sgd.lr_at(0):g}"
            raise ValueError(complaint("sgd", "stable on the pruned network", received, "use a smaller lr"))
