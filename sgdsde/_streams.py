"""Named random streams: a draw depends on the seed, what it is for, and the block of 64 runs, and on nothing else.

A block draws for all of its 64 runs or paths even when fewer are asked for, so run 7 of 8 is run 7 of 800, and no
chunking or device count changes a draw.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

BLOCK = 64
"""Runs or paths that share a stream."""


def _sequence(seed: int, purpose: str, block: int) -> np.random.SeedSequence:
    key = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
    return np.random.SeedSequence([seed, key, block])


def numpy_stream(seed: int, purpose: str, block: int) -> np.random.Generator:
    """Stream of indices: the same draws on every device."""
    return np.random.Generator(np.random.PCG64(_sequence(seed, purpose, block)))


def torch_stream(seed: int, purpose: str, block: int, device: torch.device) -> torch.Generator:
    """Stream of normal numbers, drawn on the device that uses them: the same draws on every device of one kind."""
    state = _sequence(seed, purpose, block).generate_state(2, np.uint32)
    generator = torch.Generator(device=device)
    generator.manual_seed((int(state[0]) << 31) ^ int(state[1]))
    return generator
