"""Names for the kinds of values that cross module boundaries."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:  # the command line names these types before it needs torch
    from torch import Tensor

Params: TypeAlias = "dict[str, Tensor]"
"""Parameter tensors by their dotted name, as in ``nn.Module.named_parameters``."""

Schedule: TypeAlias = float | Callable[[int], float]
"""A number, or a function of the step k for the update k -> k + 1."""

Sampling: TypeAlias = Literal["with_replacement", "without_replacement", "shuffled"]
"""Sampling scheme of minibatches: i.i.d. indices, a fresh subset at each step, or epochs of a reshuffled data set."""

Parametrization: TypeAlias = Literal["ntk", "standard"]
"""Parametrization of a layer: its scale in front of standard normal weights, or in their variance."""

Observable: TypeAlias = Literal["loss", "accuracy", "outputs"]
"""Contents of a trajectory: loss bands always; accuracy bands and the law of every output when asked for."""

Origin: TypeAlias = Literal["predicted", "interpolated", "measured"]
"""Origin of a trajectory: no run of its setting was used, runs of other settings were, or its own runs."""

Progress: TypeAlias = Callable[[Iterable[int]], Iterable[int]] | bool | None
"""``True`` draws a tqdm bar, a callable wraps the iteration itself, None is silent."""
