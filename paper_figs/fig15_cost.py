"""What a prediction costs beside what it predicts: against the horizon, the examples and the number of settings.

Paper: none.
Figure: none; engineering of this library.
Claim: the moment recursion and real training cost in proportion to their steps, the reduced model costs the same at
10^7 steps as at 10^4, and a further setting on the same basis costs milliseconds. Processor seconds of one thread; ReLU
network on digits, B = 4, half of the mean-square limit; the kernel and its spectrum, made once for a problem, are drawn
by themselves. (a): one setting, circles mark where the reduced model becomes cheaper than the recursion and than one
real run; (b): one setting of 10^4 steps; (c): settings of the same batch size, one real run each. No bands: costs were
measured once.
Refuted by: a cost of the reduced model that grows with the horizon, a prediction that differs from the recursion by
more than 1e-4, or a sweep that costs as much for each setting as a prediction by itself.
"""

import numpy as np
from matplotlib.figure import Figure

from experiments.result import Result
from paper_figs import style


def crossing(result: Result, step: str) -> float:
    """The horizon from which the reduced model is cheaper than this many steps at this cost."""
    return float(np.median(result["reduced"][1:]) / result[step])


def claims(result: Result) -> dict[str, float]:
    horizons, reduced, sweeps = result["horizons"], result["reduced"], result["sweeps"]
    far, near = (reduced[horizons == k][0] for k in (10**7, 10**4))
    each = (sweeps[-1] - sweeps[0]) / (result["settings"][-1] - result["settings"][0])
    return {
        "largest_error": float(result["errors"].max()),
        "growth_from_1e4_to_1e7": float(far / near),
        "crossing_with_the_recursion": crossing(result, "plain_step"),
        "further_setting_of_a_prediction": float(each / np.median(reduced[1:])),
    }


def draw(result: Result) -> Figure:
    figure, axes = style.panels(1, 3, height=2.9)
    horizon, n, count = axes[0]
    color = {"reduced": "#b2182b", "kernel": "#8c8c8c"}
    steps = result["horizons"]
    style.curve(horizon, steps, steps * result["plain_step"], "MomentRecursion")
    style.curve(horizon, steps, steps * result["real_step"], "measured", label="one real run")
    horizon.plot(steps, result["reduced"], "o-", ms=3, color=color["reduced"], label="reduced moments")
    horizon.axhline(float(result["kernel"]), color=color["kernel"], linestyle=":", label="kernel and spectrum, once")
    for step in ("plain_step", "real_step"):
        at = crossing(result, step)
        if steps[0] <= at <= steps[-1]:
            horizon.plot([at], [at * result[step]], "o", ms=8, mfc="none", color="#202020")
    horizon.set(xlabel="steps", ylabel="processor seconds", title=f"{int(result['held'])} examples")
    made, reduced, plain, real = result["by_examples"].T
    examples = result["examples"]
    style.curve(n, examples, 1e4 * plain, "MomentRecursion", label=None)
    style.curve(n, examples, 1e4 * real, "measured", label=None)
    n.plot(examples, reduced, "o-", ms=3, color=color["reduced"])
    n.plot(examples, made, ":", color=color["kernel"])
    n.set(xlabel="examples", title="10 000 steps")
    n.set_xticks(examples, [str(value) for value in examples])
    settings, horizon_of_sweep = result["settings"], float(result["sweep_steps"])
    style.curve(count, settings, settings * horizon_of_sweep * result["plain_step"], "MomentRecursion", label=None)
    style.curve(count, settings, settings * horizon_of_sweep * result["real_step"], "measured", label=None)
    count.plot(settings, result["sweeps"], "o-", ms=3, color=color["reduced"])
    count.set(xlabel="settings", title=f"{int(horizon_of_sweep)} steps each")
    count.set_xticks(settings, [str(value) for value in settings])
    for axis in axes.flat:
        axis.set(yscale="log", xscale="log")
    for axis, ticks in ((n, examples), (count, settings)):
        axis.set_xticks(ticks, [str(value) for value in ticks])
        axis.set_xticks([], minor=True)
    style.legend_above(figure, axes, columns=4)
    return figure
