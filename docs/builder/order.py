"""The order of the tutorials: the one that most readers come for is the first."""

from __future__ import annotations

from pathlib import Path

TUTORIALS = ("your_own_training_script", "learning_rate_and_batch_size", "a_figure_of_a_paper")


class TutorialOrder:
    """A sort key for sphinx-gallery; tutorials that are not listed come last, by name."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, name: str) -> tuple[int, str]:
        stem = Path(name).stem
        return (TUTORIALS.index(stem) if stem in TUTORIALS else len(TUTORIALS), stem)
