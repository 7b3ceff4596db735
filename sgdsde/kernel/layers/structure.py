"""Structure of a kernel, found by observing one forward pass and checked against one backward pass."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sgdsde._fidelity import draws
from sgdsde._functional import FunctionalModel
from sgdsde._types import Params
from sgdsde.kernel.layers.capture import Observation, Watched, discover, observe
from sgdsde.kernel.layers.parameter_terms import Term, deltas_of, inputs_of, jacobian_of, terms_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Structure:
    """The terms of a kernel and the calls that they come from.

    Attributes:
        terms: one for each parameter, or for a weight with its bias. watched: the calls.
        others: parameters whose Jacobian comes from torch.func, since they act in calls that are not known.
    """

    terms: tuple[Term, ...]
    watched: Watched
    others: tuple[str, ...]

    def observe(self, functional: FunctionalModel, x: Tensor, cotangents: Tensor) -> Observation:
        """Inputs of the calls and gradients at their results, for the examples x."""
        return observe(functional, self.watched, self.others, x, cotangents=cotangents)


def structure_of(functional: FunctionalModel, params: Params, x: Tensor, n_outputs: int) -> Structure | None:
    """The structure of the kernel of these parameters, or None where only plain Jacobians are right.

    It is compared with a plain backward pass at four examples, for two cotangents at once: a parameter whose gradient
    differs by more than rounding, or that no call was seen to use although the gradient knows it, acts where nothing
    can watch and is given to torch.func; a model that cannot be watched at all to plain Jacobians. Both are logged as
    warnings, because they cost time.
    """
    if not functional.vectorizes:
        return None
    try:
        return _checked(functional, params, x[_spread(len(x))], n_outputs)
    except MemoryError:
        raise
    except Exception as error:  # whatever a model may raise in a mode that it was not written for
        logger.warning("the kernel is made from plain Jacobians, slowly: watching the model failed with %s", error)
        return None


def _spread(n: int) -> list[int]:
    """Four examples, from the first to the last."""
    return [(n - 1) * i // 3 for i in range(4)]


def _checked(functional: FunctionalModel, params: Params, x: Tensor, n_outputs: int) -> Structure | None:
    like = next(iter(params.values()))
    cotangents, factors = draws(2, n_outputs, like=like), draws(len(x), 2, like=like)
    expected, idle = _gradient(functional, params, x, factors @ cotangents)
    acting = {name: value for name, value in params.items() if name not in idle}
    structure = _watched(functional, acting, (), x[:1])
    for _ in range(2):
        seen = structure.observe(functional, x, cotangents)
        unseen = set(acting) - {name for term in structure.terms for name in (term.name, term.bias)}
        wrong = _wrong(_structured_gradient(structure, acting, seen.weighted(factors)), expected)
        wrong += [name for name in acting if name in unseen and name not in wrong]
        if not wrong:
            return _with_deltas(structure, seen)
        logger.warning("parameters that act where they cannot be watched, left to torch.func: %s", ", ".join(wrong))
        structure = _watched(functional, acting, {*structure.others, *wrong}, x[:1])
    logger.warning("the kernel is made from plain Jacobians, slowly: its structure disagrees with a backward pass")
    return None


def _watched(functional: FunctionalModel, params: Params, others: Iterable[str], example: Tensor) -> Structure:
    others = set(others)
    while True:
        watched = discover(functional, [name for name in params if name not in others], example)
        if not watched.rejected:
            break
        for name, call in watched.rejected.items():
            logger.info("parameter %r acts in %s; its Jacobian comes from torch.func", name, call)
        others |= set(watched.rejected)
    return Structure(terms_of(params, watched, others), watched, tuple(name for name in params if name in others))


def _gradient(functional: FunctionalModel, params: Params, x: Tensor, weights: Tensor) -> tuple[Params, set[str]]:
    """The gradient of the weighted sum of the outputs, and the parameters that the outputs do not depend on at all."""
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    with torch.enable_grad():
        value = (functional.forward({**functional.params, **leaves}, x) * weights).sum()
    if not value.requires_grad:
        return {}, set(params)
    gradients = dict(zip(leaves, torch.autograd.grad(value, list(leaves.values()), allow_unused=True)))
    known = {name: gradient.to_dense() for name, gradient in gradients.items() if gradient is not None}
    return known, set(params) - set(known)


def _structured_gradient(structure: Structure, params: Params, seen: Observation) -> Params:
    gradients = {name: torch.zeros_like(value) for name, value in params.items()}
    for term in structure.terms:
        for part in term.parts(params):
            gradients[part.name] = _part_gradient(part, structure.watched, seen, params[part.name].dtype)
    return gradients


def _part_gradient(part: Term, watched: Watched, seen: Observation, dtype: torch.dtype) -> Tensor:
    """Summed over the examples of a block, by the factors of the gram way where there are any."""
    if not part.has_gram or part.lookup:
        return jacobian_of(part, watched, seen, dtype).sum((0, 1))
    x = inputs_of(part, watched, seen, dtype).flatten(0, 1)
    gradient = deltas_of(part, watched, seen, dtype).sum(1).flatten(0, 1).mT @ x
    use = watched.uses[part.uses[0]]
    assert use.weight is not None
    return (gradient.mT if use.flipped != use.weight.flipped else gradient).reshape(part.shape)


def _wrong(gradients: Params, expected: Params) -> list[str]:
    """Parameters whose gradients differ by more than rounding.

    Rounding is measured on a parameter's own gradient, and on the largest of all for those that are zero but for it.
    """
    names = list(expected)
    if not names:
        return []
    errors = torch.stack([_largest(gradients[name] - expected[name]) for name in names])
    sizes = torch.stack([_largest(expected[name]) for name in names])
    first = expected[names[0]]
    epsilon = torch.finfo(first.dtype).eps
    tolerance = 1e-2 if first.is_cuda and first.dtype == torch.float32 else epsilon**0.5
    allowed = torch.maximum(tolerance * sizes, 64 * epsilon * sizes.max())
    return [name for name, fine in zip(names, (errors <= allowed).tolist()) if not fine]


def _largest(value: Tensor) -> Tensor:
    low, high = torch.aminmax(value)
    return torch.maximum(-low, high)


def _with_deltas(structure: Structure, seen: Observation) -> Structure:
    """The structure with those terms marked whose gradients at the results are the same for every example.

    Neither is read off numbers, which might change with the parameters: ``vmap`` brings out expanded what does not
    depend on the example, and the gradient is the identity at the result that is returned as it is.
    """
    terms = []
    for term in structure.terms:
        if term.positions == 1 and len(term.uses) == 1 and seen.deltas[term.uses[0]].stride(0) == 0:
            final = structure.watched.final == term.uses[0]
            term = replace(term, delta="identity" if final else "constant")
        terms.append(term)
    return replace(structure, terms=tuple(terms))
