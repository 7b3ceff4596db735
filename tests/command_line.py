"""How the tests call the command line: on small problems, with words as they are typed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from sgdsde.cli import main

SMALL = "--n-train 16 --n-test 8 --width 16 --batch-size 4 --quiet"
SYNTHETIC = f"{SMALL} --data synthetic --in-features 5"


def call(*words: str) -> int:
    return main(" ".join(words).split())


def call_python(*words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """A Python of its own, in the working directory, on the sources that are tested."""
    sources = str(Path(__file__).resolve().parents[1])
    command, environment = [sys.executable, *words], os.environ | {"PYTHONPATH": sources}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)


def heeds_interrupts() -> None:
    """For ``preexec_fn``: a shell that starts tests in the background has all that they start ignore interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
