"""The contestants of the benchmark of ensembles train the library's runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import sgdsde
from benchmarks.bench_ensembles import Case, contestants, measured
from benchmarks.ensembles import on_device
from benchmarks.ntk.page import PAGE, filled
from tests.problems import mlp_problem


@pytest.mark.parametrize("by_clock", [False, True])
@pytest.mark.parametrize("kind", ["real", "linearized"])
def test_every_contestant_trains_the_same_runs(kind, by_clock):
    problem = replace(mlp_problem(n_outputs=1), x_test=None, y_test=None)
    trained, others = (
        (problem, ("optimizer_loop", "vmapped"))
        if kind == "real"
        else (sgdsde.linearize(problem), ("embedding_bags", "gathers"))
    )
    case = Case("float64", trained, 0.1, 10, 6, others, batch_size=3)
    functions = on_device.contestants(case, torch.device("cpu")) if by_clock else contestants(case, case.batches())
    others += (on_device.LAUNCHED,) if by_clock else ()
    assert set(functions) == {"sgdsde", *others}
    _, expected = functions["sgdsde"]()
    for name in others:
        rate, losses = functions[name]()
        assert rate > 0
        torch.testing.assert_close(losses, expected[: len(losses)], rtol=1e-9, atol=0)


def test_the_table_of_a_device_is_what_was_measured_and_has_its_place_on_the_page():
    problem = replace(mlp_problem(n_outputs=1), x_test=None, y_test=None)
    case = Case("float64, 10 runs", problem, 0.1, 10, 6, ("optimizer_loop", "vmapped", "jax", "products"), batch_size=3)
    found = measured(case, on_device.contestants(case, torch.device("cpu")))
    environment = {"device": "a device", "processor": "a processor", "versions": {"torch": "2"}}
    blocks = on_device.page_blocks({"environment": environment, "rounds": 3, "cases": {case.name: found}})
    head, _, row = blocks["ensembles_cuda"].splitlines()[:3]
    kinds = "without CUDA graphs | torch.optim | vmap | embedding bag | whole kernel | the two products"
    assert head == f"| | run-steps/s | {kinds} |"
    cells = row.split(" | ")
    assert float(cells[1]) == pytest.approx(found["run_steps_per_second"]["sgdsde"][0], rel=0.06)
    expected = [found["ratio"][name] for name in (on_device.LAUNCHED, "optimizer_loop", "vmapped")]
    assert [float(cell) for cell in cells[2:5]] == pytest.approx(expected, abs=0.006)
    assert float(cells[7].rstrip(" |")) == pytest.approx(found["ratio"]["products"], abs=0.006)
    assert blocks["ensembles_cuda"] in filled(PAGE.read_text(), blocks)
