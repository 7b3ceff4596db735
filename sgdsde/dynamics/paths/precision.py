"""The precision of sample paths: that of their state and products, whatever the linearization was made in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from sgdsde._checks import complaint
from sgdsde.linearization import Linearization

Precision: TypeAlias = Literal["float64", "float32", "tf32"]
"""Of state and products; "tf32": float32 whose products keep 10 bits of each factor, on CUDA."""


def in_precision(linearization: Linearization, precision: Precision | None, *, spectrum: bool) -> Linearization:
    """The same linearization with its numbers in this precision; the kernel is decomposed in its own, where it is.

    Raises:
        ValueError: TF32 without CUDA, a kernel that is no tensor.
    """
    device, kernel = linearization.outputs.device, linearization.kernel
    if precision is None:
        return linearization
    if precision == "tf32" and device.type != "cuda":
        received = f"'tf32' on {device.type}"
        raise ValueError(complaint("precision", "'float64' or 'float32' where there is no CUDA", received, "use those"))
    if not isinstance(kernel, Tensor) or not isinstance(linearization.cross_kernel, (Tensor, type(None))):
        received = f"{precision!r} with a {type(kernel).__name__}"
        remedy = "use precision=None, which is that of the linearization"
        raise ValueError(complaint("precision", "given with kernels that are tensors", received, remedy))
    dtype = torch.float64 if precision == "float64" else torch.float32
    if dtype == linearization.outputs.dtype == kernel.dtype:
        return linearization
    names = ("kernel", "cross_kernel", "outputs", "test_outputs", "weight_outputs", "test_weight_outputs")
    found = ((name, getattr(linearization, name)) for name in names)
    parts: dict[str, Any] = {name: part.to(dtype) for name, part in found if part is not None}
    return replace(linearization, basis=linearization.eigenbasis if spectrum else linearization.basis, **parts)


@contextmanager
def products_in(precision: Precision | None) -> Iterator[None]:
    """Products of float32 matrices on CUDA in TF32, in float32 proper, or (None, "float64") as the user has set it."""
    before = torch.backends.cuda.matmul.allow_tf32
    if precision in ("tf32", "float32"):
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
