"""The command ``eoc``: the initialization on the edge of chaos."""

from __future__ import annotations

from sgdsde import meanfield
from sgdsde.cli.options import Eoc


def eoc(command: Eoc, argv: list[str]) -> None:
    """Print the standard deviation of the weights and the variance on the edge of chaos."""
    meanfield.Activation(command.activation)
    if command.dry_run:
        print("expected: less than a second, a few MiB; no training run takes as little")
        return
    sigma_w, q, is_stable = meanfield.edge_of_chaos(command.activation, command.sigma_b)
    print(f"{command.activation} at sigma_b = {command.sigma_b:g}: sigma_w = {sigma_w:.10g}, variance q = {q:.10g}")
    print("the variance is a stable fixed point" if is_stable else "the variance is an unstable fixed point")
