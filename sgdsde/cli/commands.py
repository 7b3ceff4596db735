"""Dispatch of a parsed command to the file that runs it, imported only then: ``--help`` needs no torch."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
from collections.abc import Sequence

from sgdsde.cli.options import Command
from sgdsde.cli.parser import COMMANDS
from sgdsde.run_folder import plain

FILES = {
    "compare": "forecasts",
    "predict": "forecasts",
    "diagnose": "studies",
    "sweep": "studies",
    "ntk": "kernels",
    "prune": "masks",
    "eoc": "edge",
    "explore": "exploration",
}


def run(command: Command, argv: Sequence[str]) -> None:
    """Run a command; ``argv`` goes to the manifest. Under ``--json`` its words give way to one JSON object."""
    name = next(name for name, kind in COMMANDS.items() if type(command) is kind)
    function = getattr(importlib.import_module(f"sgdsde.cli.{FILES[name]}"), name)
    if not command.output.json:
        function(command, list(argv))
        return
    with contextlib.redirect_stdout(io.StringIO()):
        answer = function(command, list(argv))
    print(json.dumps(plain(answer), allow_nan=False))
