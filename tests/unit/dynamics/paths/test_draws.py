"""Normal numbers of sample paths: a function of seed, purpose, block and call, whatever is drawn together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sgdsde._streams import BLOCK, torch_stream
from sgdsde.dynamics.paths.integrators import BlockDraws, integrator
from tests.statistics import assert_mean_is

SHAPES = [(1,), (3,), (7, 2), (2, 5)]


def drawn(paths: range, shape: tuple[int, ...], n_calls: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """[calls, P, *shape]"""
    draws = BlockDraws(3, paths, torch.empty(0, dtype=dtype))
    return torch.stack([draws.normal("test", *shape).clone() for _ in range(n_calls)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("at_once", [1, 2 * BLOCK, 1000, 2**18])
def test_they_are_the_streams_bit_by_bit(
    shape: tuple[int, ...], at_once: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slow twin draws one block and one call after the other."""
    monkeypatch.setattr(integrator, "NUMBERS_AT_ONCE", at_once)
    device, n_calls = torch.device("cpu"), 5
    streams = [torch_stream(3, "test", block, device) for block in range(3)]
    calls = [[torch.randn(BLOCK, *shape, generator=stream) for stream in streams] for _ in range(n_calls)]
    expected = torch.stack([torch.cat(parts) for parts in calls]).to(dtype)
    assert torch.equal(drawn(range(150), shape, n_calls, dtype), expected[:, :150])
    assert torch.equal(drawn(range(128, 150), shape, n_calls, dtype), expected[:, 128:150])
    assert torch.equal(drawn(range(1), shape, n_calls, dtype), expected[:, :1])


@pytest.mark.parametrize(("paths", "shape"), [(64, (1,)), (64, (50,)), (1024, (7, 2)), (1024, (300,))], ids=str)
def test_a_mebibyte_of_numbers_is_drawn_ahead_at_most(paths: int, shape: tuple[int, ...]) -> None:
    """As many calls as fit into it, and at least the one that is asked for."""
    draws = BlockDraws(0, range(paths), torch.empty(0, dtype=torch.float32))
    draws.normal("test", *shape)
    ready = draws._sources["test"]._ready
    one_call = ready[0].numel() * 4
    assert len(ready) * one_call <= max(2**20, one_call) < (len(ready) + 1) * one_call


def test_both_precisions_see_the_same_numbers() -> None:
    single, double = (drawn(range(70), (3,), 4, dtype) for dtype in (torch.float32, torch.float64))
    assert torch.equal(single.double(), double)


def test_purposes_blocks_and_calls_differ() -> None:
    draws = BlockDraws(0, range(128), torch.empty(0))
    one, other, later = (draws.normal(name, 4).clone() for name in ("one", "other", "one"))
    numbers = torch.cat([*one.split(64), *other.split(64), *later.split(64)]).flatten()
    assert len(numbers.unique()) == len(numbers)


def test_their_law() -> None:
    """First four moments of 10^6 numbers, family-wise error rate 1e-4; widened float32 is normal to 1e-7."""
    numbers = drawn(range(1024), (1000,), 1)[0].flatten()[:, None]
    for power, expected in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        assert_mean_is(torch.tensor([expected], dtype=torch.float64), numbers**power, what=f"power {power}", n_claims=4)
    with pytest.raises(AssertionError):
        assert_mean_is(torch.tensor([1.02], dtype=torch.float64), numbers**2, what="a wrong variance", n_claims=4)
