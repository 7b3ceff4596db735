"""The kernel in float64 from one backward pass per output: slow, obvious, and independent of every contestant."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.ntk.cases import Case
from benchmarks.ntk.torch_models import torch_case

BLOCK_BYTES = 2 * 2**30


def reference(case: Case, cache: Path) -> np.ndarray:
    """The kernel that ``case`` asks for, float64, computed once and kept in ``cache`` under a hash of its inputs."""
    path = cache / f"{digest(case)}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        model, x = torch_case(case, torch.float64)
        unfinished = path.with_suffix(".tmp.npy")
        np.save(unfinished, by_backward_passes(model, x).numpy())
        unfinished.rename(path)
    full = np.load(path)
    if case.outputs == "full":
        return full
    n, c = case.n, case.n_outputs
    return np.trace(full.reshape(n, c, n, c), axis1=1, axis2=3)


def digest(case: Case) -> str:
    """Of everything that the full kernel depends on; the same for the full kernel and its trace."""
    content = hashlib.sha256(repr(replace(case, name="", outputs="full")).encode())
    for value in (*case.weights().values(), case.inputs()):
        content.update(value.tobytes())
    return content.hexdigest()[:16]


def by_backward_passes(model: nn.Module, x: Tensor) -> Tensor:
    """J J^T [n*c, n*c], the Jacobian in blocks of examples that hold at most ``BLOCK_BYTES``."""
    parameters = list(model.parameters())
    with torch.no_grad():
        n, c = model(x).shape
    size = sum(value.numel() for value in parameters)
    step = max(1, BLOCK_BYTES // (x.element_size() * size * c))
    kernel = torch.empty(n * c, n * c, dtype=x.dtype)
    starts = range(0, n, step)
    for i in starts:
        left = _jacobian(model, parameters, x[i : i + step])
        for j in starts[: i // step + 1]:
            right = left if i == j else _jacobian(model, parameters, x[j : j + step])
            block = left @ right.mT
            kernel[i * c : (i + step) * c, j * c : (j + step) * c] = block
            kernel[j * c : (j + step) * c, i * c : (i + step) * c] = block.mT
    return kernel


def _jacobian(model: nn.Module, parameters: Sequence[Tensor], x: Tensor) -> Tensor:
    rows: list[Tensor] = []
    for example in x:
        outputs = model(example[None])[0]
        for output in outputs:
            gradients = torch.autograd.grad(output, parameters, retain_graph=True)
            rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(rows)
