"""Memory and passes of a kernel that is never formed: within the bytes given, and not far below them."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from sgdsde.kernel import ImplicitKernel, implicit
from tests.live_memory import live_peak

OF_WEIGHTS = nn.Sequential(
    *(nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 2)),
)
OF_ACTIVATIONS = nn.Sequential(nn.Linear(8, 512), nn.Tanh(), nn.Linear(512, 2))
CONVOLUTIONAL = nn.Sequential(
    *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()),
    *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2)),
)


def inputs(n: int, *shape: int) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("model", "x", "rows", "memory", "used"), [
    (OF_WEIGHTS, inputs(20, 128), 4, 4 * 10**6, 0.75),
    (OF_ACTIVATIONS, inputs(40, 8), 256, 4 * 10**6, 0.5),
    (CONVOLUTIONAL, inputs(6, 3, 16, 16), 256, 8 * 10**6, 0.5),
], ids=["weights", "activations", "convolutional"])  # fmt: skip
def test_a_product_stays_within_the_memory_and_makes_use_of_it(
    model: nn.Module, x: Tensor, rows: int, memory: int, used: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more vectors than fit at once, so that the memory decides how many go together."""
    monkeypatch.setattr(implicit, "ROWS", rows)
    kernel = ImplicitKernel(model, x, memory=memory)
    vectors = torch.randn(kernel.shape[1], implicit.VECTORS, generator=torch.Generator().manual_seed(1))
    found = kernel @ vectors
    peak = live_peak(lambda: kernel @ vectors)
    assert used * memory < peak <= memory + 2 * found.nbytes


@pytest.mark.parametrize(("model", "x", "memory"), [
    (nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 10)), inputs(400, 64), 4 * 10**6),
    (CONVOLUTIONAL, inputs(40, 3, 16, 16), 4 * 10**6),
], ids=["weights", "activations"])  # fmt: skip
def test_the_diagonal_stays_within_the_memory_and_makes_use_of_it(model: nn.Module, x: Tensor, memory: int) -> None:
    assert 0.4 * memory < live_peak(ImplicitKernel(model, x, memory=memory).diag) <= memory


def test_the_diagonal_of_many_examples_takes_no_more_than_that_of_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(implicit, "ROWS", 8)
    few, many = (live_peak(ImplicitKernel(OF_WEIGHTS, inputs(n, 128), memory=10**9).diag) for n in (8, 80))
    assert many < 1.1 * few


def test_the_least_memory_is_that_of_one_example_and_one_vector() -> None:
    """However many examples there are: less is refused by the number of bytes, that number is enough."""
    message, asked = r"memory must be at least ([\d,]+) bytes, got 10; one vector", []
    for n in (1, 2, 12):
        with pytest.raises(MemoryError, match=message) as caught:
            ImplicitKernel(OF_ACTIVATIONS, inputs(n, 8), memory=10)
        asked.append(int(re.search(message, str(caught.value))[1].replace(",", "")))
    assert asked[0] == asked[1] == asked[2]
    kernel, expected = (ImplicitKernel(OF_ACTIVATIONS, inputs(12, 8), memory=m) for m in (asked[0], None))
    vectors = torch.randn(24, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(kernel @ vectors, expected @ vectors)
    with pytest.raises(MemoryError):
        ImplicitKernel(OF_ACTIVATIONS, inputs(12, 8), memory=asked[0] - 1)


def test_examples_pass_through_the_network_in_few_large_pieces() -> None:
    """Both sides in pieces of the same length, whichever is longer: no more than are said to be held at once."""
    sizes: list[int] = []

    def counted(params: dict[str, Tensor], x: Tensor) -> Tensor:
        sizes.append(len(x))
        return torch.tanh(x @ params["w"])

    model, many = (counted, {"w": inputs(3, 2)}), inputs(2 * implicit.ROWS + 88, 3)
    pieces = [implicit.ROWS, implicit.ROWS, 88]
    for x1, x2, expected in (
        (many, None, pieces + pieces),
        (many[:9], many, [*pieces, 9]),
        (many, many[:9], [9, *pieces]),
    ):
        kernel = ImplicitKernel(model, x1, x2, memory=10**9)
        sizes.clear()
        kernel @ torch.ones(kernel.shape[1], 1)
        assert sizes == expected
