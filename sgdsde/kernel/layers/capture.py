"""Calls in which a model uses its parameters, and the gradients at the results of these calls."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp
from torch.overrides import TorchFunctionMode

from sgdsde._fidelity import tensors
from sgdsde._functional import FunctionalModel, vectorize
from sgdsde._types import Params
from sgdsde.kernel.layers.parameter_uses import Alias, Use
from sgdsde.kernel.layers.torch_calls import Call, derived, read


@dataclass(frozen=True)
class Watched:
    """The calls of a model in which parameters act in a known way, and the parameters that act in others too.

    Attributes:
        uses: in the order of the calls. rejected: by name, the call that is not known.
        final: the call whose result is returned as it is, or None.
    """

    uses: tuple[Use, ...]
    rejected: dict[str, str] = field(default_factory=dict)
    final: int | None = None


@dataclass(frozen=True)
class Observation:
    """A block of b examples: for every use its input [b, ...] and the gradients [b, c, ...] at its result.

    Attributes:
        sources: None where no weight needs it. deltas: for c cotangents. gradients: Jacobians [b, c, ...] of the rest.
    """

    sources: tuple[Tensor | None, ...]
    deltas: tuple[Tensor, ...]
    gradients: Params

    def weighted(self, weights: Tensor) -> Observation:
        """Observation with each cotangent of each example multiplied by its number, [b, c]."""

        def times(value: Tensor) -> Tensor:
            return value * weights.view(*weights.shape, *(1 for _ in value.shape[2:]))

        gradients = {name: times(value) for name, value in self.gradients.items()}
        return Observation(self.sources, tuple(times(delta) for delta in self.deltas), gradients)


def discover(functional: FunctionalModel, names: Iterable[str], example: Tensor) -> Watched:
    """The uses of the named parameters in a forward pass of one example [1, ...]."""
    recorder = Recorder({name: functional.params[name] for name in names})
    with torch.no_grad(), recorder:
        outputs = functional.forward(functional.params, example)
    return Watched(tuple(recorder.uses), recorder.rejected, recorder.final(outputs))


def observe(
    functional: FunctionalModel, watched: Watched, others: Iterable[str], x: Tensor, *, cotangents: Tensor
) -> Observation:
    """Inputs and gradients of the watched calls at the examples x [b, ...] for cotangents [c', c], by one vjp.

    A zero is added to the result of every watched call; the gradient with respect to it is the gradient there. Each
    example runs by itself under ``vmap``, so that it does not matter where the model keeps its batch axis.
    """
    params = functional.params
    names = {alias.name for use in watched.uses for alias in (use.weight, use.bias) if alias is not None}
    rest = {name: params[name] for name in others}

    def one(example: Tensor) -> tuple[Any, Any]:
        def outputs(taps: list[Tensor], rest: Params) -> tuple[Tensor, tuple[Tensor, ...]]:
            recorder = Recorder({name: params[name] for name in names}, taps)
            with recorder:
                value = functional.forward({**params, **rest}, example[None])[0]
            if tuple(recorder.uses) != watched.uses:
                raise RuntimeError("the model calls its layers otherwise than it did before")
            return value, tuple(recorder.sources)

        taps = [torch.zeros(use.outputs, dtype=functional.dtype, device=functional.device) for use in watched.uses]
        pulled: Any = vjp(outputs, taps, rest, has_aux=True)
        _, pull, sources = pulled
        return vectorize(pull)(cotangents), sources

    (deltas, gradients), kept = vectorize(one)(x)
    remaining = iter(kept)
    sources = tuple(None if use.weight is None else next(remaining) for use in watched.uses)
    return Observation(sources, tuple(deltas), gradients)


class Recorder(TorchFunctionMode):
    """Observer of the calls that a model makes, recognizing parameters by the identity of their tensors."""

    def __init__(self, params: Params, taps: list[Tensor] | None = None) -> None:
        super().__init__()
        self.uses: list[Use] = []
        self.sources: list[Tensor] = []
        self.rejected: dict[str, str] = {}
        self._taps = taps
        self._results: list[tuple[Tensor, int]] = []
        self._known: dict[int, Alias] = {}
        self._alive: list[Tensor] = []  # an id means something only as long as its tensor lives
        for name, value in params.items():
            self._remember(value, Alias(name, 1.0, False, tuple(value.shape)))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        found = [alias for value in tensors((args, kwargs)) if (alias := self._alias(value)) is not None]
        if not found:
            return func(*args, **kwargs)
        call = read(func, args, kwargs, self._alias)
        if call is not None and self._complete(call, found):
            return self._watched(func, args, kwargs, call)
        opened = _opened(func)
        if opened is not None:
            with self:
                return opened(*args, **kwargs)
        result = func(*args, **kwargs)
        alias = None if kwargs else derived(func, args, result, self._alias)
        if alias is not None:
            self._remember(result, alias)
        elif any(True for _ in tensors(result)):
            self._reject(found, func)
        return result

    def final(self, outputs: Tensor) -> int | None:
        """The use whose result is the very tensor that was returned, and was not changed in place."""
        found = [i for i, (result, version) in enumerate(self._results) if result is outputs]
        return found[0] if found and self._results[found[0]][1] == outputs._version else None

    def _watched(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], call: Call) -> Any:
        result = func(*args, **kwargs) if call.instead is None else call.instead()
        weight, bias = self._alias(call.weight), self._alias(call.bias)
        parameter = call.bias if weight is None else call.weight
        assert parameter is not None
        if not isinstance(result, Tensor) or result.dtype != parameter.dtype:
            self._reject([alias for alias in (weight, bias) if alias is not None], func)
            return result
        inputs: tuple[int, ...] = ()
        if weight is not None:
            source = call.source()
            inputs = tuple(source.shape)
            self.sources.append(source)
        shape = tuple(result.shape)
        use = Use(
            call.kind, weight, bias, shape, inputs, call.flipped, call.geometry, call.ignored, _view(call, parameter)
        )
        self.uses.append(use)
        if self._taps is None:
            self._results.append((result, result._version))
            return result
        place = len(self.uses) - 1
        if place >= len(self._taps) or self._taps[place].shape != shape:
            return result  # not the calls that were expected: the caller finds out
        return result + self._taps[place]

    def _complete(self, call: Call, found: list[Alias]) -> bool:
        """Whether the parameters found among the arguments are the call's weight and bias, and nothing else."""
        roles = [alias for value in (call.weight, call.bias) if (alias := self._alias(value)) is not None]
        return len(roles) == len(found)

    def _reject(self, found: list[Alias], func: Callable[..., Any]) -> None:
        for alias in found:
            self.rejected.setdefault(alias.name, getattr(func, "__name__", str(func)))

    def _alias(self, value: Any) -> Alias | None:
        return self._known.get(id(value)) if isinstance(value, Tensor) else None

    def _remember(self, value: Tensor, alias: Alias) -> None:
        self._known[id(value)] = alias
        self._alive.append(value)


def _view(call: Call, parameter: Tensor) -> tuple[int, ...] | None:
    if call.kind != "scale":
        return None
    return tuple(parameter.shape) if call.view is None else call.view


def _opened(func: Callable[..., Any]) -> Callable[..., Any] | None:
    """A twin of a Python function of torch.nn.functional whose inner calls can be watched.

    These functions hand themselves to the mode before they do anything; the twin finds nobody to hand itself to.
    """
    if not isinstance(func, types.FunctionType) or func.__module__ != "torch.nn.functional":
        return None
    nobody = dict.fromkeys(
        ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"), lambda *args: False
    )
    twin = types.FunctionType(
        func.__code__, {**func.__globals__, **nobody}, func.__name__, func.__defaults__, func.__closure__
    )
    twin.__kwdefaults__ = func.__kwdefaults__
    return twin
