"""Whether a private copy is the user's model: it reads no weights but those it is given, writes to none, has the
outputs and gradients of the original, and its backward pass is the derivative of its forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from sgdsde._checks import complaint
from sgdsde._functional import FunctionalModel, pulled
from sgdsde._types import Params

WRITERS = {"__setitem__", "__set__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__", "__imatmul__"}
HARMLESS = {"requires_grad_", "detach_"}

EXAMPLES = 8
"""Different examples that a batch of the checks holds."""

NOWHERE = -1
"""In place of an address, of a tensor without memory of its own."""

STEPS = (1e-6, 1e-8, 1e-4, 1e-10, 1e-12)
"""Lengths of the finite differences, relative to the weights; each is tried until one agrees."""

COARSE_STEPS = (1e-2, 1e-3, 1e-4)
"""The same for models that compute in single precision only."""

AGREEMENT = 1e-3
COARSE_AGREEMENT = 0.1
"""Of a finite difference with a backward pass: straight-through and reversed gradients are off by far more."""


class Watch(TorchFunctionMode):
    """Notes which tensors' memory a forward pass reads or changes.

    Args:
        foreign: tensors by name that it must not read. given: tensors by name that it must not change.
    """

    def __init__(self, foreign: list[tuple[str, Tensor]], given: Params) -> None:
        super().__init__()
        self._foreign = {_storage(value): name for name, value in foreign if _storage(value) != NOWHERE}
        self._given = {_storage(value): name for name, value in given.items()}
        self.read: list[str] = []
        self.written: list[str] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        changed = [kwargs["out"]] if isinstance(kwargs.get("out"), Tensor) else []
        if name in WRITERS or (name.endswith("_") and not name.endswith("__") and name not in HARMLESS):
            changed += [value for value in args[:1] if isinstance(value, Tensor)]
        self.written += [self._given[key] for value in changed if (key := _storage(value)) in self._given]
        read = [self._foreign[key] for value in tensors((args, kwargs)) if (key := _storage(value)) in self._foreign]
        result = func(*args, **kwargs)
        makes_new = name.startswith("new_") or name.endswith("_like")  # take shape and dtype, not the numbers
        if read and not makes_new and any(True for _ in tensors(result)):
            self.read += read
        return result


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))


def _storage(value: Tensor) -> int:
    try:
        return value.untyped_storage().data_ptr() or NOWHERE
    except (RuntimeError, NotImplementedError):  # inside of torch.func, or without memory of its own
        return NOWHERE


def watched_forward(functional: FunctionalModel, x: Tensor) -> tuple[Any, str]:
    """What a forward pass on copies of the weights returns, and what is wrong with it in words ("" if nothing):

    it reads the tensors that are no copies, or writes to parameters or buffers.
    """
    given = {name: value.clone() for name, value in functional.params.items()}
    everything = {**functional.named(given), **functional.constants}
    before, versions = dict(everything), {name: value._version for name, value in everything.items()}
    with Watch([*functional.params.items(), *functional.outside.items()], given) as watch, sdpa_kernel(SDPBackend.MATH):
        if functional.module is None:
            outputs = functional.call(given, x)
        else:  # puts into the dict what forward puts in place of a parameter or a buffer
            outputs = functional_call(functional.module, everything, (x,))
    outputs = outputs.detach() if isinstance(outputs, Tensor) else outputs
    changed = [key for key, v in before.items() if everything[key] is not v or v._version != versions[key]]
    changed += watch.written + [key for key, value in functional.params.items() if not torch.equal(given[key], value)]
    if changed:
        return outputs, _changed(functional, changed[0])
    return outputs, _reached(functional, watch.read[0]) if watch.read else ""


def _changed(functional: FunctionalModel, name: str) -> str:
    if name in functional.constants:
        remedy = "call model.eval(), or remove the update of the buffer from forward"
        return complaint(f"buffer {name!r}", "constant", "changed by a forward pass", remedy)
    received = f"changed by a forward pass{_owner(functional, name)}"
    remedy = "remove what writes to it (max_norm of an embedding, a clamp): the theory knows the steps of SGD alone"
    return complaint(f"parameter {name!r}", "left as it is by forward", received, remedy)


def _reached(functional: FunctionalModel, name: str) -> str:
    received = f"one that uses the tensor {name!r}{_owner(functional, name)} past the module, as a constant"
    remedy = (
        "read it from self in forward: a closure, lambda, global, list or dict keeps the tensor that it was made with "
        "(undo a wrapped forward; register layers in nn.ModuleList or nn.ModuleDict, tensors in nn.ParameterDict)"
    )
    return complaint("forward", "a function of the parameters that it is called with", received, remedy)


def _owner(functional: FunctionalModel, name: str) -> str:
    if functional.module is None:
        return ""
    owner = name.rpartition(".")[0]
    return f" of layer {owner!r} ({type(functional.module.get_submodule(owner)).__name__})" if owner else ""


def check_is_the_original(functional: FunctionalModel, x: Tensor) -> None:
    """Compares outputs and two backward passes at x [n, ...], each at the user's own weights, with the user's module.

    Raises:
        ValueError: they differ by more than rounding; names the parameter.
    """
    original = functional.original
    if original is None:
        return
    named = {name: value for name, value in original.named_parameters() if value.requires_grad and value.numel()}
    versions = {name: value._version for name, value in original.named_buffers()}
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        outputs = original(x)
        cotangents = draws(2, *outputs.shape, like=outputs)
        own = [
            torch.autograd.grad(outputs, list(named.values()), u, retain_graph=True, allow_unused=True)
            for u in cotangents
        ]
    at = {name: named[name].detach() for name in functional.params}
    mine, mine_pulled = pulled(functional, at, x, cotangents)
    changed = [name for name, value in original.named_buffers() if value._version != versions[name]]
    if changed or largest(outputs.detach() - mine) > rounding(mine) * largest(mine):
        received = f"a change of buffer {changed[0]!r}" if changed else "a copy with other outputs"
        remedy = "remove state that survives a call, or pass a pair (f, params)"
        raise ValueError(complaint("model", "the same after copy.deepcopy", received, remedy))
    for parts, found in zip(own, mine_pulled):
        expected = _joined(functional, dict(zip(named, parts)))
        scale = max([largest(value) for value in expected.values()] + [largest(value) for value in found.values()])
        for name, value in expected.items():
            if largest(value - found[name]) > rounding(value) * scale:
                raise ValueError(_reached(functional, name))


def _joined(functional: FunctionalModel, parts: dict[str, Tensor | None]) -> Params:
    """Gradients by parameter; those of names that share its memory added, as SGD adds them."""
    total: Params = {}
    for name, value in functional.params.items():
        layouts = [tie.layout for tie in functional.shared.values() if tie.source == name]
        flat = value.new_zeros(value.numel())
        total[name] = flat.as_strided(*layouts[0]) if layouts else flat.view(value.shape)
    for name, part in parts.items():
        if part is None:
            continue
        tie = functional.shared.get(name)
        place = total[name] if tie is None else tie.of(total[tie.source])
        place += part.to_dense()
    return total


def check_derivative(functional: FunctionalModel, x: Tensor) -> Tensor:
    """Compares how outputs move along one gradient with two backward passes, near the initial weights.

    What counts is that SGD's own steps move the outputs as the backward pass says; weights that it never moves, behind
    a ``detach``, may do what they like. Not at the initial weights themselves: zeros often lie on a kink.

    Returns:
        The outputs near the initial weights, at a few of the examples x.
    Raises:
        ValueError: a straight-through estimator, a reversed or scaled gradient, a value used beside its derivative.
    """
    x, near = x[few(len(x))], _neighbor(functional.params)
    with torch.no_grad():
        cotangents = draws(2, len(x), functional.n_outputs, like=next(iter(near.values())))
        outputs, gradients = pulled(functional, near, x, cotangents)
        length = _norm(gradients[0])
        if not 0 < length < float("inf"):
            return outputs
        line = _Line(
            functional, x, near, {name: part.double() / length for name, part in gradients[0].items()}, cotangents
        )
        expected = torch.stack([_product(part, line.direction) for part in gradients])
        if not line.has_slopes(expected, length):
            received = "one whose outputs move otherwise along a step of SGD than its backward pass says"
            remedy = "remove straight-through estimators, reversed or scaled gradients, detach() and .data from forward"
            expected_of_it = "one whose backward pass is the derivative of its forward pass"
            raise ValueError(complaint("model", expected_of_it, received, remedy))
    return outputs


@dataclass(frozen=True, eq=False)
class _Line:
    """The weights near + t direction, and two cotangents of the outputs at x."""

    functional: FunctionalModel
    x: Tensor
    near: Params
    direction: Params
    cotangents: Tensor

    def has_slopes(self, expected: Tensor, scale: float) -> bool:
        """Whether the outputs' derivative by t has these products with the cotangents."""
        dtype, size = self.functional.dtype, _norm(self.near)
        allowed = COARSE_AGREEMENT if dtype.itemsize < 4 else AGREEMENT
        try:
            errors = (self._error(step * size, expected, torch.float64) for step in STEPS)
            return any(error <= allowed * scale for error in errors)
        except (RuntimeError, TypeError):
            if dtype == torch.float64:
                raise
        # Forward makes tensors of a dtype of its own.
        errors = (self._error(step * size, expected, dtype) for step in COARSE_STEPS)
        return any(error <= COARSE_AGREEMENT * scale for error in errors)

    def _error(self, step: float, expected: Tensor, dtype: torch.dtype) -> float:
        x = self.x.to(dtype) if self.x.is_floating_point() else self.x
        ends = [self.functional.forward(self._at(shift, dtype), x) for shift in (step, -step)]
        if ends[0].dtype != dtype:
            raise TypeError("forward computes in a dtype of its own")
        slope = (ends[0].double() - ends[1].double()) / (2 * step)
        found = (self.cotangents.double() * slope).flatten(1).sum(1)
        return float((found - expected).abs().max())

    def _at(self, shift: float, dtype: torch.dtype) -> Params:
        return {name: (value.double() + shift * self.direction[name]).to(dtype) for name, value in self.near.items()}


def _neighbor(params: Params) -> Params:
    """Weights a hundredth of their size away, in a direction that is always the same."""
    generator = torch.Generator().manual_seed(1)
    near = {}
    for name, value in params.items():
        size = float(value.double().square().mean().sqrt()) or 1.0
        near[name] = value + 0.01 * size * torch.randn(value.shape, generator=generator).to(value)
    return near


def _product(first: Params, second: Params) -> Tensor:
    return torch.stack([(first[name].double() * value).sum() for name, value in second.items()]).sum()


def _norm(params: Params) -> float:
    return sum(float(part.double().square().sum()) for part in params.values()) ** 0.5


def few(n: int) -> list[int]:
    """At most eight different rows of n, from the first to the last."""
    count = min(n, EXAMPLES)
    return [(n - 1) * i // max(count - 1, 1) for i in range(count)]


def draws(*shape: int, like: Tensor) -> Tensor:
    """Normal numbers, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(like)


def largest(value: Tensor) -> float:
    """The largest absolute value, without a copy of so many numbers; NaN where there is one, 0 of nothing."""
    if value.numel() == 0:
        return 0.0
    return max(abs(float(extreme)) for extreme in torch.aminmax(value))


def rounding(like: Tensor) -> float:
    """What a sum taken in another order may change, relative to the largest number."""
    if like.is_cuda and like.dtype == torch.float32:
        return 1e-2  # products may run in TF32, whose numbers have ten bits
    return torch.finfo(like.dtype).eps ** 0.75
