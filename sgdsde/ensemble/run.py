"""Real minibatch SGD, many runs at once: the measurement that every prediction is held against."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import distributed

from sgdsde import _memory
from sgdsde._checks import whole_number
from sgdsde._progress import Ticker, announced, covered, ticker
from sgdsde._types import Observable, Progress
from sgdsde.ensemble.blocks import BlockStore, blocks_of_runs, marks_of, merged
from sgdsde.ensemble.training import Ensemble
from sgdsde.ensemble.variants import Variant
from sgdsde.linearization import Linearization
from sgdsde.problem import Problem
from sgdsde.recording import check_observables, recorded_steps
from sgdsde.sgd import SGD, check_sgd
from sgdsde.trajectory import Trajectory


def run_ensemble(
    problem_or_linearization: Problem | Linearization,
    sgd: SGD,
    n_steps: int,
    n_runs: int,
    *,
    variant: Variant | None = None,
    seed: int = 0,
    record: Sequence[int] | None = None,
    observe: Sequence[Observable] = ("loss",),
    memory: int | None = None,
    compiled: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    group: distributed.ProcessGroup | None = None,
    progress: Progress = None,
) -> Trajectory:
    """Losses of ``n_runs`` independent runs of minibatch SGD from the same initial weights.

    Args:
        problem_or_linearization: a ``Problem``: the real network is trained. A ``Linearization``: SGD of the linearized
            model, in output space, on the same batches for the same seed.
        variant: ``SVAG(l)`` or ``NoisyGradient()`` in place of SGD; default SGD itself.
        seed: run j draws the same batches whatever ``n_runs`` (see ``sampling.batch_indices``).
        record: steps to report; default about 50, geometric. observe: ``"accuracy"``, and ``"outputs"``
            to keep every run's outputs.
        progress: as in ``predict``; the cost of real runs is that of forward passes of a batch, timed where there are
            64 steps or more.
        memory: bytes allowed for the runs held and stepped together; default a quarter of what is free.
        compiled: let ``torch.compile`` make the gradients of networks that are stepped by ``vmap``; it wants a C++
            compiler, half a minute for each batch size at first (seconds where torch's cache has it), and memory beside
            ``memory``. A transformer layer takes 200 steps 1.6 times as fast as by ``vmap``, tracing included
            (docs/benchmarks.md). Stacks of layers need and use none of it; on CUDA no graph is recorded.
        checkpoint: a folder, new or of this ensemble, that keeps every finished block of 64 runs: a call that was
            killed goes on from there, also with more runs.
        group: of ``torch.distributed``, whose ranks share the blocks; all make the same call and get the same result.
    Returns:
        A measured ``Trajectory`` with samples. A run whose loss stops being finite is recorded in ``diverged_at`` and
        as +inf from there on; the others go on.
    Raises:
        ValueError: a checkpoint of another ensemble, or of another version; names what differs. RuntimeError: a rank of
            ``group`` failed, was lost, or took longer for a block than the group's timeout.
    Warns:
        CheckpointWarning: a damaged or foreign part of the checkpoint, which is computed again. Logged: where a network
            cannot be compiled, or the compiled gradients are not its own at the first step; it is trained without.
    Exactness: equal to a ``torch.optim.SGD`` loop over the same batches, to rounding. With ``checkpoint`` or ``group``
        the same bits however often it was killed and whatever the number of ranks (on one kind of machine, with one
        number of threads).
    Cost: the gradients of n_runs batches a step, and a pass over all data for each run and recorded step: batched
        products for stacks of dense and convolutional layers, ``vmap`` for other networks, a loop where that cannot. A
        step of the linearized model sums B c columns of its kernel a run. On CUDA the step is recorded as a graph where
        64 steps have its batch size, and launched as one; between records the host waits for nothing
        (docs/many_devices.md).
    """
    check_sgd(sgd)
    return run_ensembles(
        problem_or_linearization,
        [sgd],
        n_steps,
        n_runs,
        variant=variant,
        seed=seed,
        record=record,
        observe=observe,
        memory=memory,
        compiled=compiled,
        checkpoint=checkpoint,
        group=group,
        progress=progress,
    )[0]


def run_ensembles(
    problem_or_linearization: Problem | Linearization,
    sgds: Sequence[SGD],
    n_steps: int,
    n_runs: int,
    *,
    variant: Variant | None = None,
    seed: int = 0,
    record: Sequence[int] | None = None,
    observe: Sequence[Observable] = ("loss",),
    memory: int | None = None,
    compiled: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    group: distributed.ProcessGroup | None = None,
    progress: Progress = None,
) -> list[Trajectory]:
    """The trajectories of ``run_ensemble`` for several SGDs, all runs of all settings in one ensemble.

    Learning rate, momentum, dampening, weight decay, label noise and batch size may differ from one SGD to the next.
    Those of one batch size and sampling that use the same terms (momentum or none, decay or none) are stepped together
    with a number of their own for each run, and share their draws; the others follow each other.

    Args:
        sgds: at least one. n_runs: of each of them. variant, record, observe, compiled, checkpoint, group:
            as in ``run_ensemble``; with one of the last two every block of runs of every SGD is trained for itself.
    Returns:
        One ``Trajectory`` for each SGD, in their order. Every SGD gets the runs of ``seed``: run j of two settings of
        one batch size and sampling is trained on the same batches.
    Exactness: run j of an SGD is its run j alone, the same arithmetic on numbers of its own, to rounding: products
        round by where in memory they read. Measured on a CPU: bit-equal where widths and batches are multiples of 16
        (float32) or 8 (float64) and at least two runs are asked for; elsewhere losses differ by 2e-7 and 4e-16 of
        themselves after 20 steps. Of the linearized model bit-equal while a batch is at most a quarter of the data.
    """
    n_steps, n_runs = whole_number("n_steps", n_steps), whole_number("n_runs", n_runs, minimum=1)
    seed = whole_number("seed", seed)
    steps = recorded_steps(n_steps, record)
    check_observables(observe)
    words: dict[str, Any] = {"variant": variant, "seed": seed, "memory": memory, "observe": observe}
    ensemble = Ensemble.of(problem_or_linearization, sgds, steps, n_steps=n_steps, compiled=compiled, **words)
    _memory.check_count("n_runs", n_runs, 2 * 8 * len(steps) * len(sgds), "runs, with their losses,")
    store = None
    if checkpoint is not None or group is not None:
        store = BlockStore(checkpoint, group, ensemble.in_words(), ensemble.learner.device)
        ensemble = replace(ensemble, memory=store.begin(memory, marks_of(problem_or_linearization)))
    if progress is not covered:
        progress = announced(ensemble.expected_cost(n_steps, n_runs), progress)
    ticks = ticker(progress, n_steps * n_runs * len(sgds), "SGD runs")
    if store is None:
        found = ensemble.trajectories(range(len(sgds)), range(n_runs), ticks)
    else:
        found = _in_blocks(ensemble, n_runs, store, ticks)
    ticks.close()
    return found


def _in_blocks(ensemble: Ensemble, n_runs: int, store: BlockStore, ticks: Ticker) -> list[Trajectory]:
    """The trajectories of all SGDs, each block of runs of each for itself."""
    blocks, numbers = blocks_of_runs(n_runs), range(len(ensemble.sgds))
    found = {}
    for job, part in store.finish([(number, runs) for number in numbers for runs in blocks], ensemble.block):
        found[job] = part
        ticks.update(len(job[1]) * len(ensemble.plans[job[0]]))
    return [merged([found[number, runs] for runs in blocks]) for number in numbers]
