"""The tutorials of the pages run as they are, and print what they speak of."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")
pyplot = pytest.importorskip("matplotlib.pyplot")

TUTORIALS = Path(__file__).resolve().parents[2] / "docs" / "tutorials"


@pytest.fixture
def printed(request, monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict]:
    """What a tutorial prints, and the names that it leaves."""
    pyplot.switch_backend("Agg")
    out = io.StringIO()
    with torch.random.fork_rng(), contextlib.redirect_stdout(out), pyplot.rc_context():
        names = runpy.run_path(str(TUTORIALS / f"{request.param}.py"))
    pyplot.close("all")
    return out.getvalue(), names


def test_no_tutorial_is_left_out() -> None:
    tested = {
        mark.args[1][0]
        for test in list(globals().values())
        for mark in getattr(test, "pytestmark", [])
        if mark.name == "parametrize"
    }
    assert {path.stem for path in TUTORIALS.glob("*.py")} == tested


@pytest.mark.parametrize("printed", ["your_own_training_script"], indirect=True)
def test_a_training_script_of_ones_own_is_predicted(printed) -> None:
    text, names = printed
    assert "sampling='shuffled'" in text
    assert "CosineAnnealingLR" in text
    assert names["problem"].n_train == 64
    frozen, moving = (names[name].train.max_relative_error for name in ("frozen", "moving"))
    assert moving < frozen  # the tutorial's point
    assert moving < 0.15


@pytest.mark.parametrize("printed", ["learning_rate_and_batch_size"], indirect=True)
def test_the_limit_doubles_below_the_critical_batch_size_and_stands_above_it(printed) -> None:
    text, _ = printed
    growth = [float(number) for number in re.findall(r"the limit grows ([\d.]+) times", text)]
    assert len(growth) == 6
    assert growth[0] > 1.7
    assert growth[-1] < 1.1
    rows = re.findall(r"step +\d+: predicted ([\d.]+), measured ([\d.]+) \+- ([\d.]+)", text)
    assert len(rows) == 6
    for told, seen, error in (map(float, row) for row in rows):
        assert abs(told - seen) < 4 * error + 0.05 * seen


@pytest.mark.slow
@pytest.mark.parametrize("printed", ["a_figure_of_a_paper"], indirect=True)
def test_a_figure_is_redrawn_with_its_numbers_and_a_curve_more(printed) -> None:
    text, names = printed
    assert "outside: []" in text
    assert '"tanh_sigma_w": 1.304146' in text
    labels = [line.get_label() for line in names["panel"].lines]
    assert labels[-1] == "SiLU, 3 times as steep"
    # x sigmoid(3 x) = SiLU(3 x) / 3: its edge at sigma_b is that of SiLU at 3 sigma_b, with a ninth of the variance.
    silu = names["meanfield"].edge_of_chaos("silu", 1.5)
    assert names["edge"].sigma_w == pytest.approx(silu.sigma_w, rel=1e-8)
    assert names["edge"].q == pytest.approx(silu.q / 9, rel=1e-8)
