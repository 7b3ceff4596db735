"""Independent jobs in this process, or in those that joblib has or is told to have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from sgdsde._checks import complaint

J = TypeVar("J")
T = TypeVar("T")


def checked_jobs(n_jobs: int | None) -> int:
    """Number of jobs at once, negative as joblib counts; 1 for None."""
    if n_jobs is None:
        return 1
    remedy = "use 1 for this process alone, -1 for all processors"
    if isinstance(n_jobs, bool) or not isinstance(n_jobs, int) or n_jobs == 0:
        raise ValueError(complaint("n_jobs", "a number of processes", repr(n_jobs), remedy))
    return n_jobs


def finished(work: Callable[[J], T], jobs: Sequence[J], n_jobs: int) -> Iterator[tuple[int, T]]:
    """Place and result of every job, as they are finished.

    Args:
        work: pickled, with the jobs, unless n_jobs is 1.
        n_jobs: as in ``joblib.Parallel``, whose backend is the one that ``joblib.parallel_config`` has set.
    Raises:
        ModuleNotFoundError: n_jobs is not 1, and there is no joblib.
    """
    if n_jobs == 1:
        for place, job in enumerate(jobs):
            yield place, work(job)
        return
    import joblib

    tasks = (joblib.delayed(_placed)(work, place, job) for place, job in enumerate(jobs))
    yield from joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered")(tasks)


def _placed(work: Callable[[J], T], place: int, job: J) -> tuple[int, T]:
    return place, work(job)
