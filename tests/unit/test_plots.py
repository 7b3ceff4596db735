"""Pictures: what is drawn is what was compared, files are whole, and nothing global changes."""

from __future__ import annotations

import re
import sys

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot

from sgdsde import LossBand, Trajectory, compare

STEPS = torch.tensor([0, 1, 5, 20, 100])


def band(mean: list[float], spread: float = 0.1, runs: int = 16) -> LossBand:
    factors = 1 + spread * torch.linspace(-1, 1, runs, dtype=torch.float64)[:, None]
    samples = torch.tensor(mean, dtype=torch.float64) * factors
    samples[:, 0] = mean[0]
    return LossBand.from_samples(samples)


def trajectory(mean: list[float], *, runs: int, test: bool = True, dynamics: str = "measured: SGD") -> Trajectory:
    loss = band(mean)
    if not runs:
        loss = LossBand(loss.mean, loss.std, torch.zeros_like(loss.mean))
    never = torch.full((runs,), 101)
    return Trajectory(
        STEPS, 0.1 * STEPS.double(), loss, loss if test else None, None, None, runs, dynamics, "digest", never
    )


@pytest.fixture
def comparison():
    predicted = trajectory([2.0, 1.5, 1.0, 0.3, 0.1], runs=0, dynamics="MomentRecursion()")
    return compare(predicted, trajectory([2.0, 1.6, 1.0, 0.3, 0.08], runs=16))


@pytest.fixture(autouse=True)
def _no_figures_left():
    yield
    pyplot.close("all")


def test_lines_are_the_compared_numbers(comparison):
    top, bottom = comparison.plot()
    lines = {line.get_label(): line for line in top.get_lines()}
    assert set(lines) == {"measured, train", "predicted, train", "measured, test", "predicted, test"}
    for kind in ("measured", "predicted"):
        drawn = lines[f"{kind}, train"]
        assert np.array_equal(drawn.get_xdata(), STEPS.numpy())
        assert np.array_equal(drawn.get_ydata(), getattr(comparison, kind).train_loss.mean.numpy())
    errors = {line.get_label(): line.get_ydata() for line in bottom.get_lines()}
    assert np.allclose(errors["train"], 100 * comparison.train.relative_error.numpy())
    assert {tuple(line.get_ydata()) for line in bottom.get_lines() if len(line.get_xdata()) == 2} == {
        (3.0, 3.0),
        (-3.0, -3.0),
        (0, 0),
    }
    shaded = bottom.collections[0].get_paths()[0].vertices
    measured = comparison.measured.train_loss
    reach = 100 * (comparison.train.relative_error + 2 * measured.standard_error / measured.mean)
    assert shaded[:, 1].max() == pytest.approx(float(reach.max()))


def test_axes_are_labelled_and_titled_with_the_verdict(comparison):
    top, bottom = comparison.plot()
    assert (top.get_ylabel(), bottom.get_ylabel(), bottom.get_xlabel()) == ("loss", "relative error [%]", "step")
    assert " ".join(top.get_title(loc="left").split()) == comparison.sentence
    assert (top.get_yscale(), bottom.get_xscale()) == ("log", "symlog")
    assert top.get_shared_x_axes().joined(top, bottom)
    assert "10 to 90 %" in top.get_legend().get_title().get_text()


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_the_suffix_names_the_format_and_nothing_else_is_left(comparison, tmp_path, suffix):
    comparison.plot(tmp_path / f"loss.{suffix}")
    start = {"png": b"\x89PNG", "pdf": b"%PDF"}[suffix]
    assert (tmp_path / f"loss.{suffix}").read_bytes().startswith(start)
    assert len(list(tmp_path.iterdir())) == 1
    assert pyplot.get_fignums() == []


def test_a_failed_save_keeps_the_old_file(comparison, tmp_path, monkeypatch):
    target = tmp_path / "loss.png"
    target.write_text("old")

    def fail(figure, path, **words):
        path.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        comparison.plot(target)
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]
    assert target.read_text() == "old"


def test_global_settings_stay(comparison, tmp_path):
    before = dict(mpl.rcParams)
    comparison.plot(tmp_path / "a.png")
    comparison.predicted.plot(tmp_path / "b.png")
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("name", ["loss.docx", "loss"])
def test_an_unknown_suffix_is_refused_before_drawing(comparison, tmp_path, name):
    with pytest.raises(ValueError, match=re.escape("path must be a file name that ends in one of ")):
        comparison.plot(tmp_path / name)


def test_bad_targets_are_refused(comparison, tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"create {tmp_path / 'none'} first")):
        comparison.plot(tmp_path / "none" / "a.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(IsADirectoryError, match="got a folder; name a file inside it"):
        comparison.plot(tmp_path / "folder.png")


def test_divergence_and_a_lone_curve_are_drawn(tmp_path):
    measured = trajectory([2.0, 3.0, 9.0, float("inf"), float("inf")], runs=16, test=False)
    predicted = trajectory([2.0, 3.0, 9.0, 90.0, 1e200], runs=0, test=False)
    top, _ = compare(predicted, measured).plot(tmp_path / "a.png")
    assert len(top.get_lines()) == 2
    axes = measured.plot(tmp_path / "b.png")
    assert axes.get_title(loc="left") == "measured: SGD"
    assert [line.get_label() for line in axes.get_lines()] == ["measured, train"]


def test_seaborn_is_not_needed_and_matplotlib_is_asked_for(comparison, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "seaborn", None)
    comparison.plot(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape("install it with: pip install 'sgdsde[plots]'")):
        comparison.plot(tmp_path / "b.png")


@pytest.mark.parametrize(
    ("dynamics", "name"),
    [("interpolated between 5 ensembles", "interpolated"), ("measured: SGD", "also measured")],
)
def test_the_legend_tells_the_origins_apart(dynamics, name):
    first = trajectory([2.0, 1.5, 1.0, 0.3, 0.1], runs=0, dynamics=dynamics)
    top, bottom = compare(first, trajectory([2.0, 1.6, 1.0, 0.3, 0.08], runs=16)).plot()
    lines = {line.get_label(): line.get_color() for line in top.get_lines()}
    assert set(lines) == {f"{kind}, {side}" for kind in (name, "measured") for side in ("train", "test")}
    assert len(set(lines.values())) == 4
    assert f"({name} - measured) / measured" in bottom.get_title(loc="left")
