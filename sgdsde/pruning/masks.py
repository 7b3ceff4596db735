"""Which weights are kept: a frozen mapping from parameter names to bool tensors, and what it does to a network."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from sgdsde._checks import complaint
from sgdsde._files import replacing
from sgdsde._types import Params
from sgdsde.problem import Problem
from sgdsde.pruning.connectivity import Connectivity, connectivity
from sgdsde.pruning.network import PrunedNetwork, owned_copy
from sgdsde.pruning.weights import Subject, Where, same_shapes

FORMAT_VERSION = 1


class Masks(Mapping[str, Tensor]):
    """Parameter names to bool tensors, True = kept; cannot be changed.

    Densities are shares of the weights that the masks speak of: prunable weights, not biases, not normalizations.

    Args:
        masks: bool tensors by parameter name.
        connectivity: what is known of the paths through the network that they were made for (``prune`` finds out).
    Attributes:
        live_density: kept weights that lie on a path of kept weights from an input to an output, as a share of all;
            None where that is unknown (a network without a linear pass, or masks from elsewhere: ``with_paths_of``).
        disconnected_outputs: outputs that no such path reaches, so that no input changes them; None where unknown.
    """

    def __init__(self, masks: Mapping[str, Tensor], connectivity: Connectivity | None = None) -> None:
        if not masks:
            raise ValueError(complaint("masks", "a mask of at least one weight", "none"))
        for name, mask in masks.items():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                received = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise TypeError(complaint(f"mask of {name!r}", "a bool tensor, True = kept", received, "use mask != 0"))
        self._masks = {name: mask.detach().clone() for name, mask in masks.items()}
        self._connectivity = connectivity

    @classmethod
    def of(cls, problem_or_model: Problem | nn.Module, *, where: Where = None) -> Masks:
        """The masks that a model has already: ``PrunedNetwork``, ``torch.nn.utils.prune``, parametrizations that mask.

        Weights without a mask are kept. Entries that a plain layer holds at zero are trainable, so they count as kept.
        """
        subject = Subject.of(problem_or_model, where)
        return cls(subject.kept, connectivity(subject, subject.kept))

    def __getitem__(self, name: str) -> Tensor:
        """A copy of one mask."""
        return self._masks[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __eq__(self, other: object) -> bool:
        """Whether the same weights are kept."""
        if not isinstance(other, Masks):
            return NotImplemented
        same = self._masks.keys() == other._masks.keys()
        return same and all(torch.equal(mask.cpu(), other._masks[name].cpu()) for name, mask in self._masks.items())

    def __hash__(self) -> int:
        return hash((tuple(sorted(self._masks)), self.n_kept))

    def __repr__(self) -> str:
        live = "unknown" if self.live_density is None else f"{self.live_density:.6g}"
        return (
            f"Masks({len(self)} weights, {self.n_kept} of {self.n_weights} kept, density={self.density:.6g}, "
            f"live_density={live}, empty_layers={len(self.empty_layers)})"
        )

    @property
    def n_weights(self) -> int:
        """Prunable weights, kept or not."""
        return sum(mask.numel() for mask in self._masks.values())

    @property
    def n_kept(self) -> int:
        """Kept weights."""
        return sum(int(mask.sum()) for mask in self._masks.values())

    @property
    def density(self) -> float:
        """Kept share of the prunable weights."""
        return self.n_kept / self.n_weights

    @property
    def sparsity(self) -> float:
        """Removed share, 1 - density."""
        return 1 - self.density

    @property
    def layer_densities(self) -> dict[str, float]:
        """Kept share by weight."""
        return {name: int(mask.sum()) / mask.numel() for name, mask in self._masks.items()}

    @property
    def empty_layers(self) -> tuple[str, ...]:
        """Weights of which nothing is kept. In a residual network only the first and the last are fatal."""
        return tuple(name for name, mask in self._masks.items() if not mask.any())

    @property
    def live_density(self) -> float | None:
        """The share of weights on a path from an input to an output; None where unknown."""
        found = self._connectivity
        return None if found is None else found.n_live / self.n_weights

    @property
    def n_live(self) -> int | None:
        """Kept weights on a path from an input to an output; None where unknown."""
        return None if self._connectivity is None else self._connectivity.n_live

    @property
    def disconnected_outputs(self) -> tuple[int, ...] | None:
        """Outputs that no path reaches; None where unknown."""
        return None if self._connectivity is None else self._connectivity.disconnected_outputs

    def with_paths_of(self, problem_or_model: Problem | nn.Module) -> Masks:
        """The same masks, knowing their paths through this network."""
        subject = Subject.of(problem_or_model)
        same_shapes(self._masks, subject.weights)
        return Masks(self._masks, connectivity(subject, subject.kept | self._masks))

    @overload
    def apply(self, problem_or_model: Problem) -> Problem: ...
    @overload
    def apply(self, problem_or_model: nn.Module) -> PrunedNetwork: ...
    def apply(self, problem_or_model: Problem | nn.Module) -> Problem | PrunedNetwork:
        """The network without the removed weights: a ``PrunedNetwork`` of a copy, or the problem of one.

        Weights that the masks do not name stay; masks that the model has already are combined with these.

        Raises:
            ValueError: masks of another model.
        """
        subject = Subject.of(problem_or_model)
        same_shapes(self._masks, subject.weights)
        masks = {name: subject.kept[name] & mask.to(subject.kept[name].device) for name, mask in self._masks.items()}
        masks |= {name: kept for name, kept in subject.kept.items() if name not in masks and not kept.all()}
        if not isinstance(problem_or_model, Problem):
            return PrunedNetwork(_copied(problem_or_model), masks)
        problem = problem_or_model
        model = _copied(problem.functional.module)
        for name, value in model.named_parameters():
            value.requires_grad_(name in problem.params or f"network.{name}" in problem.params)
        tests = {"x_test": problem.x_test, "y_test": problem.y_test}
        return Problem(PrunedNetwork(model, masks), problem.x_train, problem.y_train, loss=problem.loss, **tests)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one ``.npz`` (packed bits and a JSON header, no pickle) whole or not at all."""
        shapes = {name: list(mask.shape) for name, mask in self._masks.items()}
        header: dict[str, Any] = {"format_version": FORMAT_VERSION, "shapes": shapes, "n_live": self.n_live}
        header["disconnected_outputs"] = self.disconnected_outputs
        arrays = {f"mask_{i}": np.packbits(mask.cpu().numpy()) for i, mask in enumerate(self._masks.values())}
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Masks:
        """The masks that ``save`` wrote, on the CPU.

        Raises:
            FileNotFoundError: no such file. ValueError: a file that is cut, damaged, foreign or of a newer format.
        """
        try:
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                header = json.loads(file["header"].tobytes())
                if header["format_version"] == FORMAT_VERSION:
                    return cls(_unpacked(file, header["shapes"]), _connectivity_of(header))
                version = header["format_version"]
        except (FileNotFoundError, IsADirectoryError, PermissionError):
            raise
        except Exception as error:  # a damaged archive fails in a dozen ways
            expected, received = "a complete file written by Masks.save", f"{type(error).__name__}: {error}"
            raise ValueError(complaint(str(path), expected, received, "prune again and save again")) from error
        expected, received = f"of format version {FORMAT_VERSION}", f"format version {version}"
        raise ValueError(complaint(str(path), expected, received, "update sgdsde"))


def _unpacked(file: Any, shapes: dict[str, list[int]]) -> Params:
    masks = {}
    for i, (name, shape) in enumerate(shapes.items()):
        bits = np.unpackbits(file[f"mask_{i}"])[: int(np.prod(shape))]
        masks[name] = torch.from_numpy(bits.astype(bool).reshape(shape))
    return masks


def _connectivity_of(header: dict[str, Any]) -> Connectivity | None:
    if header["n_live"] is None:
        return None
    return Connectivity(int(header["n_live"]), tuple(header["disconnected_outputs"]))


def _copied(model: nn.Module | None) -> nn.Module:
    """A copy; of a pruned network the network inside, whose masks the caller has."""
    assert model is not None
    return owned_copy(model.network if isinstance(model, PrunedNetwork) else model)
