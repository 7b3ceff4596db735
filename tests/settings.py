"""Optimizer settings, one catalogue for all laws: words of ``SGD`` beside the learning rate and the batch size.

``chosen("plain", "decay")`` picks some of them, in this order; a test says by the names what it covers.
"""

from __future__ import annotations

from typing import Any

import pytest

ONE_BY_ONE: dict[str, dict[str, Any]] = {
    "plain": {},
    "without replacement": {"sampling": "without_replacement"},
    "shuffled": {"sampling": "shuffled"},
    "decay": {"weight_decay": 0.2},
    "momentum": {"momentum": 0.9},
    "light momentum": {"momentum": 0.5},
    "dampening alone": {"dampening": 0.4},
    "label noise": {"label_noise_std": 0.5},
}
"""One word each; torch ignores dampening without momentum."""

TOGETHER: dict[str, dict[str, Any]] = {
    "momentum, decay": {"momentum": 0.7, "weight_decay": 0.2},
    "momentum, dampening": {"momentum": 0.8, "dampening": 0.35},
    "momentum, dampening, decay": {"momentum": 0.6, "dampening": 0.2, "weight_decay": 0.3},
    "momentum, negative dampening, decay": {"momentum": 0.5, "dampening": -0.5, "weight_decay": 0.2},
    "nesterov": {"momentum": 0.8, "nesterov": True},
    "nesterov, decay": {"momentum": 0.8, "nesterov": True, "weight_decay": 0.2},
    "label noise, momentum": {"label_noise_std": 0.5, "momentum": 0.5},
    "label noise, nesterov, decay": {"label_noise_std": 0.5, "momentum": 0.5, "nesterov": True, "weight_decay": 0.1},
}

FRESH: dict[str, dict[str, Any]] = {
    f"{name}, without replacement": words | {"sampling": "without_replacement"}
    for name, words in {
        "decay": {"weight_decay": 0.2},
        "nesterov, decay": {"momentum": 0.8, "nesterov": True, "weight_decay": 0.2},
        "label noise": {"label_noise_std": 0.5},
        "label noise, decay": {"label_noise_std": 0.5, "weight_decay": 0.2},
        "label noise, momentum, dampening": {"label_noise_std": 0.3, "momentum": 0.6, "dampening": 0.3},
    }.items()
}
"""Fresh batches without replacement."""

SCHEDULES: dict[str, dict[str, Any]] = {
    "falling lr": {"lr": lambda step: 0.3 / (1 + step)},
    "falling lr, growing batch": {"lr": lambda step: 0.3 / (1 + step) ** 0.5, "batch_size": lambda step: 1 + step % 4},
}
"""In place of a learning rate and a batch size."""

SETTINGS = ONE_BY_ONE | TOGETHER | FRESH | SCHEDULES


def chosen(*names: str) -> dict[str, dict[str, Any]]:
    """The settings of these names, by name, each a copy."""
    return {name: dict(SETTINGS[name]) for name in names}


def each(*names: str) -> pytest.MarkDecorator:
    """A test with the argument ``words`` at each of these settings."""
    return pytest.mark.parametrize("words", chosen(*names).values(), ids=names)
