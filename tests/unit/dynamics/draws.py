"""Draws that make an expectation over paths exact: every pattern of signs once."""

from __future__ import annotations

import torch
from torch import Tensor


class AllSigns:
    """+-1 for each normal number: with all 2^bits patterns as paths, the mean over paths is the expectation, and the
    first two moments of every step are those under normal numbers."""

    def __init__(self, n_bits: int) -> None:
        self.n_paths, self._n_bits, self._used = 2**n_bits, n_bits, 0

    def normal(self, purpose: str, *shape: int) -> Tensor:
        count = int(torch.tensor(shape).prod())
        first, self._used = self._used, self._used + count
        assert self._used <= self._n_bits
        patterns = torch.arange(self.n_paths)[:, None] >> torch.arange(first, self._used)
        return (1 - 2 * (patterns % 2)).double().view(self.n_paths, *shape)

    @property
    def exhausted(self) -> bool:
        return self._used == self._n_bits


class Given:
    """One prepared tensor [P, n] a call."""

    def __init__(self, numbers: list[Tensor]) -> None:
        self._numbers = list(numbers)

    def normal(self, purpose: str, *shape: int) -> Tensor:
        return self._numbers.pop(0)
