"""Where a kernel is refused as not positive, and how many examples one product with a Jacobian takes."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from torch import nn

from sgdsde import _memory
from sgdsde.kernel import ImplicitKernel, LowRankKernel
from sgdsde.kernel.eigenbasis import Eigenbasis, _check_fits


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_negative_eigenvalues_are_rounding_up_to_a_share_of_the_largest(dtype: torch.dtype) -> None:
    """A thousand times what eigh itself rounds, and a millionth."""
    allowed = 1e3 * 4 * torch.finfo(dtype).eps + 1e-6
    for share, is_refused in ((0.9, False), (1.1, True)):
        kernel = 3 * torch.tensor([1.0, 0.5, 0.1, -share * allowed]).to(dtype).diag()
        if is_refused:
            with pytest.raises(ValueError, match="kernel must be positive semidefinite, got eigenvalues down to"):
                Eigenbasis.of(kernel)
        else:
            assert len(Eigenbasis.of(kernel).values) == 3


def test_the_range_ends_where_eigenvalues_are_rounding() -> None:
    """d eps l_max: above it a mode, below it none."""
    floor = 4 * 2.0**-52 * 5.0
    basis = Eigenbasis.of(torch.tensor([5.0, 1.0, 1.5 * floor, 0.7 * floor], dtype=torch.float64).diag())
    torch.testing.assert_close(basis.values, torch.tensor([1.5 * floor, 1.0, 5.0]).double(), rtol=1e-12, atol=0)
    zero = Eigenbasis.of(torch.zeros(4, 4, dtype=torch.float64))
    assert zero.values.tolist() == [0.0]
    assert zero.vectors.shape == (4, 1)


def test_a_decomposition_takes_four_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = torch.eye(10, dtype=torch.float64)
    monkeypatch.setattr(_memory, "budget", lambda memory, device: 3200)
    _check_fits(kernel)
    monkeypatch.setattr(_memory, "budget", lambda memory, device: 3199)
    with pytest.raises(MemoryError, match=re.escape("at least 3,200 bytes, got 3,199")):
        _check_fits(kernel)


@pytest.mark.parametrize(("share", "is_refused"), [(0.9, False), (1.1, True)])
def test_columns_are_orthonormal_to_a_thousand_roundings(share: float, is_refused: bool) -> None:
    vectors, defect = torch.eye(9, 2, dtype=torch.float64), share * 1e3 * 9**0.5 * 2.0**-52
    vectors[0] *= (1 + defect) ** 0.5
    values = torch.ones(2, dtype=torch.float64)
    if is_refused:
        with pytest.raises(ValueError, match="orthonormal columns"):
            LowRankKernel(values, vectors)
    else:
        assert len(LowRankKernel(values, vectors)) == 9


def test_examples_are_halved_until_a_product_fits_and_no_further() -> None:
    """Beside them as many vectors as fit, at least one; bytes go with the examples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 200), nn.Tanh(), nn.Linear(200, 2)).double()
    x = torch.randn(64, 40, dtype=torch.float64)
    weights = 3 * 8 * sum(parameter.numel() for parameter in model.parameters())
    found = []
    for memory in range(2 * weights, 8 * weights, weights // 20):
        try:
            kernel = ImplicitKernel(model, x, memory=memory)
        except MemoryError:
            assert not found
            continue
        found.append((kernel._rows, kernel._vectors))
    rows = [pair[0] for pair in found]
    assert rows == sorted(rows)
    assert set(rows) >= {8, 16, 32, 64}
    assert all(later in (one, 2 * one) for one, later in itertools.pairwise(rows))
    assert all(later[1] >= one[1] >= 1 for one, later in itertools.pairwise(found) if later[0] == one[0])
    assert ImplicitKernel(model, x, memory=10**10)._vectors == 64
