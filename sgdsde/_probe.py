"""Probe of a model: is it a deterministic function of its parameters and of one example at a time?"""

from __future__ import annotations

from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp

from sgdsde._checks import complaint, finite_entries
from sgdsde._functional import EVAL, FunctionalModel, jacobian_row, vectorize
from sgdsde._types import Params


def probe(
    functional: FunctionalModel, x: Tensor, name: str = "x", *, vectorization: bool = True
) -> tuple[FunctionalModel, Tensor]:
    """The model with ``vectorizes`` known, and its outputs on at most two examples of x [n, ...], called ``name``.

    Compares one batch of two different examples with a repetition of itself (randomness, buffers, inputs), with single
    examples (coupling between them) and with vectorized calls (control flow that depends on data), the last in value
    and in one vector-Jacobian product an example.

    Raises:
        ValueError: naming the layer where it is known.
    """
    x = _two_examples(x)
    cuda = [functional.device] if functional.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), torch.no_grad():
        together = _unchanging(functional, x, name)
        if vectorization:
            functional = _with_vectorization(functional, x, together)
        again = functional.forward(functional.params, x)
        alone = torch.cat([functional.forward(functional.params, x[i : i + 1]) for i in range(len(x))])
        repeats, separate = torch.equal(together, again), _close({"outputs": together}, {"outputs": alone})
        if not vectorization and not (repeats and separate):
            _with_vectorization(functional, x, together)  # which names the layer that is to blame
    if not repeats:
        raise ValueError(complaint("model", "deterministic", "two different outputs for the same input", EVAL))
    if not separate:
        remedy = "replace batch statistics by LayerNorm or GroupNorm, or use eval mode"
        received = "an output that changes with the other examples of the batch"
        raise ValueError(complaint("model", "a function of one example at a time", received, remedy))
    return functional, together


def _two_examples(x: Tensor) -> Tensor:
    """A copy of the first example and of the next that differs from it: equal ones would hide a coupling."""
    different = (x != x[:1]).flatten(1).any(1) if x.ndim > 1 else x != x[:1]
    second = int(different.int().argmax()) or 1
    return torch.cat([x[:1], x[second : second + 1]])


def _unchanging(functional: FunctionalModel, x: Tensor, name: str) -> Tensor:
    """Outputs at x, of a forward pass that writes to no buffer and not to x."""
    versions = {key: value._version for key, value in functional.constants.items()}
    written, after = x._version, dict(functional.constants)
    try:
        outputs = functional.forward(functional.params, x)
        if (
            functional.module is not None and functional.constants
        ):  # once more, to see which buffers forward puts others in place of
            everything = {**functional.params, **functional.constants}
            functional_call(functional.module, everything, (x.clone(),))
            after = {key: everything[key] for key in after}
    except Exception as error:
        where = layer_of(error.__traceback__, functional.module)
        received = f"shape {list(x.shape)} of {x.dtype}, on which {where} raised {type(error).__name__}: {error}"
        raise ValueError(complaint(name, "a batch that the model accepts", received)) from error
    constants = functional.constants
    changed = [key for key, v in constants.items() if after[key] is not v or v._version != versions[key]]
    if changed:
        remedy = "call model.eval(), or remove the update of the buffer from forward"
        raise ValueError(complaint(f"buffer {changed[0]!r}", "constant", "changed by a forward pass", remedy))
    if x._version != written:
        remedy = "use inplace=False in its first layer"
        raise ValueError(complaint("model", "a function that leaves its input as it is", "a changed input", remedy))
    _check_output(outputs, x)
    return outputs


def _check_output(outputs: Any, x: Tensor) -> None:
    if not isinstance(outputs, Tensor):
        received, remedy = type(outputs).__name__, "wrap the model so that forward returns the tensor alone"
        raise TypeError(complaint("model output", "one tensor [n, c]", received, remedy))
    if outputs.ndim != 2 or outputs.shape[0] != x.shape[0] or outputs.shape[1] == 0:
        remedy = "end the model with nn.Flatten() or unsqueeze(-1)"
        raise ValueError(complaint("model output", f"[{len(x)}, c] for {len(x)} examples", list(outputs.shape), remedy))
    if not outputs.is_floating_point():
        raise TypeError(complaint("model output", "real and floating-point", outputs.dtype))
    finite_entries("model output", outputs)


def _close(first: Params, second: Params) -> bool:
    """Equal up to the rounding of a differently batched matrix product, on the scale of the largest number of all."""
    scale = max(_largest(value) for value in first.values())
    allowed = _tolerance(next(iter(first.values()))) * scale
    return all(_largest(value - second[key].reshape(value.shape)) <= allowed for key, value in first.items())


def _largest(value: Tensor) -> float:
    """The largest absolute value, without a copy of so many numbers; NaN where there is one."""
    return max(abs(float(extreme)) for extreme in torch.aminmax(value))


def _tolerance(like: Tensor) -> float:
    if like.is_cuda and like.dtype == torch.float32:
        return 1e-2  # products may run in TF32, whose numbers have ten bits
    return torch.finfo(like.dtype).eps ** 0.75


def _with_vectorization(functional: FunctionalModel, x: Tensor, outputs: Tensor) -> FunctionalModel:
    """The model marked as vectorizing when a call for many examples, and one for many parameters, equals a loop."""
    weights = torch.cos(torch.arange(1.0, outputs.shape[1] + 1, dtype=outputs.dtype, device=outputs.device))
    expected = _products_by_backward(functional, x, weights)

    def one(params: Params, example: Tensor) -> tuple[Tensor, Params]:
        pulled = vjp(lambda params: functional.forward(params, example[None])[0], params)
        return pulled[0], vectorize(pulled[1])(weights[None])[0]

    copies = {key: value.expand(len(x), *value.shape) for key, value in functional.params.items()}
    for params, dims in ((functional.params, (None, 0)), (copies, (0, 0))):
        try:
            values, products = vectorize(one, dims)(params, x)
        except Exception as error:
            if params is not copies:
                _refuse_randomness_and_branches(error, functional)
            return replace(functional, vectorizes=False)
        if not _close({"outputs": outputs}, {"outputs": values}) or not _close(expected, products):
            return replace(functional, vectorizes=False)
    return functional


def _refuse_randomness_and_branches(error: Exception, functional: FunctionalModel) -> None:
    where = layer_of(error.__traceback__, functional.module)
    if "data-dependent control flow" in str(error) or ".item()" in str(error):
        remedy = "replace the branch by torch.where, or the number by a tensor"
        received = f"{where}, where a value of the data decides what is computed"
        raise ValueError(complaint("model", "free of control flow that depends on data", received, remedy)) from None
    if "random operation" in str(error):
        raise ValueError(complaint("model", "deterministic", f"{where}, which draws random numbers", EVAL)) from None


def _products_by_backward(functional: FunctionalModel, x: Tensor, weights: Tensor) -> Params:
    try:
        rows = [jacobian_row(functional, functional.params, x[i : i + 1], weights) for i in range(len(x))]
    except RuntimeError as error:
        received = f"an error of the backward pass: {error}"
        remedy = "check that forward neither detaches its result nor runs under torch.no_grad()"
        raise ValueError(complaint("model", "differentiable in its parameters", received, remedy)) from error
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


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
