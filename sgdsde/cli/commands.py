"""Dispatch of a parsed command to the file that runs it, imported only then: ``--help`` needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

from sgdsde.cli.options import Command, Compare, Diagnose, Eoc, Ntk, Predict, Prune, Sweep


def run(command: Command, argv: Sequence[str]) -> None:
    """Run a command; ``argv`` goes to the manifest."""
    words = list(argv)
    match command:
        case Compare() | Predict():
            from sgdsde.cli import forecasts

            if isinstance(command, Compare):
                forecasts.compare(command, words)
            else:
                forecasts.predict(command, words)
        case Diagnose() | Sweep():
            from sgdsde.cli import studies

            if isinstance(command, Diagnose):
                studies.diagnose(command, words)
            else:
                studies.sweep(command, words)
        case Ntk():
            from sgdsde.cli import kernels

            kernels.ntk(command, words)
        case Prune():
            from sgdsde.cli import masks

            masks.prune(command, words)
        case Eoc():
            from sgdsde.cli import edge

            edge.eoc(command, words)
