"""Random draws of a group of runs, cut out of the streams of its blocks of 64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde._streams import BLOCK, torch_stream
from sgdsde.sampling import block_batches
from sgdsde.sgd import StepPlan


@dataclass(frozen=True, eq=False)
class RunStreams:
    """The draws of consecutive runs, which depend on the seed, the purpose and the number of the run alone."""

    seed: int
    runs: range
    device: torch.device
    dtype: torch.dtype

    def batches(self, plan: StepPlan, purpose: str = "batches") -> Iterator[Tensor]:
        """Indices [runs, B_k] of one step after the other, on the host, where they are drawn."""
        blocks = self._blocks()
        for parts in zip(*(block_batches(plan, self.seed, block, purpose=purpose) for block, _ in blocks)):
            rows = [torch.from_numpy(part[rows]) for part, (_, rows) in zip(parts, blocks)]
            yield rows[0] if len(rows) == 1 else torch.cat(rows)

    def normal(self, purpose: str) -> Callable[..., Tensor]:
        """A function that draws standard normal numbers [runs, *shape], new ones at every call."""
        streams = [(torch_stream(self.seed, purpose, b, self.device), rows) for b, rows in self._blocks()]

        def draw(*shape: int) -> Tensor:
            parts = [
                torch.randn(BLOCK, *shape, generator=stream, dtype=self.dtype, device=self.device)[rows]
                for stream, rows in streams
            ]
            return torch.cat(parts)

        return draw

    def _blocks(self) -> list[tuple[int, slice]]:
        """Blocks that these runs touch, and which of each block's 64 rows they are."""
        first, last = self.runs.start // BLOCK, (self.runs.stop - 1) // BLOCK
        starts = [max(self.runs.start - b * BLOCK, 0) for b in range(first, last + 1)]
        stops = [min(self.runs.stop - b * BLOCK, BLOCK) for b in range(first, last + 1)]
        return [(b, slice(i, j)) for b, i, j in zip(range(first, last + 1), starts, stops)]
