"""The page: sliders, the predicted losses with their band, the stability map; drawn by bokeh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sgdsde.explorer.curves import PARTS, Curves
from sgdsde.explorer.script import UPDATE
from sgdsde.sgd import SGD

if TYPE_CHECKING:
    from bokeh.models import Button, Column, ColumnDataSource, CustomJS, Div
    from bokeh.plotting import figure as Figure

TITLE = "sgdsde explorer"
COLORS = {"train": "#0072B2", "test": "#D55E00"}
WORDS = {
    "with_replacement": "with replacement",
    "without_replacement": "without replacement",
    "shuffled": "shuffled epochs",
}


@dataclass(frozen=True, eq=False)
class Page:
    """The parts of a page that a server needs: its layout, the controls, and where measured runs are drawn."""

    layout: Column
    controls: dict[str, Any]
    measured: list[ColumnDataSource]
    button: Button
    update: CustomJS
    status: Div


def page(curves: Curves, *, about: str, start: SGD, measure: str = "") -> Page:
    """A page of the curves that needs no Python.

    Args:
        about: the problem in words. start: where the sliders stand first. measure: label of a button for measured runs,
            to which a server must listen; empty for none.
    """
    from bokeh.models import Button, Column, ColumnDataSource, CustomJS, Div, Row

    sources = [_source() for _ in curves.sides]
    measured = [_source(tags=[""]) for _ in curves.sides]
    figure, glyphs = _loss_figure(curves, sources, measured, bool(measure))
    limit, point = ColumnDataSource(_limit_columns(curves)), ColumnDataSource({"size": [], "lr": [], "color": []})
    predicted = ColumnDataSource({"size": [], "lr": []})
    controls, message = _controls(curves, start), Div(text="", width=560, name="message")
    arguments = {
        **controls,
        **_tables(curves),
        "sources": sources,
        "measured_sources": measured,
        "measured_glyphs": glyphs,
        "map_limit": limit,
        "map_point": point,
        "map_drawn": predicted,
        "message": message,
    }
    update = CustomJS(args=arguments, code=UPDATE)
    for name in ("lr", "batch"):
        controls[name].js_on_change("value", update)
    for name in ("momentum", "sampling"):
        controls[name].js_on_change("active", update)
    button = Button(label=measure, name="measure", visible=bool(measure), width=260)
    for source in measured:
        source.js_on_change("tags", update)
    status = Div(text="", width=560, name="status")
    head = Div(text=f"<h2 style='margin:0'>What will SGD do?</h2>{about}", width=1000)
    words = (
        [Div(text="momentum", width=80), controls["momentum"]],
        [Div(text="batches", width=80), controls["sampling"]],
    )
    left = Column(controls["lr"], controls["batch"], *(Row(*row) for row in words), button, status, message)
    right = Column(figure, _map_figure(curves, limit, point, predicted))
    layout = Column(head, Row(left, right, styles={"flex-wrap": "wrap"}), name="explorer", styles={"max-width": "100%"})
    layout.js_on_change("tags", update)
    return Page(layout, controls, measured, button, update, status)


def key_of(sgd: SGD) -> str:
    """What tells one setting from another, in the browser and here."""
    return f"{written(sgd.lr_at(0))}, {sgd.batch_size_at(0)}, {sgd.momentum:g}, {sgd.sampling}"


def written(rate: float) -> str:
    """A learning rate as the slider shows it."""
    return f"{rate:.4g}"


def _source(**words: Any) -> ColumnDataSource:
    from bokeh.models import ColumnDataSource

    return ColumnDataSource({name: [] for name in ("step", *PARTS)}, **words)


def _controls(curves: Curves, start: SGD) -> dict[str, Any]:
    from bokeh.models import CategoricalSlider, RadioButtonGroup

    rates, sizes = [written(rate) for rate in curves.rates], [str(size) for size in curves.batch_sizes]
    distance = np.abs(np.log(np.array(curves.rates) / start.lr_at(0)))
    near = np.abs(np.log(np.array(curves.batch_sizes) / start.batch_size_at(0)))
    words = list(curves.samplings)
    chosen = curves.momenta.index(start.momentum) if start.momentum in curves.momenta else 0
    return {
        "lr": CategoricalSlider(
            title="learning rate", categories=rates, value=rates[int(distance.argmin())], width=520, name="lr"
        ),
        "batch": CategoricalSlider(
            title="batch size", categories=sizes, value=sizes[int(near.argmin())], width=520, name="batch"
        ),
        "momentum": RadioButtonGroup(labels=[f"{value:g}" for value in curves.momenta], active=chosen, name="momentum"),
        "sampling": RadioButtonGroup(
            labels=[WORDS[word] for word in words],
            active=words.index(start.sampling) if start.sampling in words else 0,
            name="sampling",
        ),
    }


def _tables(curves: Curves) -> dict[str, Any]:
    """The grid and its curves as the script reads them; steps from 1 on, for the logarithmic axis."""
    seen = curves.steps >= 1
    return {
        "rates": [written(rate) for rate in curves.rates],
        "rate_numbers": list(curves.rates),
        "sizes": [str(size) for size in curves.batch_sizes],
        "numbers": list(curves.batch_sizes),
        "samplings": list(curves.samplings),
        "sides": list(curves.sides),
        "ceiling": _range(curves)[1],
        "nearest": curves.nearest.astype(np.int32).ravel(),
        "limits": curves.limits.astype(np.float64).ravel(),
        "steps": curves.steps[seen].astype(np.int32),
        "losses": np.ascontiguousarray(curves.losses[..., seen], dtype=np.float32).ravel(),
        "settings": [
            {
                "lr": written(sgd.lr_at(0)),
                "batch_size": str(sgd.batch_size_at(0)),
                "dynamics": dynamics,
                "key": key_of(sgd),
            }
            for sgd, dynamics in zip(curves.sgds, curves.dynamics)
        ],
    }


def _range(curves: Curves) -> tuple[float, float]:
    """Of the learning rates on the map."""
    return min(curves.rates[0], curves.limits.min()) / 1.5, max(curves.rates[-1], curves.limits.max()) * 1.5


def _limit_columns(curves: Curves) -> dict[str, Any]:
    return {"size": list(curves.batch_sizes)} | {name: [np.nan] * len(curves.batch_sizes) for name in ("limit", "top")}


def _losses_range(curves: Curves) -> tuple[float, float]:
    """One for all settings, so that curves compare; at most a decade above the start, four below."""
    start = max(curves.initial.values())
    drawn = curves.losses[np.isfinite(curves.losses) & (curves.losses > 0)]
    low, high = (float(drawn.min()), float(drawn.max())) if drawn.size else (start, start)
    return max(low, 1e-4 * start) / 1.3, 1.3 * min(max(high, start), 10 * start)


def _loss_figure(
    curves: Curves, sources: list[ColumnDataSource], measured: list[ColumnDataSource], is_measured: bool
) -> tuple[Figure, list[Any]]:
    """The losses, and the glyphs of what was measured."""
    from bokeh.models import Span
    from bokeh.plotting import figure

    drawn: Any = figure(
        width=620,
        height=340,
        x_axis_type="log",
        y_axis_type="log",
        x_range=(0.9, 1.1 * max(curves.n_steps, 2)),
        y_range=_losses_range(curves),
        title="Predicted loss: mean and 10 to 90 % of runs; dotted, before training",
        tools="pan,wheel_zoom,box_zoom,reset,save",
        name="losses",
    )
    drawn.xaxis.axis_label, drawn.yaxis.axis_label = "step", "loss"
    glyphs: list[Any] = []
    for side, source, runs in zip(curves.sides, sources, measured):
        words: dict[str, Any] = {"source": source, "color": COLORS[side]}
        drawn.varea("step", "low", "high", fill_alpha=0.2, **words)
        drawn.line("step", "mean", line_width=2, legend_label=f"predicted {side}", **words)
        points: dict[str, Any] = {"source": runs, "visible": False, "color": COLORS[side]}
        dots: dict[str, Any] = {
            "size": 6,
            "fill_color": "white",
            **({"legend_label": f"measured {side}"} if is_measured else {}),
        }
        glyphs += [
            drawn.scatter("step", "mean", **dots, **points),
            drawn.segment("step", "low", "step", "high", **points),
        ]
        start = Span(location=curves.initial[side], dimension="width", line_dash="dotted", line_color=COLORS[side])
        drawn.add_layout(start)
    drawn.legend.location, drawn.legend.background_fill_alpha = "bottom_left", 0.7
    drawn.toolbar.logo = None
    return drawn, glyphs


def _map_figure(
    curves: Curves, limit: ColumnDataSource, point: ColumnDataSource, predicted: ColumnDataSource
) -> Figure:
    """The stable learning rates over batch sizes, with the chosen setting."""
    from bokeh.plotting import figure

    low, high = _range(curves)
    drawn: Any = figure(
        width=620,
        height=310,
        x_axis_type="log",
        y_axis_type="log",
        x_range=(min(curves.batch_sizes) / 1.2, max(curves.batch_sizes) * 1.2),
        y_range=(low, high),
        title="Stability: above the line the expected loss grows without bound",
        tools="reset,save",
        name="map",
    )
    drawn.xaxis.axis_label, drawn.yaxis.axis_label = "batch size", "learning rate"
    drawn.xaxis.ticker = list(curves.batch_sizes)
    drawn.varea("size", "limit", "top", source=limit, fill_color="#999999", fill_alpha=0.35, legend_label="unstable")
    drawn.line("size", "limit", source=limit, color="black", legend_label="mean-square limit")
    drawn.scatter("size", "lr", source=point, size=12, color="color", legend_label="chosen setting")
    drawn.scatter("size", "lr", source=predicted, size=18, line_color="black", fill_alpha=0, legend_label="drawn above")
    drawn.legend.orientation = "horizontal"
    drawn.add_layout(drawn.legend[0], "below")  # inside it would hide the point
    drawn.toolbar.logo = None
    return drawn
