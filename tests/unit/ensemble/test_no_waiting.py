"""Between two records nothing comes back from the device, and what goes there goes once for many steps.

The device is torch's ``meta``: it has no numbers, so that whoever asks for one gets an error.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import sgdsde
from sgdsde import SGD, SVAG, NoisyGradient
from sgdsde.ensemble.batched_products import BatchedProducts
from sgdsde.ensemble.chain import chain_of
from sgdsde.ensemble.group import RunGroup
from sgdsde.ensemble.layout import Layout
from sgdsde.ensemble.linearized import LinearizedLearner
from sgdsde.ensemble.real import RealLearner
from sgdsde.ensemble.recorder import Recorder
from sgdsde.ensemble.stepper import Loop, Stepper, Vmapped
from sgdsde.ensemble.streams import RunStreams
from sgdsde.ensemble.variants import Minibatches, Variant
from tests.problems import classification_problem, mlp_problem
from tests.recordings import tensors

META = torch.device("meta")
N_RUNS, N_STEPS = 2, 15


def there(problem: sgdsde.Problem) -> sgdsde.Problem:
    """The problem on a device without numbers, which nobody checks."""
    moved = copy.copy(problem)
    params = {name: value.to(META) for name, value in problem.params.items()}
    values = {"functional": dataclasses.replace(problem.functional, params=params)}
    for name in ("x_train", "y_train", "x_test", "y_test"):
        values[name] = getattr(problem, name).to(META)
    for name, value in values.items():
        object.__setattr__(moved, name, value)
    return moved


def products(problem: sgdsde.Problem, activations: int) -> Stepper:
    chain = chain_of(problem.functional)
    assert chain is not None
    return BatchedProducts(problem, activations, chain)


def real(problem: sgdsde.Problem, stepper: Callable[[sgdsde.Problem, int], Stepper]) -> RealLearner:
    moved = there(problem)
    learner = RealLearner(problem, lambda _, activations: stepper(moved, activations))
    learner.problem, learner.device = moved, META
    return learner


def linearized(n_train: int) -> LinearizedLearner:
    problem = mlp_problem(n_train=n_train)
    learner = LinearizedLearner(sgdsde.linearize(problem))
    learner.problem, learner.device = there(problem), META
    for name in ("_columns", "initial", "targets", "_offset"):
        setattr(learner, name, getattr(learner, name).to(META))
    return learner


LEARNERS: dict[str, Callable[[], Any]] = {
    "batched products": lambda: real(mlp_problem(), products),
    "vmap": lambda: real(mlp_problem(), Vmapped),
    "loop": lambda: real(mlp_problem(), Loop),
    "cross-entropy": lambda: real(classification_problem(), products),
    "linearized, small batches": lambda: linearized(21),
    "linearized, large batches": lambda: linearized(7),
}
SETTINGS: dict[str, tuple[list[SGD], Variant]] = {
    "plain": ([SGD(0.1, 2)], Minibatches()),
    "decay": ([SGD(0.1, 2, weight_decay=0.1)], Minibatches()),
    "several": ([SGD(0.1, 2, momentum=m, nesterov=True, weight_decay=0.1) for m in (0.5, 0.9)], Minibatches()),
    "shuffled": ([SGD(lambda k: 0.1 / (1 + k), 2, sampling="shuffled")], Minibatches()),
    "label noise": ([SGD(0.1, 2, label_noise_std=0.3)], Minibatches()),
    "SVAG": ([SGD(0.1, 2)], SVAG(2)),
    "noisy gradient": ([SGD(0.1, 2)], NoisyGradient()),
}


class Crossings(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts what goes from the host to the device; anything that comes back is an error of the device's own."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            self.count += len({tensor.device for tensor in tensors((args, found))}) > 1
        return found


class Unrecorded:
    """Steps at the places of recorded ones, taken in the ordinary way."""

    warm, least = 3, 2

    @contextmanager
    def apart(self) -> Iterator[None]:
        yield

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        return lambda: step()


@pytest.fixture(autouse=True)
def normal_numbers_without_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def normal(self: RunStreams, purpose: str) -> Callable[..., Tensor]:
        return lambda *shape: torch.empty(len(self.runs), *shape, dtype=self.dtype, device=self.device)

    monkeypatch.setattr(RunStreams, "normal", normal)


def crossings(learner: Any, sgds: list[SGD], variant: Variant, n_steps: int, graphs: Any) -> float:
    """Copies to the device during steps that are drawn at once, and while they are watched."""
    plans = [variant.refined(sgd.plan(learner.problem.n_train, N_STEPS)) for sgd in sgds]
    n_members = N_RUNS * len(sgds)
    streams = RunStreams(0, range(N_RUNS), META, learner.dtype)
    words: dict[str, Any] = {"variant": variant, "streams": streams, "layout": Layout(n_members, n_members, 2**24)}
    group = RunGroup(learner, sgds, plans, graphs=graphs, **words)
    recorder = Recorder(learner.problem, torch.tensor([0, N_STEPS]), range(N_RUNS), N_STEPS, observe=("loss",))
    stretches = 0
    with Crossings() as seen:
        for steps, losses in group.advance(range(n_steps)):
            assert losses.device == META
            stretches += 1
            for part in losses.split(N_RUNS, dim=1):
                recorder.watch(steps, range(N_RUNS), part)
    assert stretches == 1 or sgds[0].sampling == "shuffled"
    return seen.count / stretches


@pytest.fixture(scope="module")
def learners() -> dict[str, Any]:
    return {name: make() for name, make in LEARNERS.items()}


@pytest.mark.parametrize("graphs", [None, Unrecorded()], ids=["plain", "recorded"])
@pytest.mark.parametrize(
    ("name", "setting"),
    [
        *((name, setting) for name in ("batched products", "linearized, small batches") for setting in SETTINGS),
        *((name, "several") for name in ("vmap", "loop", "cross-entropy", "linearized, large batches")),
        *((name, "SVAG") for name in ("vmap", "loop", "cross-entropy")),
    ],
)
def test_no_step_waits_and_copies_do_not_grow_with_steps(
    learners: dict[str, Any], name: str, setting: str, graphs: Any
) -> None:
    """They are five at most for a stretch: indices, weights, learning rates, and step numbers for each SGD."""
    sgds, variant = SETTINGS[setting]
    few, many = (crossings(learners[name], sgds, variant, n_steps, graphs) for n_steps in (5, N_STEPS))
    assert few == many <= 5


def test_a_step_that_asks_for_a_number_is_noticed() -> None:
    problem = mlp_problem()
    call = problem.functional.call
    asking = dataclasses.replace(problem.functional, call=lambda params, x: call(params, x) + 0 * x.sum().item())
    object.__setattr__(problem, "functional", asking)
    with pytest.raises(RuntimeError, match=r"item.*meta"):
        crossings(real(problem, Loop), [SGD(0.1, 2)], Minibatches(), 4, None)
