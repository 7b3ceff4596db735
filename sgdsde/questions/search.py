"""The smallest of a function of the learning rate, on a logarithmic grid that is refined around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

EXTENSIONS = 4
"""Decades by which a grid grows downwards while its lowest learning rate is the best."""

EXTENSION_POINTS = 5
"""Learning rates of each."""


def refined(
    evaluate: Callable[[Sequence[float]], Sequence[float]],
    first: Sequence[float],
    *,
    rounds: int,
    points: int,
    extend: bool = True,
    basins: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Learning rates and values, sorted by learning rate: a grid, then ``points`` more around the best, each round.

    Args:
        evaluate: the values of several learning rates at once, infinite where there is none.
        first: the grid to start with. extend: go on below it while its lowest point is the best.
        basins: how many local minima are refined in each round, the lowest first.
    """
    found: dict[float, float] = {}

    def add(rates: Sequence[float]) -> None:
        new = [float(rate) for rate in dict.fromkeys(rates) if float(rate) not in found]
        if new:
            found.update(zip(new, map(_value, evaluate(new)), strict=True))

    add(first)
    for _ in range(EXTENSIONS if extend else 0):
        lowest = min(found)
        if min(found, key=lambda rate: found[rate]) != lowest:
            break
        add(np.geomspace(lowest / 10, lowest, EXTENSION_POINTS + 1)[:-1].tolist())
    for _ in range(rounds):
        rates = sorted(found)
        for low, high in _around_minima(rates, [found[rate] for rate in rates])[:basins]:
            add(np.geomspace(low, high, points + 2)[1:-1].tolist())
    rates = sorted(found)
    return np.array(rates), np.array([found[rate] for rate in rates])


def _value(value: float) -> float:
    return float(value) if np.isfinite(value) else float("inf")


def _around_minima(rates: list[float], values: list[float]) -> list[tuple[float, float]]:
    """The neighbors of each local minimum, that of the lowest first."""
    last = len(rates) - 1
    ahead = [*values[1:], np.inf]
    behind = [np.inf, *values[:-1]]
    minima = [i for i, value in enumerate(values) if behind[i] >= value <= ahead[i]]
    minima.sort(key=lambda i: values[i])
    pairs = [(rates[max(i - 1, 0)], rates[min(i + 1, last)]) for i in minima]
    return [(low, high) for low, high in pairs if high > low]
