"""The warning past a stability limit says of which kernel it is, and never contradicts its own numbers."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde.stability import max_lr
from sgdsde.stability.limits import is_below_limit, noise_factor
from sgdsde.stability.local import local_map


def near_duplicates() -> sgdsde.Linearization:
    """Six examples and six that hardly differ: eigenvalues of the kernel from 1e-13 to 20."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    x = torch.cat([x, x + 1e-6 * torch.randn(6, 3, generator=generator, dtype=torch.float64)])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    y = torch.randn(12, 2, generator=generator, dtype=torch.float64)
    return sgdsde.linearize(sgdsde.Problem(model, x, y, loss=nn.MSELoss()))


WORDS: list[dict[str, Any]] = [
    {"momentum": 0.5},
    {"momentum": 0.5, "dampening": 0.5},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.99},
    {"weight_decay": 1e-3},
    {},
]


@pytest.mark.parametrize("words", WORDS, ids=str)
def test_a_warning_names_a_limit_below_the_learning_rate(words: dict) -> None:
    """Far below, just below and above: that an eigenvalue is tiny is no reason to warn."""
    linearization = near_duplicates()
    assert float(linearization.eigenbasis.values[0]) < 1e-11 * float(linearization.eigenbasis.values[-1])
    limit = max_lr(linearization, 3, **words)
    for part in (1e-9, 1e-4, 0.1, 0.999):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sgdsde.predict(linearization, sgdsde.SGD(part * limit, 3, **words), 2)
    with pytest.warns(sgdsde.UnstableWarning, match=re.escape(f"beyond the mean-square limit {limit:.6g}")):
        sgdsde.predict(linearization, sgdsde.SGD(1.001 * limit, 3, **words), 2)


@pytest.mark.parametrize("words", WORDS, ids=str)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_below_the_limit_is_below_its_root(batch_size: int, words: dict) -> None:
    linearization = near_duplicates()
    moments, noise = local_map(linearization), noise_factor(linearization, batch_size, "with_replacement")
    limit, sgd = max_lr(linearization, batch_size, **words), sgdsde.SGD(1.0, batch_size, **words)
    found = [is_below_limit(moments, sgd, part * limit, noise) for part in (1e-6, 0.5, 0.9999, 1.0001, 2.0, 50.0)]
    assert found == [True, True, True, False, False, False]


def test_the_warning_says_that_the_kernel_is_that_at_initialization() -> None:
    linearization = near_duplicates()
    with pytest.warns(sgdsde.UnstableWarning) as caught:
        sgdsde.predict(linearization, sgdsde.SGD(2 * max_lr(linearization, 3), 3), 2)
    (message,) = (str(warning.message) for warning in caught)
    assert "with the kernel kept as it is at initialization the expected loss grows" in message
    assert "stability.max_lr_along_path" in message
