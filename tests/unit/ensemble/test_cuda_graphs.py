"""How steps are recorded as CUDA graphs, on a stand-in for the device: streams, threads, failures."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from sgdsde.ensemble import cuda_graphs
from sgdsde.ensemble.cuda_graphs import CudaGraphs, graphs_of

DEVICE = torch.device("cuda", 1)


class Stream:
    def __init__(self, device: Any = None) -> None:
        self.device, self.waited_for = device, list[Any]()

    def wait_stream(self, other: Any) -> None:
        self.waited_for.append(other)


class Cuda:
    """The part of ``torch.cuda`` that is used. As in torch, a graph whose end fails leaves its stream behind."""

    def __init__(self) -> None:
        self.main = Stream(DEVICE)
        self.now, self.device_now = self.main, torch.device("cuda", 0)
        self.recordings: list[dict[str, Any]] = []
        self.pools = 0

    def graph_pool_handle(self) -> int:
        self.pools += 1
        return self.pools

    def current_stream(self, device: Any = None) -> Stream:
        return self.now

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.now = self.now, stream
        try:
            yield
        finally:
            self.now = before

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.device_now = self.device_now, device
        try:
            yield
        finally:
            self.device_now = before

    @contextmanager
    def graph(self, graph: Any, pool: Any = None, stream: Any = None, **words: Any) -> Iterator[None]:
        self.now = stream
        self.recordings.append({"pool": pool, "stream": stream, "device": self.device_now, **words})
        failed = False
        try:
            yield
        except RuntimeError:
            failed = True
            raise
        finally:
            if failed:
                raise ValueError("capture invalidated")
            self.now = self.main

    class CUDAGraph:
        def __init__(self) -> None:
            self.replays = 0

        def replay(self) -> None:
            self.replays += 1


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    cuda = Cuda()
    names = ("graph_pool_handle", "current_stream", "stream", "device", "graph", "CUDAGraph")
    for name in names:
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(cuda_graphs, "_OWN", threading.local())
    return cuda


def test_a_step_is_recorded_once_beside_the_current_stream_and_not_taken(cuda: Cuda) -> None:
    graphs, seen = CudaGraphs(DEVICE), list[Stream]()
    replays = [graphs.record(lambda: seen.append(cuda.now)) for _ in range(2)]
    assert seen == [graphs._stream] * 2
    assert seen[0] is not cuda.main
    assert [found["pool"] for found in cuda.recordings] == [1, 1], "one pool for the recordings of a group"
    assert all(found["device"] == DEVICE for found in cuda.recordings)
    assert all(found["capture_error_mode"] == "thread_local" for found in cuda.recordings), "others go on"
    for replay in replays:
        replay()
    assert len(seen) == 2
    assert CudaGraphs(DEVICE)._pool == 2


def test_a_recording_that_fails_leaves_stream_and_device_as_they_were_and_another_can_be_made(cuda: Cuda) -> None:
    graphs = CudaGraphs(DEVICE)

    def step() -> None:
        raise RuntimeError("mine")

    with pytest.raises(ValueError, match="invalidated") as caught:
        graphs.record(step)
    assert str(caught.value.__context__) == "mine"
    assert (cuda.now, cuda.device_now) == (cuda.main, torch.device("cuda", 0))
    graphs.record(lambda: None)()


def test_first_steps_are_in_order_with_what_was_before_and_comes_after(cuda: Cuda) -> None:
    graphs = CudaGraphs(DEVICE)
    side = graphs._stream
    with graphs.apart():
        assert cuda.now is side
        assert (side.waited_for, cuda.main.waited_for) == ([cuda.main], [])
    assert cuda.main.waited_for == [side]
    with pytest.raises(KeyError), graphs.apart():
        raise KeyError
    assert cuda.now is cuda.main
    assert cuda.main.waited_for == [side, side]


def test_every_thread_and_device_has_one_stream(cuda: Cuda) -> None:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(CudaGraphs(DEVICE)._stream)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    own = [CudaGraphs(DEVICE)._stream for _ in range(3)]
    assert own[0] is own[1] is own[2]
    assert CudaGraphs(torch.device("cuda", 0))._stream is not own[0]
    assert len({id(stream) for stream in [*found, own[0]]}) == 3


def test_only_cuda_has_recordings(cuda: Cuda) -> None:
    assert isinstance(graphs_of(DEVICE), CudaGraphs)
    assert [graphs_of(torch.device(name)) for name in ("cpu", "meta", "mps")] == [None] * 3
