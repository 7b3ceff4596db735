"""The command ``eoc``: the initialization on the edge of chaos."""

from __future__ import annotations

from typing import Any

from sgdsde import meanfield
from sgdsde.cli.options import Eoc
from sgdsde.cli.results import ResultFolder
from sgdsde.cli.work import facts_of, say_cost, say_written
from sgdsde.cost import ExpectedCost, StageCost
from sgdsde.run_folder import write_manifest


def eoc(command: Eoc, argv: list[str]) -> dict[str, Any]:
    """Print the standard deviation of the weights and the variance on the edge of chaos."""
    meanfield.Activation(command.activation)
    asked = command.output.out != "auto"
    folder = ResultFolder.prepared(command.output, "", ()) if asked else None
    if command.output.dry_run:
        return say_cost("eoc", ExpectedCost("edge of chaos", (StageCost("quadrature", 0.5, 2**22),), None))
    sigma_w, q, is_stable = meanfield.edge_of_chaos(command.activation, command.sigma_b)
    facts = {"sigma_w": sigma_w, "q": q, "is_stable": is_stable}
    print(f"{command.activation} at sigma_b = {command.sigma_b:g}: sigma_w = {sigma_w:.10g}, variance q = {q:.10g}")
    print("the variance is a stable fixed point" if is_stable else "the variance is an unstable fixed point")
    said = facts_of("eoc", command, argv) | facts
    if folder is None:
        return said
    with folder.writing() as target:
        manifest = write_manifest(target, (), said)
    return say_written(folder.path, manifest)
