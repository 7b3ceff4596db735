"""From `git clone` to a figure of your own model, with nothing but the README, and how long each part takes.

    python3 docs/clone_to_figure.py REPOSITORY          clone, make venv, the README's lines on a model of one's own
    .venv/bin/python docs/clone_to_figure.py --here     the last part alone, in this environment

The figure must be there within ten minutes on two cores, most of which are the download of torch, or it exits with 1.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ALLOWED = 600
"""Seconds."""

OWN_SCRIPT = """
import torch, sgdsde
from torch.utils.data import DataLoader, TensorDataset

digits = sgdsde.datasets.digits(n_train=256, n_test=128)
model = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.Tanh(), torch.nn.Linear(512, 1))
loader = DataLoader(TensorDataset(digits.x_train, digits.y_train), batch_size=16, shuffle=True)
optimizer = torch.optim.SGD(model.parameters(), lr=0.03)
"""
"""What one has already: a model, a loader, an optimizer. It is followed by the lines that the README adds."""


def readme_lines(root: Path) -> str:
    """The README's block for one's own training script."""
    blocks = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)
    (lines,) = (block for block in blocks if "from_optimizer" in block)
    return lines


def timed(label: str, command: list[str], folder: Path) -> float:
    """Run a command, whose failure ends the script, and say how long it took."""
    start = time.monotonic()
    subprocess.run(command, cwd=folder, check=True)
    seconds = time.monotonic() - start
    print(f"{label}: {seconds:.0f} s", flush=True)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("repository", nargs="?", help="what git clones: an address or a folder")
    parser.add_argument("--here", action="store_true", help="use this clone and this Python")
    parser.add_argument("--folder", type=Path, help="where to work; default a new temporary folder, which is kept")
    options = parser.parse_args()
    if options.here == (options.repository is not None):
        parser.error("name a repository to clone, or --here for this clone")
    folder = options.folder or Path(tempfile.mkdtemp(prefix="sgdsde-"))
    total = 0.0
    root, python = Path(__file__).resolve().parents[1], sys.executable
    if not options.here:
        root = folder / "sgdsde"
        total += timed("clone", ["git", "clone", "--quiet", options.repository, str(root)], folder)
        total += timed("environment", ["make", "venv"], root)
        python = str(root / ".venv" / "bin" / "python")
    mine = folder / "mine"  # beside the clone its folder would pass for the package
    mine.mkdir(exist_ok=True)
    (mine / "mine.py").write_text(OWN_SCRIPT + readme_lines(root))
    total += timed("prediction, measurement, figure", [python, "mine.py"], mine)
    figure = mine / "my_loss.png"
    print(f"{figure}: {total:.0f} s of {ALLOWED} s")
    return int(not figure.is_file() or total > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
