"""How the tests call the command line: on small problems, with words as they are typed."""

from __future__ import annotations

from sgdsde.cli import main

SMALL = "--n-train 16 --n-test 8 --width 16 --batch-size 4 --quiet"
SYNTHETIC = f"{SMALL} --data synthetic --in-features 5"


def call(*words: str) -> int:
    return main(" ".join(words).split())
