"""Whether a model is what predictions need: a deterministic function of its parameters and of one example at a time."""

from __future__ import annotations

import inspect
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp

from sgdsde._checks import complaint, finite_entries
from sgdsde._fidelity import check_is_the_original, draws, few, largest, rounding, watched_forward
from sgdsde._functional import EVAL, FunctionalModel, gradients, vectorize
from sgdsde._types import Params

CROWD = 64
"""Examples of the batch in which coupling is looked for: experts with a capacity couple only when they are full."""


def probe(
    functional: FunctionalModel, x: Tensor, name: str = "x", *, vectorization: bool = True
) -> tuple[FunctionalModel, Tensor]:
    """The model with ``vectorizes`` and ``n_outputs`` known, and its outputs at two examples of x, called ``name``.

    Compares a batch of two different examples with a repetition of itself (randomness, buffers, inputs), with single
    examples and a crowd (coupling between them), with vectorized calls (control flow that depends on data) in value and
    in two vector-Jacobian products at once, and with the user's own module (``_fidelity``).

    Raises:
        ValueError: naming the layer where that can be told.
    Cost: some thirty training steps.
    """
    two, some = _two_examples(x), x[few(len(x))]
    cuda = [functional.device] if functional.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), torch.no_grad():
        outputs = _unchanging(functional, two, name)
        if vectorization:
            functional = _with_vectorization(functional, two, outputs)
        if not _close({"outputs": outputs}, {"outputs": functional.forward(functional.params, two)}):
            _with_vectorization(functional, two, outputs)  # which names the layer that is to blame
            raise ValueError(complaint("model", "deterministic", "two different outputs for the same input", EVAL))
        _check_apart(functional, two, some, outputs, vectorization=vectorization)
        if not vectorization:
            _products_by_backward(functional, two, outputs.shape[1])
        check_is_the_original(functional, some)
    return replace(functional, n_outputs=outputs.shape[1], original=None), outputs


def with_vectorization(functional: FunctionalModel, x: Tensor) -> FunctionalModel:
    """A model that was probed without it, with ``vectorizes`` known."""
    two = _two_examples(x)
    with torch.no_grad():
        return _with_vectorization(functional, two, functional.forward(functional.params, two))


def _two_examples(x: Tensor) -> Tensor:
    """A copy of the first example and of the next that differs from it: equal ones would hide a coupling."""
    different = (x != x[:1]).flatten(1).any(1) if x.ndim > 1 else x != x[:1]
    second = int(different.int().argmax()) or 1
    return torch.cat([x[:1], x[second : second + 1]])


def _check_apart(
    functional: FunctionalModel, two: Tensor, some: Tensor, outputs: Tensor, *, vectorization: bool
) -> None:
    """Raises ``ValueError`` where the output of an example changes with the others of its batch."""
    params = functional.params
    alone = torch.cat([functional.forward(params, two[i : i + 1]) for i in range(len(two))])
    crowd = torch.cat([two, some, two[:1].expand(max(CROWD - len(two) - len(some), 1), *two.shape[1:])])
    together = functional.forward(params, crowd)
    apart = _close({"outputs": outputs}, {"outputs": alone})
    if apart and together.shape == (len(crowd), *alone.shape[1:]):
        expected = torch.cat([alone, alone[:1].expand(len(crowd) - len(two) - len(some), -1)])
        among = torch.cat([together[: len(two)], together[len(two) + len(some) :]])
        if _close({"outputs": expected}, {"outputs": among}):
            return
    if not vectorization:
        _with_vectorization(functional, two, outputs)  # which names a layer that draws random numbers
    where, remedy = _coupling_layer(functional, crowd)
    received = f"an output that changes with the other examples of the batch{where}"
    raise ValueError(complaint("model", "a function of one example at a time", received, remedy))


def _coupling_layer(functional: FunctionalModel, x: Tensor) -> tuple[str, str]:
    """The first layer whose result for one example differs in a batch, in words, and what to do about it."""
    general = "replace batch statistics by LayerNorm or GroupNorm, or use eval mode; experts must have no capacity"
    if functional.module is None:
        return "", general
    names = {layer: name for name, layer in functional.module.named_modules()}
    seen: list[tuple[nn.Module, Any]] = []
    handles = [layer.register_forward_hook(lambda layer, _, result: seen.append((layer, result))) for layer in names]
    try:
        functional.forward(functional.params, x)
        calls = len(seen)
        functional.forward(functional.params, x[:1])
    finally:
        for handle in handles:
            handle.remove()
    for (layer, crowd), (other, alone) in zip(seen[:calls], seen[calls:]):
        crowd, alone = (value[0] if isinstance(value, tuple) and value else value for value in (crowd, alone))
        comparable = layer is other and isinstance(crowd, Tensor) and isinstance(alone, Tensor)
        if comparable and (crowd[:1].shape != alone.shape or not _close({"": alone}, {"": crowd[:1]})):
            label = f", in layer {names[layer]!r} ({type(layer).__name__})" if names[layer] else ""
            if any(getattr(part, "batch_first", True) is False for part in layer.modules()):
                return label, "make it with batch_first=True: it takes the first axis for time"
            return label, general
    return "", general


def _unchanging(functional: FunctionalModel, x: Tensor, name: str) -> Tensor:
    """Outputs at x, of a forward pass that writes to no buffer, to no parameter and not to x."""
    written = x._version
    try:
        outputs, fault = watched_forward(functional, x)
    except Exception as error:
        raise ValueError(_not_accepted(functional, x, name, error)) from error
    if fault:
        raise ValueError(fault)
    if x._version != written:
        remedy = "use inplace=False in its first layer"
        raise ValueError(complaint("model", "a function that leaves its input as it is", "a changed input", remedy))
    _check_output(outputs, x)
    return outputs


def _not_accepted(functional: FunctionalModel, x: Tensor, name: str, error: Exception) -> str:
    where = layer_of(error.__traceback__, functional.module)
    if functional.module is not None and isinstance(error, TypeError):
        try:
            inspect.signature(functional.module.forward).bind(x)
        except TypeError:
            received = f"{type(functional.module).__name__}.forward{inspect.signature(functional.module.forward)}"
            remedy = "wrap the model in a module whose forward takes one tensor and hands its parts on"
            return complaint("model", "callable with one tensor of inputs, model(x)", received, remedy)
        except ValueError:  # a forward without a signature
            pass
    first = str(error).strip().splitlines()[0] if str(error).strip() else ""
    received = f"shape {list(x.shape)} of {x.dtype}, on which {where} raised {type(error).__name__}: {first}"
    return complaint(name, "a batch that the model accepts", received)


def _check_output(outputs: Any, x: Tensor) -> None:
    if not isinstance(outputs, Tensor):
        received, remedy = type(outputs).__name__, "wrap the model so that forward returns the tensor alone"
        raise TypeError(complaint("model output", "one tensor [n, c]", received, remedy))
    if outputs.ndim != 2 or outputs.shape[0] != x.shape[0] or outputs.shape[1] == 0:
        remedy = "end the model with unsqueeze(-1)"
        if outputs.ndim > 2:
            remedy = "end the model with nn.Flatten(), and give the targets this shape too (or the loss the first one)"
        if outputs.ndim == 0 or outputs.shape[0] != x.shape[0]:
            remedy = "let forward return one row an example, the first axis of its input"
        raise ValueError(complaint("model output", f"[{len(x)}, c] for {len(x)} examples", list(outputs.shape), remedy))
    if not outputs.is_floating_point():
        raise TypeError(complaint("model output", "real and floating-point", outputs.dtype))
    finite_entries("model output", outputs)


def _close(first: Params, second: Params) -> bool:
    """Equal up to the rounding of a differently batched matrix product, on the scale of the largest number of all."""
    scale = max(largest(value) for value in first.values())
    allowed = rounding(next(iter(first.values()))) * scale
    return all(largest(value - second[key].reshape(value.shape)) <= allowed for key, value in first.items())


def _with_vectorization(functional: FunctionalModel, x: Tensor, outputs: Tensor) -> FunctionalModel:
    """The model marked as vectorizing when calls for many examples, and for many parameters, equal a loop.

    Each in value and in two cotangents at once: vmap of a backward pass may be right for one and wrong for two.
    """
    n, c = outputs.shape
    cotangents = draws(2, c, like=outputs)
    expected = _products_by_backward(functional, x, c)

    def one(params: Params, batch: Tensor, cotangents: Tensor) -> tuple[Tensor, Params]:
        pulled = vjp(lambda params: functional.forward(params, batch), params)
        return pulled[0], vectorize(pulled[1])(cotangents)[0]

    values = {key: value.expand(2, *value.shape) for key, value in functional.params.items()}
    turned = torch.stack([x, x.flip(0)])
    mixed = cotangents[:, None] * draws(n, 1, like=outputs)
    sums = {key: _mixed(value, draws(n, 1, like=outputs)) for key, value in expected.items()}
    sums_turned = {key: _mixed(value.flip(0), draws(n, 1, like=outputs)) for key, value in expected.items()}
    each = (functional.params, x[:, None], cotangents[:, None]), (None, 0, None), outputs[:, None], expected
    several = (
        (values, turned, mixed),
        (0, 0, None),
        torch.stack([outputs, outputs.flip(0)]),
        {key: torch.stack([sums[key], sums_turned[key]]) for key in sums},
    )
    for arguments, dims, right_outputs, right_products in (each, several):
        try:
            found, products = vectorize(one, dims)(*arguments)
        except Exception as error:
            if arguments is each[0]:
                _refuse_randomness_and_branches(error, functional)
            return replace(functional, vectorizes=False)
        if not _close({"outputs": right_outputs}, {"outputs": found}) or not _close(right_products, products):
            return replace(functional, vectorizes=False)
    return (
        functional
        if _many_parameters_at_once(functional, values, x, outputs)
        else replace(functional, vectorizes=False)
    )


def _many_parameters_at_once(functional: FunctionalModel, values: Params, x: Tensor, outputs: Tensor) -> bool:
    """Whether a forward pass alone can be vectorized over parameters: some calls are refused outside of a gradient."""
    try:
        found = vectorize(functional.forward, (0, None))(values, x)
    except Exception:
        return False
    return _close({"outputs": outputs.expand(len(found), *outputs.shape)}, {"outputs": found})


def _mixed(products: Tensor, factors: Tensor) -> Tensor:
    """[n, 2, ...] summed over the examples with a factor each, [2, ...]."""
    return torch.tensordot(factors[:, 0], products, 1)


def _refuse_randomness_and_branches(error: Exception, functional: FunctionalModel) -> None:
    where = layer_of(error.__traceback__, functional.module)
    if "data-dependent control flow" in str(error) or ".item()" in str(error):
        remedy = "replace the branch by torch.where, or the number by a tensor"
        received = f"{where}, where a value of the data decides what is computed"
        raise ValueError(complaint("model", "free of control flow that depends on data", received, remedy)) from None
    if "random operation" in str(error):
        raise ValueError(complaint("model", "deterministic", f"{where}, which draws random numbers", EVAL)) from None


def _products_by_backward(functional: FunctionalModel, x: Tensor, n_outputs: int) -> Params:
    """Two vector-Jacobian products an example, [n, 2, ...] by parameter, by plain backward passes."""
    cotangents = draws(2, n_outputs, like=next(iter(functional.params.values())))[:, None]
    try:
        rows = [gradients(functional, functional.params, x[i : i + 1], cotangents) for i in range(len(x))]
    except RuntimeError as error:
        expected = "differentiable in its parameters"
        received = f"an error of the backward pass: {str(error).strip().splitlines()[0]}"
        remedy = "check that forward neither detaches its result nor runs under torch.no_grad()"
        if "heckpoint" in str(error):
            received = (
                f"activation checkpoints{_checkpointed(functional)}, whose second forward pass cannot be followed"
            )
            remedy = "remove torch.utils.checkpoint from forward: memory is not needed here"
        raise ValueError(complaint("model", expected, received, remedy)) from error
    return {name: torch.stack([torch.stack([part[name] for part in row]) for row in rows]) for name in rows[0][0]}


def _checkpointed(functional: FunctionalModel) -> str:
    """The layers whose forward calls a checkpoint, in words."""
    found = []
    for name, layer in functional.module.named_modules() if functional.module is not None else ():
        code = getattr(inspect.unwrap(type(layer).forward), "__code__", None)
        if code is not None and any("checkpoint" in called for called in code.co_names):
            found.append(f"layer {name!r} ({type(layer).__name__})" if name else f"{type(layer).__name__}.forward")
    return " in " + ", ".join(found) if found else ""


def layer_of(traceback: TracebackType | None, module: nn.Module | None) -> str:
    """The innermost of the model's layers on the stack of an error, in words."""
    names = {id(layer): name for name, layer in module.named_modules()} if module is not None else {}
    found = "the model's function"
    while traceback is not None:
        layer = traceback.tb_frame.f_locals.get("self")
        if isinstance(layer, nn.Module) and id(layer) in names:
            found = f"layer {names[id(layer)]!r} ({type(layer).__name__})" if names[id(layer)] else type(layer).__name__
        traceback = traceback.tb_next
    return found
