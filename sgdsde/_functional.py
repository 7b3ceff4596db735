"""A user's model as a pure function of its parameters, and what makes a model unfit for that.

Predictions and ensembles call a network with other parameters than its own, for many parameter sets and one example at
a time. That is right only if the output of example i is a deterministic function of the parameters and of example i.
``FunctionalModel`` holds such a function; ``FunctionalModel.probe`` finds out on two examples whether it is one.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from sgdsde._checks import complaint, finite_entries
from sgdsde._types import Params

_EVAL = "call model.eval() first, or replace the layer"


@dataclass(frozen=True, eq=False)
class FunctionalModel:
    """``forward(params, x)``: outputs [n, c] of inputs [n, ...], the user's module untouched.

    Attributes:
        call: the function itself.
        params: trainable parameters by name, detached copies.
        constants: frozen parameters and buffers by name, detached copies.
        module: the private copy of the user's module, or None for a plain function.
        vectorizes: whether ``torch.func.vmap`` works on this model; where it does not (recurrent layers), everything
            that needs one example or one run at a time loops instead, slowly and to the same result.
    """

    call: Callable[[Params, Tensor], Tensor]
    params: Params
    constants: Params
    module: nn.Module | None = None
    vectorizes: bool = True

    def forward(self, params: Params, x: Tensor) -> Tensor:
        """Outputs [n, c]; attention goes through the math backend, the only one with all derivatives."""
        with sdpa_kernel(SDPBackend.MATH):
            return self.call(params, x)

    @property
    def n_params(self) -> int:
        return sum(value.numel() for value in self.params.values())

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.params.values())).dtype

    @property
    def device(self) -> torch.device:
        return next(iter(self.params.values())).device


def as_functional(model: Any) -> FunctionalModel:
    """The model as a ``FunctionalModel``, its layers checked by name.

    Args:
        model: an ``nn.Module``, or a pair ``(f, params)`` with ``f(params, x)`` and params a dict of tensors.
    Raises:
        TypeError: neither of the two. ValueError: a layer that couples examples, draws random numbers or changes its
            buffers; no trainable parameter; parameters of several dtypes or devices, or complex ones.
    """
    if isinstance(model, nn.Module):
        functional = _from_module(model)
    elif isinstance(model, tuple) and len(model) == 2 and callable(model[0]) and isinstance(model[1], dict):
        function, params = model
        functional = FunctionalModel(function, {name: value.detach().clone() for name, value in params.items()}, {})
    else:
        remedy = "pass the module, or (f, params) with f(params, x)"
        raise TypeError(complaint("model", "an nn.Module or a pair (f, params)", type(model).__name__, remedy))
    _check_parameters(functional)
    return functional


def _from_module(model: nn.Module) -> FunctionalModel:
    _refuse_layers(model)
    try:
        module = copy.deepcopy(model)
    except Exception as error:
        message = complaint("model", "copyable by copy.deepcopy", f"{type(model).__name__}: {error}")
        raise ValueError(f"{message}; pass a pair (f, params) with f(params, x) instead") from error
    module.requires_grad_(False)
    trainable = {name for name, value in model.named_parameters() if value.requires_grad}
    everything = {name: value.detach() for name, value in [*module.named_parameters(), *module.named_buffers()]}
    params = {name: value for name, value in everything.items() if name in trainable}
    constants = {name: value for name, value in everything.items() if name not in trainable}

    def call(params: Params, x: Tensor) -> Tensor:
        return functional_call(module, (params, constants), (x,))

    return FunctionalModel(call, params, constants, module)


def _refuse_layers(model: nn.Module) -> None:
    for name, layer in model.named_modules():
        label = f"layer {name!r} ({type(layer).__name__})" if name else f"model ({type(layer).__name__})"
        if any(isinstance(value, nn.UninitializedParameter | nn.UninitializedBuffer) for value in _own(layer)):
            raise ValueError(complaint(label, "initialized", "a lazy layer", "run the model once on an example"))
        if isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.modules.instancenorm._InstanceNorm):
            couples = isinstance(layer, nn.modules.batchnorm._BatchNorm)
            if layer.training and (couples or layer.track_running_stats):
                raise ValueError(complaint(label, "in eval mode", "train mode with batch statistics", _EVAL))
            if couples and layer.running_mean is None:
                remedy = "use track_running_stats=True, LayerNorm or GroupNorm"
                raise ValueError(complaint(label, "independent of the other examples", "batch statistics", remedy))
        rate = getattr(layer, "dropout", 0.0) if isinstance(layer, nn.RNNBase | nn.MultiheadAttention) else 0.0
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            rate = layer.p
        if layer.training and (rate > 0 or isinstance(layer, nn.RReLU)):
            raise ValueError(complaint(label, "deterministic", "random in train mode", _EVAL))


def _own(layer: nn.Module) -> list[Any]:
    return [*layer._parameters.values(), *layer._buffers.values()]


def _check_parameters(functional: FunctionalModel) -> None:
    params = functional.params
    if not params:
        remedy = "set requires_grad=True on the parameters that SGD trains"
        raise ValueError(complaint("model", "a model with at least one trainable parameter", "none", remedy))
    for name, value in params.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.is_complex():
            received = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(complaint(f"parameter {name!r}", "a real floating-point tensor", received))
        finite_entries(f"parameter {name!r}", value)
    for what in ("dtype", "device"):
        kinds = sorted({str(getattr(value, what)) for value in params.values()})
        if len(kinds) > 1:
            remedy = f"use model.to({kinds[0]})" if what == "dtype" else f"use model.to({kinds[0]!r})"
            raise ValueError(complaint("model", f"of one {what}", " and ".join(kinds), remedy))


# --------------------------------------------------------------------------------------------------- the probe


def probe(functional: FunctionalModel, x: Tensor) -> tuple[FunctionalModel, Tensor]:
    """The model with ``vectorizes`` known, and its outputs on at most two examples.

    Compares one batch of two with a repetition of itself (randomness, buffers), with single examples (coupling between
    examples) and with a vectorized call (control flow that depends on data), the last in value and in one
    vector-Jacobian product an example.

    Raises:
        ValueError: naming the layer where that can be told.
    """
    x = x[:2]
    cuda = [functional.device] if functional.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), torch.no_grad():
        together = _unchanging(functional, x)
        functional = _with_vectorization(functional, x, together)
        again = functional.forward(functional.params, x)
        alone = torch.cat([functional.forward(functional.params, x[i : i + 1]) for i in range(len(x))])
    if not torch.equal(together, again):
        raise ValueError(complaint("model", "deterministic", "two different outputs for the same input", _EVAL))
    if not _close(together, alone):
        remedy = "replace batch statistics by LayerNorm or GroupNorm, or use eval mode"
        received = "an output that changes with the other examples of the batch"
        raise ValueError(complaint("model", "a function of one example at a time", received, remedy))
    return functional, together


def _unchanging(functional: FunctionalModel, x: Tensor) -> Tensor:
    """Outputs at x, with every buffer as it was."""
    before = {name: value.clone() for name, value in functional.constants.items()}
    outputs = functional.forward(functional.params, x)
    _check_output(outputs, x)
    changed = [name for name, value in functional.constants.items() if not torch.equal(value, before[name])]
    if changed:
        remedy = "call model.eval(), or remove the update of the buffer from forward"
        raise ValueError(complaint(f"buffer {changed[0]!r}", "constant", "changed by a forward pass", remedy))
    return outputs


def _check_output(outputs: Any, x: Tensor) -> None:
    if not isinstance(outputs, Tensor):
        raise TypeError(complaint("model output", "one tensor [n, c]", type(outputs).__name__))
    if outputs.ndim != 2 or outputs.shape[0] != x.shape[0] or outputs.shape[1] == 0:
        remedy = "end the model with nn.Flatten() or unsqueeze(-1)"
        raise ValueError(complaint("model output", f"[{len(x)}, c] for {len(x)} examples", list(outputs.shape), remedy))
    if not outputs.is_floating_point():
        raise TypeError(complaint("model output", "real and floating-point", outputs.dtype))
    finite_entries("model output", outputs)


def _close(first: Tensor, second: Tensor) -> bool:
    """Equal up to the rounding of a differently batched matrix product."""
    scale = first.abs().max().clamp_min(torch.finfo(first.dtype).tiny)
    return bool((first - second).abs().max() <= torch.finfo(first.dtype).eps ** 0.75 * scale)


def _with_vectorization(functional: FunctionalModel, x: Tensor, outputs: Tensor) -> FunctionalModel:
    weights = torch.cos(torch.arange(1.0, outputs.shape[1] + 1, dtype=outputs.dtype, device=outputs.device))[None]

    def one(example: Tensor) -> tuple[Tensor, Params]:
        result = vjp(lambda params: functional.forward(params, example[None])[0], functional.params)
        return result[0], vmap(result[1])(weights)[0]

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*batching rule.*")
            values, products = vmap(one)(x)
    except (RuntimeError, UserWarning) as error:
        where = _layer_of(error.__traceback__, functional.module)
        if "data-dependent control flow" in str(error) or ".item()" in str(error):
            remedy = "replace the branch by torch.where, or the number by a tensor"
            received = f"{where}, where a value of the data decides what is computed"
            raise ValueError(
                complaint("model", "free of control flow that depends on data", received, remedy)
            ) from None
        if "random operation" in str(error):
            received = f"{where}, which draws random numbers"
            raise ValueError(complaint("model", "deterministic", received, _EVAL)) from None
        return _without_vectorization(functional)
    expected = _products_by_backward(functional, x, weights[0])
    same = all(_close(expected[name], products[name][:, 0]) for name in expected)
    return functional if same and _close(outputs, values) else _without_vectorization(functional)


def _without_vectorization(functional: FunctionalModel) -> FunctionalModel:
    return FunctionalModel(functional.call, functional.params, functional.constants, functional.module, False)


def _products_by_backward(functional: FunctionalModel, x: Tensor, weights: Tensor) -> Params:
    rows = [jacobian_row(functional, functional.params, x[i : i + 1], weights) for i in range(len(x))]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def jacobian_row(functional: FunctionalModel, params: Params, x: Tensor, cotangent: Tensor) -> Params:
    """Gradient of ``cotangent . f(x)`` for one example x [1, ...] by one plain backward pass."""
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    with torch.enable_grad():
        value = (functional.forward(leaves, x)[0] * cotangent).sum()
    gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, gradients))


def _layer_of(traceback: TracebackType | None, module: nn.Module | None) -> str:
    """The innermost of the model's layers on the stack of an error, in words."""
    names = {id(layer): name for name, layer in module.named_modules()} if module is not None else {}
    found = "the model's function"
    while traceback is not None:
        layer = traceback.tb_frame.f_locals.get("self")
        if isinstance(layer, nn.Module) and id(layer) in names:
            found = f"layer {names[id(layer)]!r} ({type(layer).__name__})" if names[id(layer)] else type(layer).__name__
        traceback = traceback.tb_next
    return found
