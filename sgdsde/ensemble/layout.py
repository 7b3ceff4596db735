"""How many runs are held at once and how many are stepped together, decided before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sgdsde import _memory
from sgdsde._streams import BLOCK

HELD_BYTES = 2**28
"""Runs beyond one block of streams are held at once only within so much: more are no faster."""

MOST = 16 * BLOCK
"""Runs held at once."""

AHEAD_BYTES = 2**22
"""Draws held at once: the more steps, the more rarely the weights of some runs come back into the cache."""


@dataclass(frozen=True)
class Layout:
    """Runs held and stepped together, and bytes of what is made ahead of their steps.

    Attributes:
        ahead: bytes of batches, learning rates and losses of a stretch of steps, once as they are made, and once for
            a copy: that of the runs stepped together, or that which recorded steps read.
    """

    held: int
    together: int
    ahead: int


@dataclass(frozen=True)
class Needs:
    """What runs take, in bytes.

    Attributes:
        held: by a run from its first step to its last. moved: besides, while it is stepped or evaluated.
        together: runs whose step is fastest together, or None for as many as possible.
        what: one run in words, for errors.
    """

    held: int
    moved: int
    together: int | None
    what: str

    def layout(self, n_members: int, memory: int | None, device: torch.device) -> Layout:
        """The layout of so many runs within ``memory`` bytes, None for a quarter of what is free.

        Raises:
            MemoryError: not even one run fits; names the bytes.
        """
        budget, alone = _memory.budget(memory, device), self.held + self.moved
        _memory.rows_within(budget, alone, 1, self.what)
        ahead = min(AHEAD_BYTES, budget // 8, (budget - alone) // 2)
        allowed = budget - 2 * ahead  # the draws, and copies of them and pieces of an evaluation
        most = _memory.rows_within(allowed, alone, n_members, self.what)
        if self.together is None:
            return Layout(min(most, MOST), min(most, MOST), ahead)
        together = min(self.together, most)
        spare = (allowed - together * self.moved) // self.held
        held = min(n_members, spare, max(BLOCK, HELD_BYTES // self.held), MOST)
        if held > BLOCK:
            held -= held % BLOCK  # whole blocks of streams, so that none is drawn twice
        return Layout(held, min(together, held), ahead)
