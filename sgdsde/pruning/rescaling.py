"""A pruned network brought back to the edge of chaos by one factor a neuron or a layer.

Pruning turns the variance sigma_w^2 of a neuron's incoming signal into alpha_i = sum_j w_ij^2 delta_ij; the factor
sigma_w / sqrt(alpha), with sigma_w on the edge of chaos, restores it. That holds if the mask does not depend on what
the neurons do with the data. SNIP on deep ReLU networks keeps weights that read active units: there the factor from
weights overshoots by two, and only the one measured on data makes the forward pass right.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, get_args, overload

import torch
from torch import Tensor, nn

from sgdsde._checks import complaint, positive_number, real_floating, word
from sgdsde._types import Params
from sgdsde.meanfield import EdgeOfChaos, UnstableEdgeWarning, edge_of_chaos
from sgdsde.networks import Network
from sgdsde.networks.convolutional import ConvResNet
from sgdsde.networks.dense import ResNet
from sgdsde.problem import Problem
from sgdsde.pruning.network import PrunedNetwork, owned_copy
from sgdsde.pruning.weights import Subject

Normalizer: TypeAlias = Literal["neuron", "layer", "data"]
Place: TypeAlias = Literal["weights", "factors"]


@overload
def rescale_to_edge_of_chaos(
    pruned: Problem,
    *,
    normalizer: Normalizer = "neuron",
    where: Place = "weights",
    x: Tensor | None = None,
    sigma_w: float | Mapping[str, float] | None = None,
    q: float | None = None,
) -> Problem: ...
@overload
def rescale_to_edge_of_chaos(
    pruned: PrunedNetwork,
    *,
    normalizer: Normalizer = "neuron",
    where: Place = "weights",
    x: Tensor | None = None,
    sigma_w: float | Mapping[str, float] | None = None,
    q: float | None = None,
) -> PrunedNetwork: ...
def rescale_to_edge_of_chaos(
    pruned: Problem | PrunedNetwork,
    *,
    normalizer: Normalizer = "neuron",
    where: Place = "weights",
    x: Tensor | None = None,
    sigma_w: float | Mapping[str, float] | None = None,
    q: float | None = None,
) -> Problem | PrunedNetwork:
    """The same masks with weights that let signals through again; the network given stays as it is.

        neuron:  w_ij -> w_ij sigma_w / sqrt(sum_j w_ij^2)           over what neuron (channel) i has left
        layer:   the same with the mean of the sums over the layer's neurons
        data:    layer after layer, so that E (y^l)^2 = q over a batch of examples

    w is the weight as the forward pass sees it, with the factor of the NTK parametrization.

    Args:
        pruned: a ``PrunedNetwork``, or a ``Problem`` of one; a Problem comes back then.
        normalizer: ``"neuron"``, ``"layer"`` or ``"data"``, as above.
        where: ``"weights"``: they are changed, which leaves a plain module. ``"factors"``: buffers of the forward pass,
            so that learning rates act on the weights as they were: rates times the squared factor. One function, two
            trainings: Tr K of a random mask of density d on L layers is d^L that of the dense network unscaled, d with
            rescaled weights, 1 with factors.
        x: examples for ``"data"``; a Problem has its training set.
        sigma_w: the standard deviation on the edge of chaos, by parameter name where layers differ. None: that of the
            network's activation and sigma_b, for a network of ``networks``.
        q: variance to be reached, for ``"data"``; None: that of the edge of chaos, 1 for ReLU.
    Raises:
        ValueError: a residual network under ``"data"``; ``"data"`` without examples; no edge of chaos; a network that
            has factors already.
    Exactness: neuron and layer restore E y^2 if the mask is independent of the activity, which SNIP's on deep ReLU
        networks is not (the gradient grows by 1.9 a layer instead of 1 at 90 %). A neuron without weights stays silent.
    Source: Hayou et al., arXiv:2002.08797 (by layer).
    """
    word("normalizer", normalizer, get_args(Normalizer))
    word("where", where, get_args(Place))
    network = pruned.functional.module if isinstance(pruned, Problem) else pruned
    if not isinstance(network, PrunedNetwork):
        received, remedy = type(network).__name__, "use Masks.apply first"
        raise TypeError(complaint("pruned", "a PrunedNetwork or a Problem of one", received, remedy))
    subject = Subject.of(pruned)
    subject = Subject(subject.module, {name: subject.weights[name] for name in network.mask_tensors()}, {}, None)
    if normalizer == "data":
        factors = _from_data(subject, network, _examples(pruned, x), _target_variance(subject.module, q))
    else:
        factors = _from_weights(subject, _target_sigmas(subject, sigma_w), normalizer)
    rescaled = _with_factors(network, factors, where)
    if not isinstance(pruned, Problem):
        return rescaled
    for name, value in rescaled.named_parameters():
        value.requires_grad_(name in pruned.params)
    tests: Any = {"x_test": pruned.x_test, "y_test": pruned.y_test}
    return Problem(rescaled, pruned.x_train, pruned.y_train, loss=pruned.loss, **tests)


def _from_weights(subject: Subject, sigmas: dict[str, float], normalizer: Normalizer) -> Params:
    factors = {}
    for name in subject.weights:
        power = subject.effective(name).square()
        alpha = power.flatten(1).sum(1).view(-1, *[1] * (power.ndim - 1))
        if normalizer == "layer":
            alpha = alpha.mean().expand_as(alpha)
        factors[name] = torch.where(alpha > 0, sigmas[name] / alpha.clamp_min(1e-300).sqrt(), 1.0)
    return factors


def _from_data(subject: Subject, network: PrunedNetwork, x: Tensor, q: float) -> Params:
    """One forward pass in which every layer's result is scaled as it comes."""
    factors: Params = {}
    double = copy.deepcopy(network).double().eval()
    handles = [
        double.network.get_submodule(weight.layer).register_forward_hook(_scaled_to(factors, weight.name, q))
        for weight in subject.weights.values()
    ]
    with torch.no_grad():
        double(x.double())
    for handle in handles:
        handle.remove()
    missing = sorted(set(subject.weights) - set(factors))
    if missing:
        raise ValueError(complaint(f"layer of {missing[0]!r}", "called as a module, once", "another use of its weight"))
    return factors


def _scaled_to(factors: Params, name: str, q: float) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def hook(layer: nn.Module, _: Any, y: Tensor) -> Tensor:
        bias, rank = getattr(layer, "bias", None), torch.as_tensor(layer.weight).ndim
        shift = torch.zeros((), dtype=y.dtype, device=y.device)
        if isinstance(bias, Tensor):
            shift = bias * float(getattr(layer, "bias_multiplier", 1.0))
            shift = shift.view(-1, *[1] * (y.ndim - 2))
        signal = y - shift
        power, cross = float(signal.square().mean()), float((signal * shift).mean())
        missing = q - float(shift.expand_as(y).square().mean())
        if missing <= 0:
            raise ValueError(complaint("q", f"above the variance of the biases of {name!r}", q))
        factor = (math.sqrt(cross**2 + power * missing) - cross) / power if power > 0 else 1.0
        factors[name] = torch.full([1] * rank, factor, dtype=torch.float64, device=y.device)
        return factor * signal + shift

    return hook


def _with_factors(network: PrunedNetwork, factors: Params, where: Place) -> PrunedNetwork:
    inner, masks = owned_copy(network.network), network.mask_tensors()
    if where == "factors":
        return PrunedNetwork(inner, masks, factors)
    for name, factor in factors.items():
        layer, _, local = name.rpartition(".")
        value = inner.get_submodule(layer)._parameters[local]
        assert value is not None
        with torch.no_grad():
            value.mul_(factor.to(value))
    return PrunedNetwork(inner, masks)


def _examples(pruned: Problem | PrunedNetwork, x: Tensor | None) -> Tensor:
    if x is not None:
        return real_floating("x", x)
    if isinstance(pruned, Problem):
        return pruned.x_train
    raise ValueError(complaint("x", 'a batch of examples under normalizer="data"', None, "pass x, or a Problem"))


def _target_sigmas(subject: Subject, given: float | Mapping[str, float] | None) -> dict[str, float]:
    if isinstance(given, Mapping):
        missing = sorted(set(subject.weights) - set(given))
        if missing:
            raise ValueError(complaint("sigma_w", "given for every pruned weight", f"none for {missing[0]!r}"))
        return {name: positive_number(f"sigma_w[{name!r}]", given[name]) for name in subject.weights}
    sigma = _edge(subject.module).sigma_w if given is None else positive_number("sigma_w", given)
    return dict.fromkeys(subject.weights, sigma)


def _target_variance(module: nn.Module, q: float | None) -> float:
    if isinstance(module, ResNet | ConvResNet):
        received, remedy = type(module).__name__, 'use normalizer="neuron"'
        raise ValueError(complaint("pruned", 'a network without skip connections under "data"', received, remedy))
    return _edge(module).q if q is None else positive_number("q", q)


def _edge(module: nn.Module) -> EdgeOfChaos:
    if not isinstance(module, Network):
        received, remedy = type(module).__name__, 'pass sigma_w (and q for normalizer="data")'
        raise ValueError(
            complaint("network", "one of sgdsde.networks, which tells its edge of chaos", received, remedy)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnstableEdgeWarning)
        return edge_of_chaos(module.activation, module.sigma_b)
