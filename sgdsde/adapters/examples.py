"""The examples behind a ``DataLoader``, in the order of its data set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sgdsde._checks import complaint
from sgdsde.adapters.sampler import check_covers, checked_loader

BLOCK = 256
"""Examples fetched and collated together."""


def examples_of_loaders(model: Any, train_loader: object, test_loader: object = None) -> dict[str, Tensor]:
    """x_train, y_train and perhaps x_test, y_test, the keywords of ``Problem``, on the model's device.

    Floating-point arrays take the model's dtype, integer targets become int64; integer inputs stay as they are.

    Raises:
        TypeError: no loaders, or batches that are no pairs of tensors. ValueError: a loader that leaves examples out; a
            data set that returns an example differently the second time, naming it; a collate function that mixes
            examples or is random.
    Cost: fetches every example twice, in this process.
    """
    like = _first_parameter(model)
    found: dict[str, Tensor] = {}
    for side, loader in (("train", train_loader), ("test", test_loader)):
        if side == "train" or loader is not None:
            x, y = _Source(f"{side}_loader", loader).examples()
            found[f"x_{side}"] = _moved(x, like)
            found[f"y_{side}"] = _moved(y if y.is_floating_point() or y.is_complex() else y.long(), like)
    return found


class _Source:
    """One loader's data set and collate function."""

    def __init__(self, name: str, loader: Any) -> None:
        self.name = name
        self.dataset, batches = checked_loader(name, loader)
        self.collate_fn = loader.collate_fn
        if len(self.dataset) == 0:
            raise ValueError(complaint(f"{name}.dataset", "non-empty", "no examples"))
        check_covers(name, batches.sampler, len(self.dataset))

    def examples(self) -> tuple[Tensor, Tensor]:
        """All inputs and targets, each example fetched twice."""
        n = len(self.dataset)
        parts = [self._block(range(start, min(start + BLOCK, n))) for start in range(0, n, BLOCK)]
        for what, tensors in zip(("x", "y"), zip(*parts)):
            shapes = sorted({tuple(tensor.shape[1:]) for tensor in tensors})
            if len(shapes) > 1:
                received = f"{what} of shapes {', '.join(str(list(shape)) for shape in shapes)}"
                raise ValueError(complaint(f"{self.name}.dataset", "examples of one shape", received))
        return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])

    def _block(self, indices: range) -> tuple[Tensor, Tensor]:
        raw = self._fetch(indices)
        block = self._collate(raw)
        if _difference(block, self._collate(raw)) is not None:
            remedy = "use the loader's default collate_fn: a random one is an augmentation"
            received = "two different batches of the same examples"
            raise ValueError(complaint(f"{self.name}.collate_fn", "deterministic", received, remedy))
        again = self._fetch(indices)
        row = _difference(block, self._collate(again))
        if row is not None:
            received = f"another example {indices[row]} when fetched a second time"
            remedy = "remove random augmentation: the theory needs a fixed training set"
            raise ValueError(complaint(f"{self.name}.dataset", "the same at each access", received, remedy))
        alone = [self._collate([example]) for example in again]
        single = [part[0].shape[1:] == block[0].shape[1:] and part[1].shape[1:] == block[1].shape[1:] for part in alone]
        row = single.index(False) if not all(single) else _difference(block, _joined(alone))
        if row is not None:
            received = f"a batch in which example {indices[row]} is not what it is alone"
            remedy = "use the loader's default collate_fn, and pad examples in the data set"
            raise ValueError(complaint(f"{self.name}.collate_fn", "one that stacks examples", received, remedy))
        return block

    def _fetch(self, indices: range) -> list[Any]:
        # As torch's own fetcher does.
        if getattr(self.dataset, "__getitems__", None):
            return list(self.dataset.__getitems__(list(indices)))
        return [self.dataset[i] for i in indices]

    def _collate(self, raw: list[Any]) -> tuple[Tensor, Tensor]:
        batch = self.collate_fn(raw)
        fits = isinstance(batch, tuple | list) and len(batch) == 2
        if not fits or not all(isinstance(part, Tensor) and part.ndim and len(part) == len(raw) for part in batch):
            remedy = "return pairs (x, y) from the data set, several inputs joined in x and split again in forward"
            raise TypeError(complaint(f"{self.name}'s batches", "pairs of tensors (x, y)", _described(batch), remedy))
        return batch[0], batch[1]


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def _difference(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> int | None:
    """The first row in which two pairs of tensors differ (NaN equals NaN), or None."""
    rows: list[int] = []
    for one, other in zip(first, second):
        if one.shape != other.shape or one.dtype != other.dtype:
            return 0
        differs = (one != other) & ~((one != one) & (other != other))
        rows += (
            differs.flatten(1).any(1).nonzero()[:1, 0].tolist() if one.ndim > 1 else differs.nonzero()[:1, 0].tolist()
        )
    return min(rows, default=None)


def _described(batch: Any) -> str:
    if isinstance(batch, dict):
        return f"a dict with keys {', '.join(map(repr, batch))}"
    if isinstance(batch, tuple | list):
        return f"{len(batch)} items: " + ", ".join(_described(part) for part in batch)
    if isinstance(batch, Tensor):
        return f"a tensor {list(batch.shape)}"
    return type(batch).__name__


def _first_parameter(model: Any) -> Tensor | None:
    """Any trainable parameter; None where there is none, which ``Problem`` refuses."""
    values: list[Any] = []
    if isinstance(model, nn.Module):
        values = [value for value in model.parameters() if value.requires_grad]
    elif isinstance(model, tuple) and len(model) == 2 and isinstance(model[1], dict):
        values = list(model[1].values())
    return next((value for value in values if isinstance(value, Tensor)), None)


def _moved(value: Tensor, like: Tensor | None) -> Tensor:
    if like is None:
        return value
    return value.to(device=like.device, dtype=like.dtype if value.is_floating_point() else None)
