"""Which layers a criterion empties, before anything is drawn: the second moment of its scores, layer by layer.

With q^l the variance of the preactivations, v^l = E phi(y^l)^2, v^0 = |x|^2/N_0, chi_l = sigma_w^2 E phi'(y^l)^2 and
qt^l = E (dL/dy^l_i)^2, the recursions of mean-field theory give

    qt^l = chi_l qt^{l+1} N_{l+1} / N_l,        m_l = E (w g)^2 = sigma_w^2 v^{l-1} qt^l / N_{l-1}

A score of layer l is sqrt(m_l) xi, E xi^2 = 1, xi a product of four independent factors: the weight and the gradient
above (normal), phi'(y^l) (1 at the outputs) and phi(y^{l-1}) (normal for the inputs). The kept share of layer l is
a_l = P(sqrt(m_l) xi > t), with t such that all layers together keep what is asked for.

Source: Hayou et al., arXiv:2002.08797 (m_l); the law of xi is ours, for one example.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import iti0k0
from scipy.stats import norm
from torch import nn

from sgdsde._checks import complaint, fraction_below_one, positive_number
from sgdsde.meanfield.activation import Activation, as_activation
from sgdsde.meanfield.maps import second_moments
from sgdsde.networks import MLP, Network, ResNet
from sgdsde.pruning.criteria import Criterion, Magnitude, Random
from sgdsde.pruning.data_criteria import SNIP
from sgdsde.pruning.weights import Subject

Survival: TypeAlias = "Callable[[float], float]"
"""P(score > t) of one layer."""

QUANTILES = 64
"""Midpoints in probability at which the law of an activation is taken."""


@dataclass(frozen=True)
class LayerMoment:
    """m_l of one weight, up to a factor that all share, and the variances of what enters and leaves its layer.

    Attributes:
        moment: m_l relative to the read-out's. n_weights: entries. source_variance: q^{l-1}, None for the inputs.
        result_variance: q^l, None for the outputs.
    """

    name: str
    moment: float
    n_weights: int
    source_variance: float | None
    result_variance: float | None


def score_moments(network: Network, *, input_mean_square: float = 1.0) -> list[LayerMoment]:
    """m_l = E (w dL/dw)^2 of every weight at infinite width, relative to the read-out's, from the input upwards.

    Args:
        network: an ``MLP`` or a ``ResNet`` of ``networks``; its weights do not enter.
        input_mean_square: |x|^2 / N_0.
    Exactness: infinite width, random gradients at the outputs. In a residual network the gradient of block l meets
        qt^{l-1} = qt^l (1 + s_l^2 chi_{l-1}), and its weights act through s_l.
    """
    if not isinstance(network, MLP | ResNet):
        received = type(network).__name__
        raise TypeError(complaint("network", "an MLP or a ResNet of sgdsde.networks", received))
    activation = as_activation(network.activation)
    q: list[float] = []
    weight, bias = network.sigma_w**2, network.sigma_b**2
    signal = [positive_number("input_mean_square", input_mean_square)]
    scales: list[float | None] = [None] * network.depth
    if isinstance(network, ResNet):
        scales[1:] = network.block_scales
    slopes = []
    for scale in scales:
        added = bias + weight * signal[-1]
        q.append(added if scale is None else q[-1] + scale**2 * added)
        square, slope, _ = (float(v) for v in second_moments(activation, torch.tensor(q[-1], dtype=torch.float64)))
        signal.append(square)
        slopes.append(weight * slope)
    return _moments(network, scales, q, signal, slopes)


def _moments(
    network: MLP | ResNet, scales: list[float | None], q: list[float], signal: list[float], slopes: list[float]
) -> list[LayerMoment]:
    names = [name for name, _ in network.named_parameters() if name.endswith("weight")]
    sizes = [network.in_features, *[network.width] * network.depth, network.out_features]
    gradient = 1.0
    found = [LayerMoment(names[-1], signal[-1] * gradient / sizes[-2], sizes[-1] * sizes[-2], q[-1], None)]
    gradient *= slopes[-1] * sizes[-1] / sizes[-2]
    for layer in range(network.depth - 1, -1, -1):  # gradient = qt of hidden layer ``layer``
        scale = scales[layer]
        through = 1.0 if scale is None else scale**2
        source = None if layer == 0 else q[layer - 1]
        moment = through * signal[layer] * gradient / sizes[layer]
        found.append(LayerMoment(names[layer], moment, sizes[layer] * sizes[layer + 1], source, q[layer]))
        if layer:
            gradient *= slopes[layer - 1] if scale is None else 1 + through * slopes[layer - 1]
    last = found[0].moment
    return [replace(entry, moment=entry.moment / last) for entry in found[::-1]]


def layer_densities(
    network: nn.Module, criterion: Criterion, sparsity: float, *, input_mean_square: float = 1.0
) -> dict[str, float]:
    """The predicted kept share of every weight under one-shot global pruning, by name.

    Args:
        network: for ``SNIP`` an ``MLP`` or a ``ResNet`` of ``networks``; else any. The weights of a network of
            ``networks`` do not enter, of another the root mean square of each layer does.
        criterion: ``SNIP()``, ``Magnitude()`` or ``Random()``.
        input_mean_square: |x|^2 / N_0, for ``SNIP``.
    Raises:
        TypeError: another criterion or network. ValueError: a sparsity so low that scores of zero would be kept, which
            ReLU gives to three quarters of the weights at one example.
    Exactness: Magnitude a_l = 2 PhiBar(t sqrt(fan_in_l) / sigma_w), exact for many weights. SNIP: infinite width, one
        example; against networks of 20 layers of 100 neurons at 90 % off by at most .04 in any layer, on and off the
        edge of chaos (docs/pruning.md).
    """
    sparsity = fraction_below_one("sparsity", sparsity)
    if isinstance(criterion, Random):
        return dict.fromkeys(Subject.of(network).weights, 1 - sparsity)
    if isinstance(criterion, Magnitude):
        subject = Subject.of(network)
        weights = subject.weights.values()
        if isinstance(network, Network):
            scale = [network.sigma_w / math.sqrt(weight.fan_in) for weight in weights]
        else:
            scale = [float(subject.effective(weight.name).square().mean().sqrt()) for weight in weights]
        survivals: list[Survival] = [partial(_normal_survival, scale=s) for s in scale]
        return _solved([w.name for w in weights], [w.numel for w in weights], survivals, sparsity, max(scale))
    if not isinstance(criterion, SNIP):
        received = type(criterion).__name__
        raise TypeError(complaint("criterion", "SNIP(), Magnitude() or Random()", received, "the others have no law"))
    if not isinstance(network, MLP | ResNet):
        raise TypeError(complaint("network", "an MLP or a ResNet of sgdsde.networks for SNIP", type(network).__name__))
    moments = score_moments(network, input_mean_square=input_mean_square)
    activation = as_activation(network.activation)
    survivals = [_survival(activation, moment) for moment in moments]
    largest = math.sqrt(max(moment.moment for moment in moments))
    return _solved([m.name for m in moments], [m.n_weights for m in moments], survivals, sparsity, largest)


def _solved(
    names: list[str], counts: list[int], survivals: list[Survival], sparsity: float, scale: float
) -> dict[str, float]:
    """a_l = survival_l(t) at the threshold t at which they keep 1 - sparsity in all."""
    total = sum(counts)

    def excess(log_t: float) -> float:
        kept = sum(n * survival(math.exp(log_t)) for n, survival in zip(counts, survivals))
        return kept / total - (1 - sparsity)

    low, high = math.log(scale) - 60.0, math.log(scale) + 6.0
    if excess(low) < 0:
        least = 1 - (excess(low) + 1 - sparsity)
        received, remedy = f"{sparsity:g}", "the rest of one example's scores is exactly zero, and position decides"
        raise ValueError(complaint("sparsity", f"at least {least:.4g}", received, remedy))
    t = math.exp(brentq(excess, low, high, xtol=1e-10))
    return {name: survival(t) for name, survival in zip(names, survivals)}


def _survival(activation: Activation, moment: LayerMoment) -> Survival:
    """P(sqrt(m) xi > t) as a function of t."""
    factors = np.outer(
        _quantiles(activation, moment.source_variance, slope=False),
        _quantiles(activation, moment.result_variance, slope=True),
    ).ravel()
    rms = math.sqrt(float((factors**2).mean()))
    factors = np.sort(factors[factors > 0] / rms) * math.sqrt(moment.moment)
    share = len(factors) / QUANTILES**2

    def survival(t: float) -> float:
        return share * float(_product_of_two(t / factors).mean())

    return survival


def _quantiles(activation: Activation, variance: float | None, *, slope: bool) -> np.ndarray:
    """|phi'(sqrt(q) Z)| or |phi(sqrt(q) Z)| at equal steps of probability; without q 1 (outputs), |Z| (inputs)."""
    z = norm.ppf((np.arange(QUANTILES) + 0.5) / QUANTILES)
    if variance is None:
        return np.ones(QUANTILES) if slope else np.abs(z)
    value, derivative = activation.value_and_slope(torch.from_numpy(math.sqrt(variance) * z))
    return (derivative if slope else value).abs().numpy()


def _normal_survival(t: float, scale: float) -> float:
    """P(|Z| scale > t)."""
    return float(2 * norm.sf(t / scale))


def _product_of_two(u: np.ndarray) -> np.ndarray:
    """P(|Z1 Z2| > u) = 1 - (2/pi) int_0^u K_0 of two independent standard normal numbers."""
    inside = np.minimum(u, 30.0)
    return np.clip(1 - 2 / np.pi * iti0k0(inside)[1], 0.0, 1.0)
