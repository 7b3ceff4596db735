"""Cross-entropy of logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde._checks import complaint, finite_entries
from sgdsde.losses.base import Loss, largest_entries


def _several(targets: Tensor, n_outputs: int) -> str:
    """What to do about several class indices an example."""
    count = targets[0].numel()
    if count == 1:
        return "use .flatten()"
    classes = n_outputs // count
    if classes < 2 or n_outputs % count:
        return f"for {count} indices an example the model needs as many outputs for each of them, flattened"
    return (
        f"for {count} of {classes} classes an example use loss=lambda f, y: F.cross_entropy(f.view(-1, {classes}), "
        f"y.flatten()) on flattened outputs [n, {count}, {classes}], or loss=lambda f, y: "
        f"F.cross_entropy(f.view(len(f), {classes}, -1), y.flatten(1)) where they are [n, {classes}, ...]"
    )


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """-sum_a q_a log softmax(f)_a, q the smoothed one-hot target or the given probabilities."""

    label_smoothing: float = 0.0

    def probabilities(self, targets: Tensor, outputs: Tensor) -> Tensor:
        """The target distribution [..., n, c]."""
        if not targets.is_floating_point():
            # By comparison: torch's one_hot looks at the values and cannot be vectorized over runs.
            classes = torch.arange(outputs.shape[-1], device=targets.device)
            targets = (targets[..., None] == classes).to(outputs.dtype)
        return targets * (1 - self.label_smoothing) + self.label_smoothing / outputs.shape[-1]

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return -(self.probabilities(targets, outputs) * outputs.log_softmax(-1)).sum(-1)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        distribution = self.probabilities(targets, outputs)
        return outputs.softmax(-1) * distribution.sum(-1, keepdim=True) - distribution

    def hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        chances = outputs.softmax(-1)
        covariance = chances.diag_embed() - chances[..., :, None] * chances[..., None, :]
        return covariance * self.probabilities(targets, outputs).sum(-1)[..., None, None]

    def averages(self, outputs: Tensor, weights: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From one softmax: with P_i the probabilities, E G_i = s (diag E P_i - E P_i P_i^T), s = sum_a q_a."""
        distribution = self.probabilities(targets, outputs)
        total = distribution.sum(-1, keepdim=True)
        chances = outputs.permute(1, 2, 0).softmax(1)
        weighted = chances * weights
        mean = weighted.sum(2)
        hessian = (mean.diag_embed() - weighted @ chances.mT) * total[..., None]
        gradient = chances.mul_(total[..., None]).sub_(distribution[..., None])
        return mean * total - distribution, hessian, (gradient * weights) @ gradient.mT

    def check_targets(self, name: str, targets: Tensor, outputs: Tensor) -> Tensor:
        c = outputs.shape[1]
        if targets.is_complex() or targets.dtype == torch.bool:
            raise TypeError(complaint(name, "int64 class indices or probabilities", targets.dtype))
        if targets.is_floating_point():
            if targets.ndim != 2 or targets.shape[1] != c:
                remedy = "for class indices use .long()"
                raise ValueError(complaint(name, f"class probabilities [n, {c}]", list(targets.shape), remedy))
            finite_entries(name, targets)
            if targets.min() < 0 or (targets.sum(1) - 1).abs().max() > 1e-3:
                raise ValueError(complaint(name, "probabilities that add up to 1", "other numbers"))
            return targets.to(outputs.dtype)
        if targets.ndim != 1:
            raise ValueError(complaint(name, "class indices [n]", list(targets.shape), _several(targets, c)))
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= c:
            raise ValueError(complaint(name, f"class indices in [0, {c})", f"values in [{low}, {high}]"))
        return targets.long()

    def labels(self, name: str, targets: Tensor, n_outputs: int) -> Tensor:
        return largest_entries(name, targets) if targets.is_floating_point() else targets
