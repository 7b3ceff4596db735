"""Whether a model may be called for many examples and many parameters at once by ``torch.func``.

Everything vectorized is held against plain calls and plain backward passes, one example after the other: ``vmap`` of a
backward pass may be right for one cotangent and wrong for two, and some calls are refused only outside of a gradient.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.func import vjp

from sgdsde._checks import complaint
from sgdsde._fidelity import draws, largest, rounding
from sgdsde._functional import EVAL, FunctionalModel, pulled, vectorize
from sgdsde._types import Params


@dataclass(frozen=True, eq=False)
class OneByOne:
    """Plain calls, one example at a time.

    Attributes:
        outputs: [n, c]. products: two vector-Jacobian products an example, [n, 2, ...] by parameter.
    """

    outputs: Tensor
    products: Params

    @classmethod
    def of(cls, functional: FunctionalModel, x: Tensor, n_outputs: int) -> OneByOne:
        """Raises ``ValueError`` for a model that has no gradient."""
        cotangents = draws(2, n_outputs, like=next(iter(functional.params.values())))[:, None]
        try:
            rows = [pulled(functional, functional.params, x[i : i + 1], cotangents) for i in range(len(x))]
        except RuntimeError as error:
            raise ValueError(_not_differentiable(functional, error)) from error
        names = rows[0][1][0]
        products = {name: torch.stack([torch.stack([part[name] for part in row]) for _, row in rows]) for name in names}
        return cls(torch.cat([outputs for outputs, _ in rows]), products)

    def summed(self, order: list[int], factors: Tensor) -> Params:
        """The products of a batch of these examples in this order, [2, ...], with a factor each."""
        return {name: torch.tensordot(factors, value[order], 1) for name, value in self.products.items()}


def with_vectorization(functional: FunctionalModel, x: Tensor, plain: OneByOne) -> FunctionalModel:
    """The model marked as vectorizing when calls for many examples, and for many parameters, equal a loop.

    Raises:
        ValueError: it draws random numbers, or branches on data; names the layer.
    """
    cotangents = draws(2, plain.outputs.shape[1], like=plain.outputs)

    def one(params: Params, batch: Tensor, cotangents: Tensor) -> tuple[Tensor, Params]:
        outputs, pull, *_ = vjp(lambda params: functional.forward(params, batch), params)
        return outputs, vectorize(pull)(cotangents)[0]

    try:
        outputs, products = vectorize(one, (None, 0, None))(functional.params, x[:, None], cotangents[:, None])
    except Exception as error:
        _refuse_randomness_and_branches(error, functional)
        return replace(functional, vectorizes=False)
    fine = close({"outputs": plain.outputs[:, None]}, {"outputs": outputs}) and close(plain.products, products)
    return functional if fine and _many_parameters(functional, x, plain, one) else replace(functional, vectorizes=False)


def _many_parameters(functional: FunctionalModel, x: Tensor, plain: OneByOne, one: object) -> bool:
    """Whether batches may be taken for many parameters at once, forward alone and backward."""
    assert callable(one)
    n, params = len(x), {key: value.expand(2, *value.shape) for key, value in functional.params.items()}
    factors, turned = draws(n, like=plain.outputs), list(range(n))[::-1]
    mixed = draws(2, 1, plain.outputs.shape[1], like=plain.outputs) * factors[:, None]
    try:
        forward = vectorize(functional.forward, (0, None))(params, x)
        outputs, products = vectorize(one, (0, 0, None))(params, torch.stack([x, x[turned]]), mixed)
    except Exception:
        return False
    both = [plain.summed(order, factors) for order in (list(range(n)), turned)]
    expected = {key: torch.stack([part[key] for part in both]) for key in params}
    values = torch.stack([plain.outputs, plain.outputs[turned], plain.outputs, plain.outputs])
    return close({"": values}, {"": torch.cat([outputs, forward])}) and close(expected, products)


def close(first: Params, second: Params) -> bool:
    """Equal up to the rounding of a differently batched matrix product, on the scale of the largest number of all."""
    scale = max(largest(value) for value in first.values())
    allowed = rounding(next(iter(first.values()))) * scale
    return all(largest(value - second[key].reshape(value.shape)) <= allowed for key, value in first.items())


def _refuse_randomness_and_branches(error: Exception, functional: FunctionalModel) -> None:
    where = layer_of(error.__traceback__, functional.module)
    if "data-dependent control flow" in str(error) or ".item()" in str(error):
        remedy = "replace the branch by torch.where, or the number by a tensor"
        received = f"{where}, where a value of the data decides what is computed"
        raise ValueError(complaint("model", "free of control flow that depends on data", received, remedy)) from None
    if "random operation" in str(error):
        raise ValueError(complaint("model", "deterministic", f"{where}, which draws random numbers", EVAL)) from None


def _not_differentiable(functional: FunctionalModel, error: Exception) -> str:
    received = f"an error of the backward pass: {str(error).strip().splitlines()[0]}"
    remedy = "check that forward neither detaches its result nor runs under torch.no_grad()"
    if "heckpoint" in str(error):
        received = f"activation checkpoints{_checkpointed(functional)}, whose second forward pass cannot be followed"
        remedy = "remove torch.utils.checkpoint from forward: memory is not needed here"
    return complaint("model", "differentiable in its parameters", received, remedy)


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
