"""Probe of a model: is it a deterministic function of its parameters and of one example at a time?"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sgdsde._captured import check_nothing_is_captured
from sgdsde._checks import complaint, finite_entries
from sgdsde._fidelity import check_is_the_original, draws, few, largest, rounding, watched_forward
from sgdsde._functional import EVAL, FunctionalModel
from sgdsde._vectorization import OneByOne, close, layer_of, with_vectorization

CROWD = 64
"""Examples of the batch in which coupling is looked for: experts with a capacity couple only when they are full."""


def probe(
    functional: FunctionalModel, x: Tensor, name: str = "x", *, vectorization: bool = True
) -> tuple[FunctionalModel, Tensor]:
    """The model with ``vectorizes`` and ``n_outputs`` known, and its outputs at two examples of x, called ``name``.

    Compares a batch of two different examples with a repetition of itself (randomness, buffers, inputs), with single
    examples and a crowd (coupling between them), with vectorized calls (control flow that depends on data) in value and
    in two vector-Jacobian products at once, and with the user's own module (``_fidelity``); looks for tensors that
    require gradients and are no parameters (``_captured``).

    Raises:
        ValueError: naming the layer where it is known.
    Cost: some thirty training steps.
    """
    two, some = _two_examples(x), x[few(len(x))]
    cuda = [functional.device] if functional.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), torch.no_grad():
        outputs = _unchanging(functional, two, name)
        plain = OneByOne.of(functional, two, outputs.shape[1])
        if vectorization:
            functional = with_vectorization(functional, two, plain)
        repeats = close({"outputs": outputs}, {"outputs": functional.forward(functional.params, two)})
        apart = close({"outputs": outputs}, {"outputs": plain.outputs}) and _is_apart(functional, two, some, plain)
        if not vectorization and not (repeats and apart):
            with_vectorization(functional, two, plain)  # which names the layer that is to blame
        if not repeats:
            raise ValueError(complaint("model", "deterministic", "two different outputs for the same input", EVAL))
        if not apart:
            _refuse_chaos(functional, two, plain)
            where, remedy = _coupling_layer(functional, _crowd(two, some))
            received = f"an output that changes with the other examples of the batch{where}"
            raise ValueError(complaint("model", "a function of one example at a time", received, remedy))
        check_is_the_original(functional, some)
        check_nothing_is_captured(functional, two)
    return replace(functional, n_outputs=outputs.shape[1], original=None, outside={}), outputs


def probe_vectorization(functional: FunctionalModel, x: Tensor) -> FunctionalModel:
    """A model that was probed without it, with ``vectorizes`` known."""
    two = _two_examples(x)
    with torch.no_grad():
        return with_vectorization(functional, two, OneByOne.of(functional, two, functional.n_outputs))


def _two_examples(x: Tensor) -> Tensor:
    """A copy of the first example and of the next that differs from it: equal ones would hide a coupling."""
    different = (x != x[:1]).flatten(1).any(1) if x.ndim > 1 else x != x[:1]
    second = int(different.int().argmax()) or 1
    return torch.cat([x[:1], x[second : second + 1]])


def _crowd(two: Tensor, some: Tensor) -> Tensor:
    """Two examples, some others, and the first again and again."""
    return torch.cat([two, some, two[:1].expand(CROWD - len(two) - len(some), *two.shape[1:])])


def _is_apart(functional: FunctionalModel, two: Tensor, some: Tensor, plain: OneByOne) -> bool:
    """Whether the outputs of two examples are the same in a crowd, and everywhere in it."""
    together = functional.forward(functional.params, _crowd(two, some))
    others = len(two) + len(some)
    expected = torch.cat([plain.outputs, plain.outputs[:1].expand(CROWD - others, -1)])
    if together.shape != (CROWD, expected.shape[1]):
        return False
    return close({"outputs": expected}, {"outputs": torch.cat([together[: len(two)], together[others:]])})


def _refuse_chaos(functional: FunctionalModel, x: Tensor, plain: OneByOne) -> None:
    """Raises ``ValueError`` where a change of the weights in their last digit moves the outputs as visibly."""
    eps = torch.finfo(functional.dtype).eps
    nudged = {
        name: value * (1 + eps * torch.sign(draws(*value.shape, like=value)))
        for name, value in functional.params.items()
    }
    alone = plain.outputs[:1]
    moved = largest(functional.forward(nudged, x[:1]) - alone) / (largest(alone) or 1.0)
    if moved > rounding(alone):
        received = f"outputs that move by {moved:.1e} of their size where the weights move by {eps:.1e}"
        remedy = "use model.double(), fewer layers, or weights nearer to the edge of chaos (sgdsde.meanfield)"
        raise ValueError(complaint("model", "one that does not amplify rounding", received, remedy))


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

    def ends(crowd: Tensor) -> tuple[Tensor, Tensor]:  # the first example is the last one too
        return crowd[:1], crowd[-1:]

    for (layer, crowd), (other, alone) in zip(seen[:calls], seen[calls:]):
        crowd, alone = (value[0] if isinstance(value, tuple) and value else value for value in (crowd, alone))
        both = isinstance(crowd, Tensor) and isinstance(alone, Tensor) and crowd.ndim and alone.ndim
        comparable = layer is other and both
        if comparable and not all(row.shape == alone.shape and close({"": alone}, {"": row}) for row in ends(crowd)):
            kind = type(layer).__name__
            label = f", in layer {names[layer]!r} ({kind})" if names[layer] else f", in {kind}.forward"
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
    remedy = ""
    if "does not require grad" in first:
        remedy = "where forward takes a derivative itself, use torch.func.grad, or torch.enable_grad() around it"
    return complaint(name, "a batch that the model accepts", received, remedy)


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
