"""Recording of what a CUDA device does, so that one launch does it again: CUDA graphs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch

_OWN = threading.local()
_ONE_AT_A_TIME = threading.Lock()


class Graphs(Protocol):
    """How the steps of a group of runs are recorded.

    Attributes:
        warm: steps that are taken in the ordinary way before one is recorded.
        least: steps of one batch size from which on recording pays.
    """

    warm: int
    least: int

    def apart(self) -> AbstractContextManager[None]:
        """Where the first steps are taken."""

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """What does on the device what this step does there. Recording it takes no step."""


class CudaGraphs:
    """Recordings of one group of runs, which share a pool of memory: they are replayed one after the other.

    The memory belongs to the recordings, and is given back when the last of them is forgotten. Work of other threads
    goes on while one records. ``least`` is an estimate: recording takes about as long as some dozens of steps.
    """

    warm, least = 3, 64

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream, self._pool = device, _side_stream(device), torch.cuda.graph_pool_handle()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """On the stream that records: libraries set up what they keep for each stream."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            current.wait_stream(self._stream)

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        recording = torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local")
        # Device and stream are restored by the outer contexts: where a recording fails, torch's own does not.
        with _ONE_AT_A_TIME, torch.cuda.device(self._device), torch.cuda.stream(current), recording:
            step()
        return graph.replay


def graphs_of(device: torch.device) -> Graphs | None:
    """The recordings of a new group of runs, or None on a device without them."""
    return CudaGraphs(device) if device.type == "cuda" else None


def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """This thread's own: matrix products keep a workspace for each stream, and what others do must not be recorded."""
    streams: dict[torch.device, torch.cuda.Stream] = vars(_OWN).setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)
    return streams[device]
