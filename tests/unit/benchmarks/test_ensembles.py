"""The contestants of the benchmark of ensembles train the library's runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import sgdsde
from benchmarks.bench_ensembles import Case, contestants
from tests.problems import mlp_problem


@pytest.mark.parametrize("kind", ["real", "linearized"])
def test_every_contestant_trains_the_same_runs(kind):
    problem = replace(mlp_problem(n_outputs=1), x_test=None, y_test=None)
    trained, others = (
        (problem, ("optimizer_loop", "vmapped"))
        if kind == "real"
        else (sgdsde.linearize(problem), ("embedding_bags", "gathers"))
    )
    case = Case("float64", trained, 0.1, 10, 6, others, batch_size=3)
    functions = contestants(case, case.batches())
    assert set(functions) == {"sgdsde", *others}
    _, expected = functions["sgdsde"]()
    for name in others:
        rate, losses = functions[name]()
        assert rate > 0
        torch.testing.assert_close(losses, expected[: len(losses)], rtol=1e-9, atol=0)
