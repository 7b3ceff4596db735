"""The benchmark's arithmetic: what is unequal is not timed, ratios point the right way, the page shows the numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import bench_precision
from benchmarks.ntk import cases, machine, page, reference, summary, torch_models
from benchmarks.ntk.contestants import layer_structure, ours, torch_func
from benchmarks.ntk.summary import Record

RESULTS = Path(__file__).resolve().parents[3] / "benchmarks" / "results"
MLP = cases.Case("small", 6, (5,), cases.mlp(5, 7, 4, 3))
CNN = cases.Case("small_cnn", 3, (2, 4, 4), cases.cnn(2, 3, 4, n_outputs=2))


def record(seconds: list[float], error: float = 1e-7) -> Record:
    memory = {"peak_bytes": 3 * 2**20, "absolute_bytes": 2**30}
    rounds = [
        {"seconds": s, "system_seconds": 0.0, "wall_seconds": s, "first_seconds": 2 * s, **memory} for s in seconds
    ]
    return Record(rounds, [error] * len(rounds))


class TestSummary:
    def test_ratio_says_how_many_times_longer_the_other_takes(self) -> None:
        records = {("mlp_full", "ours"): record([1, 2, 3]), ("mlp_full", "backpack"): record([10, 6, 50])}
        found = summary.by_case(records, rate=1e9)["mlp_full"]
        assert found["backpack"]["times_ours"] == 5
        assert found["ours"]["times_ours"] == 1
        assert found["backpack"]["seconds"] == [10, 6, 50]
        assert found["ours"]["peak_mebibytes"] == 3

    def test_a_wrong_result_has_no_time(self) -> None:
        records = {("mlp_full", "ours"): record([1]), ("mlp_full", "backpack"): record([9], error=0.4)}
        found = summary.by_case(records, rate=1e9)["mlp_full"]
        assert found["backpack"] == {"error": 0.4, "rounds": 1, "right": False}
        assert "wrong by 4.0e-01" in summary.speed_table({"mlp_full": found}, ["mlp_full"])

    def test_nothing_is_compared_with_a_wrong_result_of_ours(self) -> None:
        records = {("mlp_full", "ours"): record([1], error=1e-3), ("mlp_full", "backpack"): record([9])}
        assert "times_ours" not in summary.by_case(records, rate=1e9)["mlp_full"]["backpack"]

    def test_cases_of_shared_weights_show_errors_only(self) -> None:
        found = summary.by_case({("tied_weights", "ours"): record([1], error=1e-8)}, rate=1e9)
        assert found["tied_weights"]["ours"] == {"error": 1e-8, "rounds": 1, "right": True}

    def test_one_wrong_round_suffices(self) -> None:
        rounds = record([1, 1])
        rounds.errors[1] = 1.0
        assert not rounds.is_right

    def test_a_failure_keeps_its_message(self) -> None:
        failed = Record(failed="RuntimeError: out of memory")
        found = summary.by_case({("mlp_full", "backpack"): failed}, rate=1e9)
        assert found["mlp_full"]["backpack"] == {"failed": "RuntimeError: out of memory"}
        assert "out of memory" in summary.speed_table(found, ["mlp_full"])

    @pytest.mark.parametrize("bad", [np.full((2, 2), np.nan), np.ones((3, 3)), np.full((2, 2), np.inf)])
    def test_what_is_no_kernel_has_an_infinite_error(self, bad: np.ndarray) -> None:
        assert summary.largest_error(bad, np.ones((2, 2))) == np.inf

    def test_the_error_is_relative_to_the_largest_entry(self) -> None:
        expected = np.array([[4.0, 0.0], [0.0, 1.0]])
        assert summary.largest_error(expected + np.diag([0, 0.4]), expected) == pytest.approx(0.1)

    @pytest.mark.parametrize(("seconds", "verdict"), [(3.0, "reached"), (2.0, "missed")])
    def test_goals(self, seconds: float, verdict: str) -> None:
        records = {("mlp_full", "ours"): record([1.0]), ("mlp_full", "neural_tangents"): record([seconds])}
        lines = summary.goal_table(summary.by_case(records, rate=1e9)).splitlines()
        assert len(lines) == 4
        assert verdict in lines[2]
        assert lines[3].endswith("at most 200 MiB | 3 | reached |")


class TestOperations:
    def test_by_hand_for_one_hidden_layer(self) -> None:
        case = cases.Case("x", 5, (3,), cases.mlp(3, 4, 1))
        forward = 2 * 5 * (3 * 4 + 4)
        assert cases.operations(case) == forward + 25 * 3 + 25 * 4 + 25 * 4  # activation Grams 3 and 4, delta Gram 4

    def test_the_trace_is_cheaper(self) -> None:
        assert cases.operations(cases.CASES["mlp_trace"]) < 0.5 * cases.operations(cases.CASES["mlp_full"])


class TestKernels:
    @pytest.mark.parametrize(
        ("case", "outputs"), [(MLP, "full"), (MLP, "trace"), (CNN, "full")], ids=["mlp", "mlp_trace", "cnn"]
    )
    @pytest.mark.parametrize("contestant", [layer_structure, ours, torch_func], ids=["by_hand", "ours", "torch_func"])
    def test_contestants_of_this_environment(self, case, outputs, contestant, tmp_path: Path) -> None:
        asked = cases.replace(case, outputs=outputs)
        call, convert = contestant.prepare(asked)
        expected = reference.reference(asked, tmp_path)
        assert expected.shape == (asked.rows, asked.rows)
        assert summary.largest_error(convert(call()), expected) < 1e-6

    def test_the_blocks_of_the_reference_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, x = torch_models.torch_case(MLP, torch.float64)
        whole = reference.by_backward_passes(model, x)
        monkeypatch.setattr(reference, "BLOCK_BYTES", 5000)
        torch.testing.assert_close(reference.by_backward_passes(model, x), whole, rtol=1e-14, atol=0)

    def test_shared_layers_are_shared(self) -> None:
        tied, _ = torch_models.torch_case(cases.CASES["tied_weights"])
        reused, _ = torch_models.torch_case(cases.CASES["reused_layer"])
        assert tied[2].weight is tied[4].weight
        assert tied[2].bias is not tied[4].bias
        assert reused[2] is reused[4]

    def test_the_digest_knows_the_data_and_not_the_question(self) -> None:
        assert reference.digest(MLP) == reference.digest(cases.replace(MLP, outputs="trace", name="other"))
        assert reference.digest(MLP) != reference.digest(cases.replace(MLP, n=7))


class TestMemory:
    @pytest.mark.skipif(not machine.CLEAR.exists(), reason="this system does not tell a peak that can be reset")
    def test_a_peak_is_seen_after_it_is_freed_and_forgotten_after_a_reset(self) -> None:
        code = """
import numpy as np
from benchmarks.ntk import machine
machine.reset_peak()
before = machine.resident_bytes()
np.ones(2**23)  # 64 MiB
seen = machine.peak_bytes() - before
machine.reset_peak()
print(seen, machine.peak_bytes() - before)
"""  # a process of its own: memory that other tests have freed would be taken again without a new page
        root = Path(__file__).resolve().parents[3]
        answer = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
        seen, forgotten = (int(word) for word in answer.stdout.split())
        assert seen > 60 * 2**20
        assert forgotten < 30 * 2**20


class TestPage:
    def test_a_page_without_marks_is_refused(self) -> None:
        with pytest.raises(ValueError, match="marks of 'speed' once, got 0"):
            page.filled("nothing here", {"speed": "x"})

    def test_only_what_is_between_the_marks_changes(self) -> None:
        assert page.filled("a\n<!-- t -->\nold\n<!-- end -->\nb", {"t": "new"}) == "a\n<!-- t -->\nnew\n<!-- end -->\nb"

    def test_the_page_shows_the_committed_numbers(self) -> None:
        text = page.PAGE.read_text()
        assert page.filled(text, page.tables(json.loads((RESULTS / "ntk.json").read_text()))) == text

    def test_the_page_shows_the_committed_precision(self) -> None:
        text = page.PAGE.read_text()
        cases = json.loads((RESULTS / "precision_cpu.json").read_text())["cases"]
        assert page.filled(text, {"precision_cpu": bench_precision.table(cases)}) == text
