"""A kernel on disk that is killed while it is made and resumed, has the bits of one made at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from sgdsde.kernel import TiledKernel

MAKE = """
import sys, time, torch, sgdsde
from sgdsde.kernel import TiledKernel
from sgdsde.kernel.tiles import tile_file
from torch import nn
torch.set_num_threads(1)
pause = float(sys.argv[2])
generator = torch.Generator().manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
for parameter in model.parameters():
    parameter.data = torch.randn(parameter.shape, generator=generator)
x = torch.randn(23, 1, 6, 6, generator=generator)
def slowly(items):
    for item in items:
        time.sleep(pause)
        yield item
TiledKernel.create(sys.argv[1], model, x, tile=4, memory=10_000_000, outputs=sys.argv[3], progress=slowly)
"""


def make(folder: Path, outputs: str, *, pause: float = 0.0) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", MAKE, str(folder), str(pause), outputs])


def tiles(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.*") if not path.name.startswith(".")}


def kill_after(folder: Path, outputs: str, count: int) -> None:
    process = make(folder, outputs, pause=0.1)
    deadline = time.monotonic() + 60
    while len(list(folder.glob("tile*"))) < count:
        assert process.poll() is None, "finished or failed before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_killed_kernel_resumes_to_the_same_bits(tmp_path):
    resumed, whole = tmp_path / "resumed", tmp_path / "whole"
    undisturbed = make(whole, "full")
    kill_after(resumed, "full", 9)
    assert 9 <= len(list(resumed.glob("tile*"))) < 21
    assert make(resumed, "full").wait() == 0
    assert undisturbed.wait() == 0
    assert len(tiles(whole)) == 22
    assert tiles(resumed) == tiles(whole)
    TiledKernel.open(resumed)
