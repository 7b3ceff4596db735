"""Recorded steps on a CUDA device: the numbers of the plain ones, launched as often as they should be."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sgdsde
from sgdsde import SGD
from sgdsde.ensemble.cuda_graphs import CudaGraphs
from sgdsde.ensemble.real import RealLearner
from tests.problems import conv_problem, mlp_problem, on
from tests.walks import MADE, N_STEPS, RECORDED, WALKS, group_of, walked

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
LOG = "sgdsde.ensemble.replays"


class Counted(CudaGraphs):
    """Counts recordings and replays; short walks are recorded, too."""

    least = 5

    def __init__(self) -> None:
        super().__init__(torch.device("cuda", torch.cuda.current_device()))
        self.recorded, self.replayed = 0, 0

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        replay = super().record(step)
        self.recorded += 1

        def counted() -> None:
            self.replayed += 1
            replay()

        return counted


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.fixture(scope="module")
def learners() -> dict[str, Any]:
    problem = on("cuda", mlp_problem())
    return {name: make(problem) for name, make in MADE.items()}


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("name", WALKS)
def test_recorded_steps_are_the_steps(learners: dict[str, Any], made: str, name: str) -> None:
    graphs, walk = Counted(), WALKS[name]
    found = walked(learners[made], walk, graphs)
    often = [count for count in walk.sizes.values() if count >= graphs.least]
    assert (graphs.recorded, graphs.replayed) == (len(often), sum(often) - len(often) * graphs.warm)
    assert_close(found, walked(learners[made], walk))


def test_convolutions_and_blocks_are_recorded(learners: dict[str, Any]) -> None:
    convolutions, graphs = RealLearner(on("cuda", conv_problem())), Counted()
    assert_close(walked(convolutions, WALKS["plain"], graphs), walked(convolutions, WALKS["plain"]))
    assert graphs.replayed == N_STEPS - graphs.warm
    blocks, walk = Counted(), WALKS["several settings"]
    assert_close(walked(learners["fastest"], walk, blocks, together=2), walked(learners["fastest"], walk, together=2))
    assert (blocks.recorded, blocks.replayed) == (3, 3 * (N_STEPS - blocks.warm))


def test_an_ensemble_is_that_of_the_processor() -> None:
    problem, sgd = mlp_problem(), SGD(0.05, 2, momentum=0.5)
    words: dict[str, Any] = {"record": [0, 10, 200], "observe": ("loss", "outputs")}
    here = sgdsde.run_ensemble(problem, sgd, 200, 70, **words)
    there = sgdsde.run_ensemble(on("cuda", problem), sgd, 200, 70, **words)
    assert_close(there.train_outputs.samples, here.train_outputs.samples)


def test_nothing_waits_for_the_device_between_records(learners: dict[str, Any]) -> None:
    for name in ("plain", "label noise", "SVAG", "several settings", "learning rates"):
        for made in ("fastest", "linearized"):
            group = group_of(learners[made], WALKS[name], Counted())
            for _ in group.advance(range(RECORDED[-2])):
                pass
            torch.cuda.set_sync_debug_mode("error")
            try:
                for _ in group.advance(range(RECORDED[-2], N_STEPS)):
                    pass
            finally:
                torch.cuda.set_sync_debug_mode("default")


def held() -> tuple[int, int]:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()


def test_memory_is_given_back_with_the_group() -> None:
    model = sgdsde.networks.MLP(64, 512, 1, generator=torch.Generator().manual_seed(0))
    x = torch.randn(256, 64, generator=torch.Generator().manual_seed(1))
    learner = RealLearner(on("cuda", sgdsde.Problem(model, x, x[:, :1], loss=nn.MSELoss())))

    def train() -> int:
        graphs = Counted()
        walked(learner, WALKS["batch sizes"], graphs)
        return graphs.recorded

    assert train() == 2
    before = held()
    for _ in range(3):
        train()
    assert held() == before


# ------------------------------------------------------------------------------------------ where recording fails


class Waiting(nn.Module):
    """Its host knows a number of the device, or waits for the device where no operation tells."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2).double()
        self.how = how
        self.register_buffer("scale", torch.tensor(0.5, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        scale: Any = self.scale
        if self.how == "item":
            return scale.item() * self.layer(x)
        if x.is_cuda:
            torch.cuda.current_stream().synchronize()
        return scale * self.layer(x)


@pytest.mark.parametrize("how", ["item", "synchronize"])
def test_a_model_that_waits_is_stepped_as_before(how: str, caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    problem = on("cuda", sgdsde.Problem(Waiting(how), x, x[:, :2], loss=nn.MSELoss()))
    learner, graphs, current = RealLearner(problem), Counted(), torch.cuda.current_stream()
    with caplog.at_level(logging.INFO, LOG):
        found = walked(learner, WALKS["shuffled"], graphs)
    assert len(caplog.records) == 1
    assert graphs.recorded == 0
    assert torch.cuda.current_stream() == current
    assert_close(found, walked(learner, WALKS["shuffled"]))
    again = Counted()
    other = MADE["fastest"](on("cuda", mlp_problem()))
    assert_close(walked(other, WALKS["plain"], again), walked(other, WALKS["plain"]))
    assert again.recorded == 1, "a failure spoils nothing for others"


class Masked(nn.Module):
    """Keeps a mask for one number of examples, and makes another when it sees another number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.mask = nn.Linear(3, 2).double(), torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        if len(self.mask) != len(x) or self.mask.device != x.device:
            self.mask = torch.full((len(x), 1), 0.5, dtype=x.dtype, device=x.device)
        return self.mask * self.layer(x)


def test_what_a_model_replaces_between_replays_is_not_lost() -> None:
    x = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    problem = on("cuda", sgdsde.Problem(Masked(), x, x[:, :2], loss=nn.MSELoss()))
    learner = RealLearner(problem)
    assert_close(walked(learner, WALKS["plain"], Counted()), walked(learner, WALKS["plain"]))
