"""Arguments to a command, with errors of one line."""

from __future__ import annotations

import contextlib
import functools
import io
import operator
import re
from collections.abc import Sequence
from itertools import groupby
from typing import Annotated, Any

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, subcommand

from sgdsde.cli.options import Command, Compare, Diagnose, Eoc, Explore, Ntk, Predict, Prune, Sweep

WRONG_KINDS = {
    r"invalid literal for int\(\) with base 10:": "a whole number",
    "could not convert string to float:": "a number",
    "Could not find valid parse for arguments:": "whole numbers",
}
COMMANDS = {
    "compare": Compare,
    "predict": Predict,
    "diagnose": Diagnose,
    "sweep": Sweep,
    "ntk": Ntk,
    "prune": Prune,
    "eoc": Eoc,
    "explore": Explore,
}
DESCRIPTION = (
    "Predict what minibatch SGD will do to the loss of a network, before training it. Start with: sgdsde compare --help"
)


def parse(argv: Sequence[str]) -> Command | None:
    """The command with its options; None where ``--help`` was all.

    Raises:
        ValueError: arguments that are none, in one line.
    """
    if any(word.split("=")[0] == "--config" for word in argv):
        from sgdsde.cli.configuration import with_configuration

        argv = with_configuration(argv, COMMANDS)
    kinds: list[Any] = [Annotated[kind, subcommand(name)] for name, kind in COMMANDS.items()]
    union: Any = functools.reduce(operator.or_, kinds)
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            command: Command = tyro.cli(
                union,
                prog="sgdsde",
                description=DESCRIPTION,
                args=list(argv) or ["--help"],
                config=(OmitArgPrefixes, FlagCreatePairsOff),
            )
            return command
    except SystemExit as error:
        if not error.code:
            return None
        where = f"sgdsde {argv[0]} --help" if argv and argv[0] in COMMANDS else "sgdsde --help"
        raise ValueError(f"{_unboxed(messages.getvalue())}; see {where}") from None


def _unboxed(text: str) -> str:
    """Message in a box of tyro's (Unicode or plain), on one line, without title, options' help and footer."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    framed = any(line.startswith("╭") for line in lines)
    rows = [line.strip("│ ") for line in lines if not framed or line.startswith("│")]
    sections = [list(rows) for rule, rows in groupby(rows, lambda row: set(row) in ({"─"}, {"-"})) if not rule]
    sections = sections if framed else sections[1:]
    said = [" ".join(rows) for i, rows in enumerate(sections) if i == 0 or rows[0].startswith("Available")]
    message = (" ".join(said) or " ".join(lines)).strip(" .")
    for pattern, kind in WRONG_KINDS.items():
        message = re.sub(rf"Error parsing (\S+): {pattern}", rf"\1 must be {kind}, got", message)
    return message
