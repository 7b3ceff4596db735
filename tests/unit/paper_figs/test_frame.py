"""Claimed numbers against their intervals, the style, and the figures of this project."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from experiments import frame, result
from paper_figs import frame as figure_frame

ROOT = Path(__file__).resolve().parents[3]
PICTURES = {"fig01_a.pdf", "fig01_a.png", "fig01_a.txt"}


def expected(tmp_path: Path, entries: object, scale: str = "smoke") -> figure_frame.Expectation:
    path = tmp_path / "expected.json"
    path.write_text(json.dumps(entries))
    return figure_frame.expectation(path, "fig01_a", scale)


def test_numbers_are_compared_with_their_intervals(tmp_path: Path) -> None:
    rows = {"all": {"a": [0, 1, "law"], "b": [2, None, "law"]}, "smoke": {"a": [0, 5, "few runs"], "c?": [0, 1, "law"]}}
    at_smoke, at_laptop = expected(tmp_path, {"fig01_a": rows}), expected(tmp_path, {"fig01_a": rows}, "laptop")
    assert figure_frame.complaints({"a": 5, "b": 1e9}, at_smoke) == []
    assert figure_frame.complaints({"a": 5, "b": 2}, at_laptop) == ["a = 5 is outside [0, 1] (law)"]
    assert figure_frame.complaints({"a": float("nan"), "b": 3}, at_smoke) == ["a = nan is outside [0, 5] (few runs)"]
    assert figure_frame.complaints({"a": 1, "b": 3, "c": 2}, at_smoke) == ["c = 2 is outside [0, 1] (law)"]
    assert figure_frame.complaints({"a": 1, "b": 3, "d": 2}, at_smoke) == ["d = 2 has no interval"]
    assert figure_frame.complaints({"a": 1}, at_smoke) == ["b is expected in [2, inf] (law) but not claimed"]


@pytest.mark.parametrize(
    "row", [[1, 0, "law"], [0, 1], [0, 1, ""], [None, None, "law"], ["x", 1, "law"], 3, [0, float("nan"), "law"]]
)
def test_an_interval_that_is_none_is_refused(tmp_path: Path, row: object) -> None:
    with pytest.raises(
        figure_frame.FigureError, match=r'fig01_a: a in .* must be \[low, high, "where it comes from"\]'
    ):
        expected(tmp_path, {"fig01_a": {"all": {"a": row}}})


def test_a_figure_without_an_entry_or_at_an_unknown_scale_is_refused(tmp_path: Path) -> None:
    with pytest.raises(figure_frame.FigureError, match="must hold an entry for fig01_a, got none"):
        expected(tmp_path, {})
    with pytest.raises(figure_frame.FigureError, match=r"must be all, smoke, laptop or paper, got \['huge'\]"):
        expected(tmp_path, {"fig01_a": {"huge": {}}})


def test_the_style_gives_every_curve_a_color_of_its_own() -> None:
    from paper_figs import style

    colors = [style.look(name)["color"] for name in style.LOOKS]
    assert len(set(colors)) == len(colors)
    with pytest.raises(KeyError, match="add its look to paper_figs"):
        style.look("nonsense")


@pytest.mark.filterwarnings("default")
def test_the_style_draws(tmp_path: Path) -> None:
    import matplotlib as mpl

    from paper_figs import style

    with mpl.rc_context():
        style.apply()
        figure, axes = style.panels(1, 2, height=2.5)
        x = np.arange(5.0)
        style.band(axes[0, 0], x, x, "measured", low=x - 1, high=x + 1)
        for name in style.LOOKS:
            style.curve(axes[0, 1], x, x, name)
        style.legend_above(figure, axes)
        figure.savefig(tmp_path / "figure.png")
    assert len(figure.legends[0].texts) == len(style.LOOKS)


def test_the_same_result_gives_the_same_pictures(tmp_path: Path) -> None:
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    def draw(result: result.Result) -> object:
        picture, axis = plt.subplots()
        axis.plot(result["x"])
        return picture

    module = ModuleType("paper_figs.fig01_a")
    module.draw = draw  # type: ignore[attr-defined]
    result.save(tmp_path / "r.npz", {"x": np.arange(3.0)}, {"experiment": "fig01_a", "scale": "smoke"})
    written = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        with mpl.rc_context():
            figure_frame._save_pictures(module, result.load(tmp_path / "r.npz"), folder, outside=False, caption="η 1")
        assert {path.name for path in folder.iterdir()} == PICTURES
        written.append([(folder / name).read_bytes() for name in sorted(PICTURES)])
    plt.close("all")
    assert written[0] == written[1]
    assert written[0][0].startswith(b"%PDF")
    assert written[0][1].startswith(b"\x89PNG")


FIGURES = sorted(path.stem for path in (ROOT / "paper_figs").glob("fig*.py"))


@pytest.mark.parametrize("name", FIGURES)
def test_each_figure_has_caption_experiment_and_intervals(name: str) -> None:
    source = (ROOT / "paper_figs" / f"{name}.py").read_text()
    for field in figure_frame.CAPTION_FIELDS:
        assert field in source, field
    experiment = figure_frame._result_path(name, Path()).stem
    assert (ROOT / "experiments" / f"{experiment}.py").is_file()
    for scale in frame.SCALES:
        assert figure_frame.expectation(figure_frame.EXPECTED, name, scale).intervals


def test_no_interval_without_its_figure() -> None:
    assert set(json.loads(figure_frame.EXPECTED.read_text())) <= set(FIGURES)
