"""Training as segments of constant settings, and the settings that stand for a schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sgdsde.dynamics.moments.reduced.pairs import StepCoefficients
from sgdsde.dynamics.moments.reduced.system import Segment
from sgdsde.sgd import SGD

MOST_SETTINGS = 4
"""Settings whose resolvents span the basis of a schedule."""

SMALLEST_SHARE = 0.03
"""Learning rates below this share of the largest are represented by it: they move little."""


def segments_between(sgd: SGD, n_train: int, start: int, stop: int) -> list[Segment]:
    """The steps ``start`` ... ``stop`` of i.i.d. SGD. Cost: a constant setting is not looked at step by step."""
    if sgd.is_constant:
        plan = sgd.plan(n_train, 1)
        coefficients = StepCoefficients(float(plan.lr[0]), plan.noise_factor(0), sgd.weight_decay)
        return [Segment(stop - start, coefficients, float(plan.batch_size[0]))]
    plan = sgd.plan(n_train, stop)
    found = []
    for a, b in plan.segments(start, stop):
        coefficients = StepCoefficients(float(plan.lr[a]), plan.noise_factor(a), sgd.weight_decay)
        found.append(Segment(b - a, coefficients, float(plan.batch_size[a])))
    return found


def times_and_factors(
    segments: Sequence[Segment], record: Sequence[int], *, decay: float
) -> tuple[list[float], list[float]]:
    """t_k, and g_k of theta = g theta_0 + J^T w, at steps counted from the start of the segments."""
    edges, times, logs = [0], [0.0], [0.0]
    for segment in segments:
        lr = segment.coefficients.lr
        edges.append(edges[-1] + segment.length)
        times.append(times[-1] + segment.length * lr)
        logs.append(logs[-1] + segment.length * math.log1p(-lr * decay))
    return np.interp(record, edges, times).tolist(), np.exp(np.interp(record, edges, logs)).tolist()


def representative(segments: Sequence[Segment]) -> list[Segment]:
    """At most four settings, far from each other in log lr and log q, the noisiest first; lengths mean nothing."""
    distinct = {(s.coefficients, s.batch_size): s for s in segments if s.coefficients.lr > 0}
    largest = max((s.coefficients.lr for s in distinct.values()), default=0.0)
    candidates = [s for s in distinct.values() if s.coefficients.lr >= SMALLEST_SHARE * largest]
    if len(candidates) <= MOST_SETTINGS:
        return candidates

    def place(segment: Segment) -> tuple[float, float]:
        lr, noise = segment.coefficients.lr, segment.coefficients.noise
        return math.log(lr), math.log(max(noise, 1e-6))

    chosen = [max(candidates, key=lambda s: s.coefficients.lr * s.coefficients.noise)]
    while len(chosen) < MOST_SETTINGS:
        farthest = max(candidates, key=lambda s: min(math.dist(place(s), place(other)) for other in chosen))
        if farthest in chosen:
            break
        chosen.append(farthest)
    return chosen
