"""Provenance of a result: versions, machine, commit, and hashes of files. Needs no package, torch neither."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from sgdsde._version import __version__

REQUIRED = ("torch", "numpy", "scipy")
"""Packages that every number depends on."""


class Commit(NamedTuple):
    """The commit that is checked out, and the tracked files that differ from it."""

    sha: str
    changed_files: tuple[str, ...]


def versions(packages: Iterable[str] = REQUIRED) -> dict[str, str | None]:
    """Versions of Python, of this library's sources, and of installed packages; None for one that is missing."""
    found: dict[str, str | None] = {"python": platform.python_version(), "sgdsde": __version__}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def machine() -> dict[str, object]:
    """Processor, cores, system, architecture and Python; no names of hosts, users or folders."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def commit(folder: str | os.PathLike[str]) -> Commit | None:
    """The commit of the git repository that holds ``folder``; None outside one, or without git."""
    sha = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return None if sha is None or changes is None else Commit(sha.strip(), tuple(changes.splitlines()))


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, in hexadecimal; the file is read in parts of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def _git(folder: str | os.PathLike[str], *words: str) -> str | None:
    try:
        answer = subprocess.run(["git", "-C", os.fspath(folder), *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None
