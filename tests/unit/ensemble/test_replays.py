"""Recorded steps are the steps: the same numbers, each step once, and nothing lost where recording fails."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sgdsde
from sgdsde import SGD
from sgdsde._progress import ticker
from sgdsde.ensemble import replays
from sgdsde.ensemble.batches import Batches
from sgdsde.ensemble.cuda_graphs import graphs_of
from sgdsde.ensemble.real import RealLearner
from sgdsde.ensemble.replays import Stretch
from sgdsde.ensemble.stepper import Loop
from sgdsde.ensemble.training import Ensemble
from tests.problems import mlp_problem
from tests.recordings import Recorded, operations_of
from tests.walks import AT_ONCE, MADE, N_STEPS, PAIR, WALKS, Walk, group_of, walked

LOG = "sgdsde.ensemble.replays"
SOME = ("momentum, dampening", "shuffled", "label noise of several", "SVAG")


@pytest.fixture(scope="module")
def learners() -> dict[str, Any]:
    problem = mlp_problem()
    return {name: make(problem) for name, make in MADE.items()}


def expected_replays(walk: Walk) -> tuple[int, int]:
    """Recordings and replays of one block: all steps of a size that comes often enough, but for the first three."""
    often = [count for count in walk.sizes.values() if count >= Recorded.least]
    return len(often), sum(often) - len(often) * Recorded.warm


@pytest.mark.parametrize(
    ("made", "name"),
    [*((made, name) for made in ("fastest", "linearized") for name in WALKS), *(("vmap", name) for name in SOME)]
    + [("loop", name) for name in SOME],
)
def test_recorded_steps_are_the_steps(learners: dict[str, Any], made: str, name: str) -> None:
    graphs, walk = Recorded(), WALKS[name]
    found, expected = walked(learners[made], walk, graphs), walked(learners[made], walk)
    assert (graphs.recorded, graphs.replayed) == expected_replays(walk)
    assert graphs.replayed >= N_STEPS // 2
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["plain", "several settings", "shuffled", "SVAG"])
def test_blocks_are_recorded_each_for_itself(learners: dict[str, Any], name: str) -> None:
    graphs, walk = Recorded(), WALKS[name]
    blocks = 3 * len(walk.sgds)
    found = walked(learners["fastest"], walk, graphs, together=1)
    recorded, replayed = expected_replays(walk)
    assert (graphs.recorded, graphs.replayed) == (blocks * recorded, blocks * replayed)
    torch.testing.assert_close(found, walked(learners["fastest"], walk, together=1), rtol=1e-12, atol=1e-13)


class Chosen(Recorded):
    """Recordings whose batch was chosen by Python."""

    def record(self, step: Any) -> Callable[[], None]:
        k = int(step.stage.next)
        step.stretch = Stretch(Batches(step.stretch.batches.indices[[k] * AT_ONCE]), step.stretch.lr, step.stretch.kept)
        return super().record(step)


def test_a_batch_that_was_chosen_while_recording_would_be_seen(learners: dict[str, Any]) -> None:
    walk = WALKS["plain"]
    found, expected = walked(learners["vmap"], walk, Chosen()), walked(learners["vmap"], walk)
    assert (found - expected).abs().max() > 1e-3


@pytest.mark.parametrize("of_linearization", [False, True])
def test_trajectories_are_those_without_recordings(of_linearization: bool) -> None:
    """Of several groups, each with recordings of its own, and of runs that diverge."""
    problem = mlp_problem()
    trained = sgdsde.linearize(problem) if of_linearization else problem
    sgds, made = [SGD(0.1, 2), SGD(1e30, 2), SGD(0.1, 3, momentum=0.5, sampling="shuffled")], list[Recorded]()

    def make(_: torch.device) -> Recorded:
        made.append(Recorded())
        return made[-1]

    words: dict[str, Any] = {
        "n_steps": 12,
        "observe": ("loss", "outputs", "accuracy"),
        "memory": 2**20 if of_linearization else 2**17,
    }
    ensemble = Ensemble.of(trained, sgds, torch.tensor([0, 5, 12]), **words)
    found, expected = (
        replace(ensemble, graphs=graphs).trajectories(range(3), range(70), ticker(None, 0, ""))
        for graphs in (make, lambda _: None)
    )
    assert len(made) >= 2
    assert all(graphs.replayed for graphs in made)
    assert (found[1].diverged_at <= 12).all()
    for one, other in zip(found, expected):
        for name, array in other._arrays().items():
            np.testing.assert_allclose(one._arrays()[name], array, rtol=1e-11, atol=1e-13, err_msg=name)


def test_short_trainings_are_not_recorded(learners: dict[str, Any]) -> None:
    graphs = Recorded()
    graphs.least = N_STEPS + 1
    walked(learners["fastest"], WALKS["plain"], graphs)
    assert (graphs.recorded, graphs.entered) == (0, 0)


def test_processors_have_no_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replays.Replays, "__init__", lambda *_, **__: pytest.fail("made"))
    assert graphs_of(torch.device("cpu")) is None
    sgdsde.run_ensemble(mlp_problem(), SGD(0.1, 2), 200, 2, record=[200])


# ------------------------------------------------------------------------------------------ where recording fails


class Refusing(Recorded):
    """Recordings of which one fails, as torch's own do: in the middle of the step, or when it has ended."""

    def __init__(self, number: int, where: str) -> None:
        super().__init__()
        self._number, self._where = number, where

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        if self.recorded + 1 < self._number:
            return super().record(step)
        try:
            operations_of(step)  # takes back what it did
            if self._where == "inside":
                raise RuntimeError("operation not permitted")
        finally:
            raise ValueError("capture invalidated")


@pytest.mark.parametrize("where", ["inside", "at the end"])
@pytest.mark.parametrize(
    ("name", "number", "together"),
    [("plain", 1, None), ("shuffled", 1, None), ("shuffled", 2, None), ("several settings", 4, 1), ("SVAG", 1, None)],
)
def test_steps_are_right_where_a_recording_fails(
    learners: dict[str, Any], name: str, number: int, together: int | None, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    graphs = Refusing(number, where)
    with caplog.at_level(logging.INFO, LOG):
        found = walked(learners["fastest"], WALKS[name], graphs, together=together)
    torch.testing.assert_close(
        found, walked(learners["fastest"], WALKS[name], together=together), rtol=1e-12, atol=1e-13
    )
    assert len(caplog.records) == 1, "given up once"
    assert ("not permitted" if where == "inside" else "invalidated") in caplog.text
    assert graphs.recorded == number - 1


class Waiting(nn.Module):
    """Its host knows a number of the device."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2).double()
        self.register_buffer("scale", torch.tensor(0.5, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        scale: Any = self.scale
        return scale.item() * self.layer(x)


def test_a_model_that_waits_for_the_device_is_not_recorded(caplog: pytest.LogCaptureFixture) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 3, dtype=torch.float64, generator=generator)
    learner, graphs = RealLearner(sgdsde.Problem(Waiting(), x, x[:, :2], loss=nn.MSELoss())), Recorded()
    with caplog.at_level(logging.INFO, LOG):
        found = walked(learner, WALKS["plain"], graphs)
    assert "the host waits for the device in aten._local_scalar_dense" in caplog.text
    assert graphs.recorded == 0
    torch.testing.assert_close(found, walked(learner, WALKS["plain"]), rtol=1e-12, atol=1e-13)


def test_errors_of_a_step_are_raised_and_not_taken_for_a_failed_recording(
    learners: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Tensor:
        raise ArithmeticError("mine")

    monkeypatch.setattr(type(learners["fastest"]), "advance", broken)
    with pytest.raises(ArithmeticError, match="mine"):
        walked(learners["fastest"], WALKS["plain"], Recorded())


# ------------------------------------------------------------------------------------------------------- memory


class Masked(nn.Module):
    """Keeps a mask for one number of examples, and makes another when it sees another number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.mask = nn.Linear(3, 2).double(), torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        if len(self.mask) != len(x):
            self.mask = torch.full((len(x), 1), 0.5, dtype=x.dtype, device=x.device)
        return self.mask * self.layer(x)


@pytest.mark.parametrize("warm", [1, 3, 6])
def test_what_a_model_replaces_between_records_is_held(warm: int) -> None:
    """Also where an evaluation has replaced it right before the recording."""
    x = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    learner = RealLearner(sgdsde.Problem(Masked(), x, x[:, :2], loss=nn.MSELoss()), Loop)
    module: Any = learner.problem.functional.module
    used: list[tuple[int, set[Any]]] = []

    class Noting(Recorded):
        def record(self, step: Any) -> Callable[[], None]:
            replay = super().record(step)
            used.append((module.mask.untyped_storage().data_ptr(), {each.data_ptr() for each in step.held}))
            return replay

    graphs = Noting()
    graphs.warm = warm
    group = group_of(learner, WALKS["plain"], graphs)
    list(group.advance(range(6)))
    list(group.outputs())
    assert len(module.mask) == 7
    list(group.advance(range(6, N_STEPS)))
    ((mask, held),) = used
    assert mask in held


def test_everything_is_freed_with_the_group_at_once(learners: dict[str, Any]) -> None:
    gc.collect()
    gc.disable()
    try:
        for graphs in (Recorded(), Refusing(1, "inside")):
            group = group_of(learners["fastest"], Walk(PAIR, {2: N_STEPS}), graphs)
            for _ in group.advance(range(N_STEPS)):
                pass
            assert group._replays is not None
            stage = group._replays._stage
            owned = [weakref.ref(value) for value in stage._rooms.values()]
            owned += [weakref.ref(stage), *(weakref.ref(value) for value in group._blocks[0].state.values())]
            del group, stage
            assert [ref() for ref in owned] == [None] * len(owned)
    finally:
        gc.enable()


@pytest.mark.parametrize("name", WALKS)
def test_the_stage_fits_into_what_is_planned_for_draws(learners: dict[str, Any], name: str) -> None:
    """Stage and a stretch as it was drawn are within the bytes of the layout."""
    group = group_of(learners["fastest"], WALKS[name], Recorded())
    for _ in group.advance(range(N_STEPS)):
        pass
    assert group._replays is not None
    rooms = group._replays._stage._rooms
    assert rooms["indices"].numel() >= AT_ONCE * 3 * 2
    assert 2 * sum(room.numel() * room.itemsize for room in rooms.values()) <= group._layout.ahead
