"""The weights of a model that pruning may remove, and the model as a float64 function of them.

Prunable are the trainable weights of linear and convolution layers; biases and parameters of normalizations are not.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from sgdsde._checks import complaint, finite_entries
from sgdsde._types import Params
from sgdsde.networks.layers import Layer
from sgdsde.problem import Problem
from sgdsde.pruning.network import PrunedNetwork, call_with

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, Layer)
"""Layers whose weights can be pruned."""

Where: TypeAlias = "Callable[[str], bool] | None"
"""Keeps the weights whose name satisfies it; None keeps all."""


@dataclass(frozen=True)
class PrunableWeight:
    """One weight tensor: its parameter name and its layer's name.

    Attributes:
        shape: [out, in] or [out, in / groups, *kernel]. fan_in: entries that one output reads.
    """

    name: str
    layer: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def fan_in(self) -> int:
        return math.prod(self.shape[1:])


@dataclass(frozen=True, eq=False)
class Subject:
    """A model that is looked at to be pruned: the user's own is never changed.

    Attributes:
        module: a copy of the model's structure in eval mode, whose tensors are the model's own and must not be written.
        weights: the prunable weights by name, in the order of the model's parameters.
        kept: bool, by name: what masks that the model already has leave; the rest stays removed.
        problem: where the examples and the loss come from; None for a bare model.
    """

    module: nn.Module
    weights: dict[str, PrunableWeight]
    kept: Params
    problem: Problem | None

    @classmethod
    def of(cls, problem_or_model: Problem | nn.Module, where: Where = None) -> Subject:
        """The prunable weights of a problem's or a bare model.

        Raises:
            TypeError: neither of the two, or a problem whose model is a function. ValueError: no prunable weight; a
                weight that is reparametrized otherwise than entry by entry.
        """
        problem = problem_or_model if isinstance(problem_or_model, Problem) else None
        model = problem.functional.module if problem is not None else problem_or_model
        if not isinstance(model, nn.Module):
            received = "a Problem of a function" if problem is not None else type(model).__name__
            remedy = "pruning needs layers: wrap the function in an nn.Module with linear or convolution layers"
            raise TypeError(complaint("model", "an nn.Module, or a Problem of one", received, remedy))
        trainable = set(problem.params) if problem is not None else None
        module = _shared_copy(model).eval()
        if isinstance(module, PrunedNetwork):
            if module.factor_tensors():
                remedy = 'prune first and rescale afterwards, or rescale with where="weights"'
                raise ValueError(complaint("model", "pruned without factors of the forward pass", "factors", remedy))
            given = {name: mask.bool() for name, mask in module.mask_tensors().items()}
            trainable = trainable and {name.removeprefix("network.") for name in trainable}
            module = module.network
        else:
            given = {}
        weights = {found.name: found for found in _prunable(module, trainable) if where is None or where(found.name)}
        if not weights:
            expected = "a model with trainable weights of linear or convolution layers"
            received = type(model).__name__ + (" without any" if where is None else ", none of which satisfies where")
            raise ValueError(complaint("model", expected, received))
        kept = {name: _kept(module, weight, given.get(name)) for name, weight in weights.items()}
        return cls(module, weights, kept, problem)

    def rest(self) -> Params:
        """Parameters and buffers that are not prunable, by name, floating-point ones in float64."""
        named = [*self.module.named_parameters(), *self.module.named_buffers()]
        return {name: _double(value) for name, value in named if name not in self.weights}

    def values(self, name: str) -> Tensor:
        """The entries of one weight, float64, detached."""
        return _double(self.parameter(name))

    def parameter(self, name: str) -> Tensor:
        """The parameter itself, as the module holds it."""
        return self.module.get_parameter(name)

    def effective(self, name: str) -> Tensor:
        """|w| as the forward pass sees it, float64: with the layer's multiplier and any parametrization."""
        weight = self.weights[name]
        layer = self.module.get_submodule(weight.layer)
        entries = _double(_effective(layer)) if _is_reparametrized(layer) else self.values(name)
        return (entries * float(getattr(layer, "weight_multiplier", 1.0))).abs()

    def forward(self, tensors: Params, x: Tensor) -> Tensor:
        """Outputs with these parameters and buffers in place of the model's own."""
        return call_with(self.module, tensors, (x,))

    def examples(self, criterion: str, indices: Tensor | None) -> tuple[Tensor, Tensor]:
        """x and y of the problem's training set in float64; ``indices`` None: all of them."""
        if self.problem is None:
            remedy = "pass sgdsde.Problem(model, x_train, y_train, loss=...)"
            raise TypeError(
                complaint(criterion, "asked of a Problem, it needs data and a loss", "a bare model", remedy)
            )
        x, y = self.problem.x_train, self.problem.y_train
        if indices is not None:
            x, y = x[indices.to(x.device)], y[indices.to(y.device)]
        return _double(x), _double(y)


def same_shapes(masks: Params, weights: dict[str, PrunableWeight]) -> None:
    """Raises ``ValueError`` unless the masks are those of a model with these weights (some of them suffices)."""
    for name, mask in masks.items():
        if name not in weights:
            known = ", ".join(list(weights)[:4]) + (", ..." if len(weights) > 4 else "")
            raise ValueError(complaint("masks", f"those of this model, of weights {known}", f"a mask of {name!r}"))
        if tuple(mask.shape) != weights[name].shape:
            expected = f"of shape {list(weights[name].shape)}, as this model's"
            raise ValueError(complaint(f"mask of {name!r}", expected, list(mask.shape), "use the masks of this model"))


def _double(value: Tensor) -> Tensor:
    detached = value.detach()
    return detached.double() if detached.is_floating_point() else detached


def _shared_copy(model: nn.Module) -> nn.Module:
    """The model's modules copied, their tensors shared: a copy that costs no memory."""
    tensors = [*model.parameters(), *model.buffers()]
    left = (value for layer in model.modules() for value in vars(layer).values() if isinstance(value, Tensor))
    memo: dict[int, Any] = {id(value): value for value in tensors}
    memo |= {id(value): value.detach() for value in left if not value.is_leaf}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        received = f"{type(model).__name__}: {error}"
        raise ValueError(complaint("model", "copyable by copy.deepcopy", received)) from error


def _prunable(module: nn.Module, trainable: set[str] | None) -> list[PrunableWeight]:
    found, seen = [], set()
    for prefix, layer in module.named_modules():
        if not isinstance(layer, LAYERS):
            continue
        local = _parameter_name(prefix, layer)
        name = f"{prefix}.{local}" if prefix else local
        value = layer.get_parameter(local)
        if isinstance(value, nn.UninitializedParameter):
            remedy = "run the model once on an example"
            raise ValueError(complaint(f"layer {prefix!r}", "initialized", "a lazy layer", remedy))
        if id(value) in seen or not (value.requires_grad if trainable is None else name in trainable):
            continue
        seen.add(id(value))
        finite_entries(f"parameter {name!r}", value)
        found.append(PrunableWeight(name, prefix, tuple(value.shape)))
    order = {name: place for place, (name, _) in enumerate(module.named_parameters())}
    return sorted(found, key=lambda weight: order[weight.name])


def _parameter_name(prefix: str, layer: nn.Module) -> str:
    """The leaf parameter that the layer's weight is made of."""
    if "weight" in layer._parameters:
        return "weight"
    if "weight_orig" in layer._parameters and "weight_mask" in layer._buffers:  # torch.nn.utils.prune
        return "weight_orig"
    if parametrize.is_parametrized(layer, "weight"):
        originals = layer.parametrizations["weight"]  # type: ignore[index]
        original = getattr(originals, "original", None)
        if original is not None and original.shape == layer.weight.shape and _acts_entrywise(layer, original):
            return "parametrizations.weight.original"
    expected = "of plain weights, masks of torch.nn.utils.prune, or parametrizations that act entry by entry"
    remedy = "remove the parametrization first (torch.nn.utils.parametrize.remove_parametrizations)"
    raise ValueError(complaint(f"layer {prefix!r}", expected, f"another ({type(layer).__name__})", remedy))


@torch.no_grad()
def _acts_entrywise(layer: nn.Module, original: Tensor) -> bool:
    """Whether removing entries of the original removes just these entries of the weight."""
    removed = (torch.arange(original.numel(), device=original.device) % 3 == 1).view(original.shape)
    before = layer.weight
    name = "parametrizations.weight.original"
    after = functional_call(_Weight(layer), {f"layer.{name}": original.masked_fill(removed, 0)}, ())
    return torch.allclose(after, torch.as_tensor(before).masked_fill(removed, 0), rtol=1e-6, atol=0)


class _Weight(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self) -> Tensor:
        return self.layer.weight  # type: ignore[return-value]


def _is_reparametrized(layer: nn.Module) -> bool:
    return "weight" not in layer._parameters


@torch.no_grad()
def _effective(layer: nn.Module) -> Tensor:
    """The weight that the layer uses: of torch's masks the product, whether or not its hook has run."""
    if "weight_mask" in layer._buffers:
        return layer.weight_orig * layer.weight_mask  # type: ignore[operator]
    return layer.weight  # type: ignore[return-value]


def _kept(module: nn.Module, weight: PrunableWeight, given: Tensor | None) -> Tensor:
    layer = module.get_submodule(weight.layer)
    value = module.get_parameter(weight.name).detach()
    kept = torch.ones_like(value, dtype=torch.bool) if given is None else given
    if _is_reparametrized(layer):
        if "weight_mask" in layer._buffers:
            return kept & layer.weight_mask.bool()  # type: ignore[operator]
        kept = kept & ~((_effective(layer) == 0) & (value != 0))
    return kept
