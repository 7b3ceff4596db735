"""Memory budgets, decided before anything is allocated."""

from __future__ import annotations

import os

import torch

from sgdsde._checks import complaint, whole_number

ALWAYS_THERE = 2**24
"""Bytes that nobody has to ask for."""

DEFAULT_FRACTION = 0.25
"""Fraction of the free memory that is used when the caller names no budget."""


def free_bytes(device: torch.device) -> int:
    """Memory that can be allocated on a device without swapping."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def budget(memory: int | None, device: torch.device) -> int:
    """The caller's number of bytes, or a quarter of what is free."""
    if memory is None:
        return int(free_bytes(device) * DEFAULT_FRACTION)
    return whole_number("memory", memory, minimum=1, remedy="give a number of bytes")


def rows_within(allowed: int, bytes_per_row: int, n_rows: int, what: str, *, fixed: int = 0) -> int:
    """Number of rows that fit at once beside ``fixed`` bytes, at least one.

    Raises:
        MemoryError: not even one row fits; names the bytes.
    """
    rows = min(n_rows, (allowed - fixed) // max(bytes_per_row, 1))
    if rows < 1:
        remedy = f"{what} needs {bytes_per_row:,} bytes" + (f" beside {fixed:,}" if fixed else "")
        expected = f"at least {fixed + bytes_per_row:,} bytes"
        raise MemoryError(complaint("memory", expected, f"{allowed:,}", f"{remedy}; raise it or shrink the problem"))
    return int(rows)


def check_count(name: str, count: int, bytes_each: int, what: str) -> None:
    """Raise ``MemoryError`` where so many do not fit into a quarter of the free memory; names the bytes of each."""
    if count * bytes_each <= ALWAYS_THERE:
        return
    allowed = budget(None, torch.device("cpu"))
    if count * bytes_each > allowed:
        expected = f"at most {allowed // bytes_each:,} with a quarter of the free memory"
        received = f"{count:,}" if count < 10**15 else "10**15 or more"
        raise MemoryError(complaint(name, expected, received, f"{what} take {bytes_each:,} bytes each"))
