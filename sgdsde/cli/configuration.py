"""Options from a file: ``--config`` of a TOML file, or of a run that is to be repeated."""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sgdsde._checks import complaint
from sgdsde.cli.options import Command
from sgdsde.run_folder import MANIFEST, ManifestError, read_manifest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = None

OPTION = "--config"
EXPECTED = "a TOML file, or a run's folder or manifest.json"
OF_A_CALL = {"out", "overwrite", "json", "dry_run", "config", "quiet"}
"""Options that change no number; a manifest does not repeat them."""


def resolved(command: Command) -> dict[str, Any]:
    """Every option of a command that its numbers depend on, by name, defaults included."""
    return {name: value for name, value in _values(command).items() if name not in OF_A_CALL}


def with_configuration(argv: Sequence[str], kinds: Mapping[str, type]) -> list[str]:
    """The arguments, those of the file of ``--config`` before the ones that were typed, so that the latter win.

    Args:
        kinds: the options' type of each command.
    Raises:
        ValueError: a file that is none, or with what is no option of the command.
    """
    paths = [word for before, word in itertools.pairwise(argv) if before == OPTION]
    paths += [word.removeprefix(f"{OPTION}=") for word in argv if word.startswith(f"{OPTION}=")]
    if not paths or argv[0] not in kinds:
        return list(argv)
    if len(paths) > 1:
        raise ValueError(complaint(OPTION, "given once", f"{len(paths)} times"))
    command = argv[0]
    path = Path(os.path.expanduser(paths[0]))
    path = path / MANIFEST if path.is_dir() else path
    if not path.is_file():
        raise ValueError(complaint(OPTION, EXPECTED, f"{path}, which is no file"))
    options = _of_a_run(path, command) if path.suffix == ".json" else _of_a_table(path, command, kinds)
    defaults = _values(kinds[command]())
    words: list[str] = []
    for name, value in options.items():
        key = name.replace("-", "_")
        if key not in defaults or key == "config":
            raise ValueError(complaint(OPTION, f"{EXPECTED}, with options of {command} only", f"{path} with {name}"))
        words += _words(path, key, value, defaults[key])
    return [command, *words, *argv[1:]]


def _of_a_run(path: Path, command: str) -> Mapping[str, Any]:
    try:
        manifest = read_manifest(path)
    except (ManifestError, OSError) as error:
        raise ValueError(complaint(OPTION, EXPECTED, f"{path}, {error}")) from None
    if manifest["command"] != command:
        received = f"{path}, which is of {manifest['command']}"
        raise ValueError(complaint(OPTION, f"of a run of {command}", received, f"use sgdsde {manifest['command']}"))
    return dict(manifest["configuration"])


def _of_a_table(path: Path, command: str, kinds: Mapping[str, type]) -> Mapping[str, Any]:
    if tomllib is None:
        raise ValueError(
            complaint(OPTION, "a run's manifest.json or folder under Python 3.10", path, "use Python 3.11")
        )
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(complaint(OPTION, EXPECTED, f"{path}, of which {error}")) from None
    tables = {name: value for name, value in table.items() if isinstance(value, dict)}
    if unknown := sorted(set(tables) - set(kinds)):
        raise ValueError(
            complaint(OPTION, f"{EXPECTED}, with tables of {', '.join(kinds)}", f"{path} with [{unknown[0]}]")
        )
    shared = {name: value for name, value in table.items() if name not in tables}
    return shared | tables.get(command, {})


def _words(path: Path, name: str, value: Any, default: Any) -> list[str]:
    """An option as it is typed."""
    option = f"--{name.replace('_', '-')}"
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(complaint(option, f"true or false in {path}", repr(value)))
        return [option] if value else []
    if isinstance(default, tuple):
        if not isinstance(value, list) or any(isinstance(each, bool | list | dict) for each in value):
            raise ValueError(complaint(option, f"a list of numbers or words in {path}", repr(value)))
        return [option, *map(str, value)]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(complaint(option, f"a number or a word in {path}", repr(value)))
    return [f"{option}={value}"]


def _values(command: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(command):
        value = getattr(command, field.name)
        values |= _values(value) if dataclasses.is_dataclass(value) else {field.name: value}
    return values
