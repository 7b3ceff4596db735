"""A user's model as a pure function of its parameters, and what makes a model unfit for that.

Predictions and ensembles call a network with other parameters than its own, for many parameter sets and one example at
a time. That is right only if the output of example i is a deterministic function of the parameters and of example i.
``FunctionalModel`` holds such a function; ``_probe.probe`` finds out on a few examples whether it is one, and
``_fidelity`` whether it is the user's own.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from sgdsde._checks import complaint, finite_entries
from sgdsde._sharing import Tie, ties
from sgdsde._types import Params

EVAL = "call model.eval() first, or replace the layer"


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
        shared: names that are no parameters of their own, and how each follows one that shares its memory.
        original: the user's module, until the probe has compared its copy with it. outside: the user's own tensors by
            name, which the function must not read, until then.
        n_outputs: c, known once the model was probed (0 before).
    """

    call: Callable[[Params, Tensor], Tensor]
    params: Params
    constants: Params
    module: nn.Module | None = None
    vectorizes: bool = True
    shared: Mapping[str, Tie] = field(default_factory=dict)
    original: nn.Module | None = None
    outside: Params = field(default_factory=dict)
    n_outputs: int = 0

    def forward(self, params: Params, x: Tensor) -> Tensor:
        """Outputs [n, c]; attention goes through the math backend, the only one with all derivatives."""
        with sdpa_kernel(SDPBackend.MATH):
            outputs = self.call(params, x)
        if not torch.is_grad_enabled() and isinstance(outputs, Tensor) and outputs.requires_grad:
            return outputs.detach()  # a forward pass that takes derivatives itself switches gradients on
        return outputs

    def named(self, params: Params) -> Params:
        """The tensors of all names that are trained, those that share a parameter's memory made from it."""
        return {**params, **{name: tie.of(params[tie.source]) for name, tie in self.shared.items()}}

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
    if torch.is_inference_mode_enabled():
        raise ValueError(
            complaint("torch.inference_mode", "off where derivatives are needed", "on", "use torch.no_grad()")
        )
    if isinstance(model, nn.Module):
        functional = _from_module(model)
    elif isinstance(model, tuple) and len(model) == 2 and callable(model[0]) and isinstance(model[1], dict):
        functional = _from_function(*model)
    else:
        is_class = isinstance(model, type)
        received = f"the class {model.__name__}" if is_class else type(model).__name__
        remedy = "create an instance" if is_class else "pass the module, or (f, params) with f(params, x)"
        raise TypeError(complaint("model", "an nn.Module or a pair (f, params)", received, remedy))
    _check_parameters(functional)
    return functional


def vectorize(function: Callable[..., Any], in_dims: Any = 0) -> Callable[..., Any]:
    """``torch.func.vmap`` without torch's warnings about how it does it (the probe compares what comes out)."""
    mapped = vmap(function, in_dims)

    def call(*args: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*batching rule|An output with one or more elements was resized")
            return mapped(*args)

    return call


def jacobian_row(functional: FunctionalModel, params: Params, x: Tensor, cotangent: Tensor) -> Params:
    """Gradient of ``cotangent . f(x)`` for one example x [1, ...] by one plain backward pass."""
    return pulled(functional, params, x, cotangent[None, None])[1][0]


def value_and_gradient(function: Callable[[Params], Tensor], params: Params) -> tuple[Tensor, Params]:
    """A scalar function of the parameters and its gradient, by one plain backward pass, sparse parts written out."""
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    with torch.enable_grad():  # a checkpoint in forward computes again while the backward pass runs
        value = function(leaves)
        parts = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return value.detach(), {name: part.to_dense() for name, part in zip(leaves, parts)}


def pulled(functional: FunctionalModel, params: Params, x: Tensor, cotangents: Tensor) -> tuple[Tensor, list[Params]]:
    """Outputs at x, and gradients of ``u . f(x)`` for each u of cotangents [k, n, c] by k plain backward passes."""
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    inputs = list(leaves.values())
    with torch.enable_grad():  # a checkpoint in forward computes again while the backward pass runs
        outputs = functional.forward(leaves, x)
        found = [
            torch.autograd.grad(outputs, inputs, u, retain_graph=True, allow_unused=True, materialize_grads=True)
            for u in cotangents
        ]
    return outputs.detach(), [{name: part.to_dense() for name, part in zip(leaves, parts)} for parts in found]


def _copied(name: Any, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        received = f"{type(value).__name__} for {name!r}"
        raise TypeError(complaint("params", "a flat dict of tensors by name", received, "flatten nested containers"))
    return value.detach().clone()


def _from_function(function: Callable[[Params, Tensor], Tensor], params: dict[str, Any]) -> FunctionalModel:
    values = {name: _copied(name, value) for name, value in params.items()}
    for second in (together := ties({name: value for name, value in params.items() if value.numel()}, {})):
        received = f"{together[second].source!r} and {second!r} in the same memory"
        remedy = "pass it once, and let f use it twice"
        raise ValueError(complaint("params", "tensors in memory of their own", received, remedy))
    empty = {name: value for name, value in values.items() if value.numel() == 0}
    if not empty:
        return FunctionalModel(function, values, {})
    filled = {name: value for name, value in values.items() if name not in empty}
    return FunctionalModel(lambda params, x: function({**empty, **params}, x), filled, empty)


def _from_module(model: nn.Module) -> FunctionalModel:
    _refuse_layers(model)
    _refuse_gradient_hooks(model)
    named: Params = {n: value for n, value in model.named_parameters() if value.requires_grad and value.numel()}
    module, others = _private_copy(model)
    others |= {name: value for name, value in model.named_parameters() if name not in named}
    tied = ties({name: value.detach() for name, value in named.items()}, others | dict(model.named_buffers()))
    module.requires_grad_(False)
    everything = {name: value.detach() for name, value in [*module.named_parameters(), *module.named_buffers()]}
    params = {name: value for name, value in everything.items() if name in named and name not in tied}
    constants = {name: value for name, value in everything.items() if name not in named}

    def call(params: Params, x: Tensor) -> Tensor:
        followers = {name: tie.of(params[tie.source]) for name, tie in tied.items()}
        return functional_call(module, ({**params, **followers}, _in_dtype_of(params, constants)), (x,))

    return FunctionalModel(call, params, constants, module, shared=tied, original=model, outside=named)


def _in_dtype_of(params: Params, constants: Params) -> Params:
    """The constants as they are, or as real as parameters that were taken to double precision."""
    dtype = next(iter(params.values())).dtype
    if dtype != torch.float64 or not any(value.dtype != dtype for value in constants.values()):
        return constants
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in constants.items()}


def _private_copy(model: nn.Module) -> tuple[nn.Module, Params]:
    """A deep copy, and the user's tensors that it holds elsewhere than among parameters and buffers."""
    results = _intermediate_results(model)
    memo: dict[int, Any] = dict(results)
    try:
        module = copy.deepcopy(model, memo)
    except Exception as error:
        message = complaint("model", "copyable by copy.deepcopy", f"{type(model).__name__}: {error}")
        raise ValueError(f"{message}; pass a pair (f, params) with f(params, x) instead") from error
    own = {id(value) for value in [*model.parameters(), *model.buffers()]}
    if any(id(value) in own for value in [*module.parameters(), *module.buffers()]):
        received, remedy = "a __deepcopy__ that shares tensors with the original", "remove it"
        raise ValueError(complaint("model", "copyable by copy.deepcopy", received, remedy))
    kept = [value for value in memo.get(id(memo), []) if isinstance(value, Tensor) and id(value) not in own]
    kept += [value for layer in model.modules() for value in vars(layer).values() if id(value) in results]
    return module, {_place_of(value, model): value.detach() for value in kept}


def _place_of(value: Tensor, model: nn.Module) -> str:
    for name, layer in model.named_modules():
        for attribute, found in vars(layer).items():
            if found is value:
                return f"{name}.{attribute}" if name else attribute
    return f"a tensor {list(value.shape)} that the model keeps beside its parameters"


def _refuse_gradient_hooks(model: nn.Module) -> None:
    remedy = "remove the hook: what it does to gradients cannot be predicted"
    for name, value in model.named_parameters():
        if value.requires_grad and (value._backward_hooks or getattr(value, "_post_accumulate_grad_hooks", None)):
            raise ValueError(complaint(f"parameter {name!r}", "without gradient hooks", "one", remedy))
    for name, layer in model.named_modules():
        if layer._backward_hooks or layer._backward_pre_hooks:
            label = f"layer {name!r} ({type(layer).__name__})" if name else f"model ({type(layer).__name__})"
            raise ValueError(complaint(label, "without backward hooks", "one", remedy))
    everywhere = vars(nn.modules.module)
    if everywhere.get("_global_backward_hooks") or everywhere.get("_global_backward_pre_hooks"):
        raise ValueError(complaint("torch", "without backward hooks on all modules", "one", remedy))


def _intermediate_results(model: nn.Module) -> dict[int, Any]:
    """Copies of the tensors that hooks (pruning, the older weight norm) leave on layers, which deepcopy cannot copy."""
    left = (value for layer in model.modules() for value in vars(layer).values() if isinstance(value, Tensor))
    return {id(value): value.detach().clone() for value in left if not value.is_leaf}


def _refuse_layers(model: nn.Module) -> None:
    for name, layer in model.named_modules():
        if isinstance(layer, torch.jit.ScriptModule | nn.DataParallel) or hasattr(layer, "_orig_mod"):
            remedy = "pass the module that was scripted, compiled or wrapped"
            raise ValueError(complaint("model", "plain nn.Modules", type(layer).__name__, remedy))
        label = f"layer {name!r} ({type(layer).__name__})" if name else f"model ({type(layer).__name__})"
        if any(isinstance(value, nn.UninitializedParameter | nn.UninitializedBuffer) for value in _own(layer)):
            raise ValueError(complaint(label, "initialized", "a lazy layer", "run the model once on an example"))
        if isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.modules.instancenorm._InstanceNorm):
            couples = isinstance(layer, nn.modules.batchnorm._BatchNorm)
            if layer.training and (couples or layer.track_running_stats):
                raise ValueError(complaint(label, "in eval mode", "train mode with batch statistics", EVAL))
            if couples and layer.running_mean is None:
                remedy = "use track_running_stats=True, LayerNorm or GroupNorm"
                raise ValueError(complaint(label, "independent of the other examples", "batch statistics", remedy))
        rate = getattr(layer, "dropout", 0.0) if isinstance(layer, nn.RNNBase | nn.MultiheadAttention) else 0.0
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            rate = layer.p
        if layer.training and (rate > 0 or isinstance(layer, nn.RReLU)):
            raise ValueError(complaint(label, "deterministic", "random in train mode", EVAL))


def _own(layer: nn.Module) -> list[Any]:
    return [*layer._parameters.values(), *layer._buffers.values()]


def _check_parameters(functional: FunctionalModel) -> None:
    params = functional.params
    if not params:
        remedy = "set requires_grad=True on the parameters that SGD trains"
        raise ValueError(complaint("model", "a model with at least one trainable parameter", "none", remedy))
    for name, value in params.items():
        if not value.is_floating_point():
            raise TypeError(complaint(f"parameter {name!r}", "a real floating-point tensor", value.dtype))
    dtypes = sorted({str(value.dtype) for value in params.values()})
    devices = sorted({str(value.device) for value in [*params.values(), *functional.constants.values()]})
    if len(dtypes) > 1:
        raise ValueError(complaint("model", "of one dtype", " and ".join(dtypes), f"use model.to({dtypes[0]})"))
    if len(devices) > 1:
        raise ValueError(complaint("model", "on one device", " and ".join(devices), f"use model.to({devices[0]!r})"))
    if devices == ["meta"]:
        raise ValueError(complaint("model", "on a device that holds numbers", "meta", "use model.to_empty(device=...)"))
    for name, value in params.items():
        finite_entries(f"parameter {name!r}", value)
