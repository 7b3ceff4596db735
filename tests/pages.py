"""The code blocks of the pages, and what the pages take as given."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import sgdsde

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
LANGUAGES = {"python", "console", "text", "json", "bibtex", "toml", "ini", "html", "{toctree}"}
_BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page: the word behind the fence, and what is between."""

    page: Path
    language: str
    text: str
    line: int


def blocks(page: Path, language: str | None = None) -> list[Block]:
    """The blocks of a page in order, of one language or of all."""
    text = page.read_text()
    found = [
        Block(page, match[1].strip(), match[2], text.count("\n", 0, match.start()) + 1)
        for match in _BLOCK.finditer(text)
    ]
    return [block for block in found if language in (None, block.language)]


def given() -> dict[str, Any]:
    """The names that a page takes from a reader's script: a problem, a training loop, eigenvalues."""
    stream = torch.Generator().manual_seed(0)
    data = sgdsde.datasets.synthetic(24, 12, 5, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = sgdsde.networks.MLP(5, 32, 1)
    problem = sgdsde.Problem(model, **data.tensors(), loss=torch.nn.MSELoss())
    pairs = torch.utils.data.TensorDataset(data.x_train, data.y_train)
    sample = torch.randn(40, 10, generator=stream, dtype=torch.float64)
    return {
        "__name__": "page",
        "torch": torch,
        "sgdsde": sgdsde,
        "problem": problem,
        "model": model,
        "x_train": data.x_train,
        "sgd": sgdsde.SGD(0.1 * sgdsde.stability.max_lr(problem, 8), 8),
        "loader": torch.utils.data.DataLoader(pairs, batch_size=8, shuffle=True),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.01),
        "eigenvalues": torch.linalg.eigvalsh(sample.T @ sample / 40).flip(0),
        "n_samples": 40,
    }
