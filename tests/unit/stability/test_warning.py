"""The warning past a stability limit says of which kernel it is, and never contradicts its own numbers."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde.stability import max_lr, max_lr_full_batch, warn_if_unstable
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


@pytest.mark.parametrize("sampling", ["with_replacement", "without_replacement", "shuffled"])
def test_the_largest_learning_rate_of_a_schedule_is_held_against_its_smallest_batch(sampling: Any) -> None:
    """Wherever in the schedule they are, together or apart."""
    linearization, schedule = near_duplicates(), [4, 2, 8, 8]
    limits = {size: max_lr(linearization, size, sampling=sampling) for size in (2, 8)}
    assert limits[2] < 0.8 * limits[8]

    def sgd(largest: float, place: int) -> sgdsde.SGD:
        rates = [0.01 * largest] * 4
        rates[place] = largest
        return sgdsde.SGD(lambda k: rates[k], lambda k: schedule[k], sampling=sampling)

    for place in range(4):
        with pytest.warns(sgdsde.UnstableWarning, match=re.escape(f"{limits[2]:.6g} of SGD with batch_size=2")):
            found = warn_if_unstable(linearization, sgd(1.001 * limits[2], place), 4)
        assert found == pytest.approx(limits[2], rel=1e-8)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert warn_if_unstable(linearization, sgd(0.999 * limits[2], place), 4) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # steps that are not taken do not count
        assert warn_if_unstable(linearization, sgd(1.001 * limits[2], 3), 1) is None
        assert warn_if_unstable(linearization, sgd(1.001 * limits[2], 0), 0) is None


def test_the_full_batch_limit_is_named_beyond_it_and_not_before() -> None:
    linearization = near_duplicates()
    full_batch = max_lr_full_batch(linearization)
    for part, named in ((0.99, False), (1.01, True)):
        with pytest.warns(sgdsde.UnstableWarning) as caught:
            warn_if_unstable(linearization, sgdsde.SGD(part * full_batch, 1), 3)
        assert (f"beyond the full-batch limit {full_batch:.6g}" in str(caught[0].message)) == named


def test_dampening_of_one_stands_still_and_beyond_it_climbs() -> None:
    linearization = near_duplicates()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert warn_if_unstable(linearization, sgdsde.SGD(100.0, 1, momentum=0.5, dampening=1.0), 3) is None
        assert warn_if_unstable(linearization, sgdsde.SGD(1e-3, 1, dampening=3.0), 3) is None, "without momentum"
    with pytest.warns(sgdsde.UnstableWarning, match="against the gradient"):
        assert warn_if_unstable(linearization, sgdsde.SGD(1e-9, 1, momentum=0.5, dampening=1.01), 3) == 0.0
