"""What float32 and TF32 cost in digits: kernel, largest eigenvalue, stability limit and predicted loss.

All against model, kernel and spectra in float64, on the same weights and data. TF32 is a CUDA device's reduced product
and appears only there. Results go to benchmarks/results/precision_cpu.json or precision_cuda.json.

    python -m benchmarks.bench_precision                # on the CUDA device where there is one, else on the CPU
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sgdsde
from benchmarks.ntk.page import write_page
from sgdsde import provenance

RESULTS = Path(__file__).parent / "results"
BATCH_SIZE = 8
N_STEPS = 500


@dataclass(frozen=True)
class Way:
    """Dtypes of the model and of the kernel, and whether products may be TF32."""

    name: str
    model: torch.dtype
    kernel: torch.dtype
    tf32: bool = False


EXACT = Way("float64", torch.float64, torch.float64)
WAYS = (
    Way("model float32, kernel float64 (default)", torch.float32, torch.float64),
    Way("model float32, kernel float32", torch.float32, torch.float32),
    Way("model float32, kernel float32, TF32 products", torch.float32, torch.float32, tf32=True),
)


def problems(device: torch.device) -> dict[str, sgdsde.Problem]:
    """Float64, on digits: a shallow, a deep and a convolutional network."""
    data = sgdsde.datasets.digits(200, 64)
    generator = torch.Generator().manual_seed(0)
    mlp, cnn = sgdsde.networks.MLP, sgdsde.networks.CNN
    flat = {name: value.double().to(device) for name, value in data.tensors().items()}
    images = {name: value.reshape(-1, 1, 8, 8) if name.startswith("x") else value for name, value in flat.items()}
    made = {
        "MLP 64-1024-1": (mlp(64, 1024, 1, dtype=torch.float64, generator=generator), flat),
        "MLP, 8 hidden layers of 128": (mlp(64, 128, 1, depth=8, dtype=torch.float64, generator=generator), flat),
        "CNN, 3 convolutions of 16": (cnn(1, 8, 16, 1, depth=3, dtype=torch.float64, generator=generator), images),
    }
    return {
        name: sgdsde.Problem(model.to(device), **tensors, loss=nn.MSELoss()) for name, (model, tensors) in made.items()
    }


def cast(problem: sgdsde.Problem, dtype: torch.dtype) -> sgdsde.Problem:
    """The same problem with weights and data rounded to ``dtype``."""
    names = ("x_train", "y_train", "x_test", "y_test")
    tensors = {name: getattr(problem, name).to(dtype) for name in names}
    return sgdsde.Problem(copy.deepcopy(problem.model).to(dtype), **tensors, loss=nn.MSELoss())


def numbers(problem: sgdsde.Problem, way: Way, lr: float | None) -> dict[str, Any]:
    """What the library finds in this way; ``lr`` None: half of the limit that it finds."""
    with products(tf32=way.tf32):
        linearization = sgdsde.linearize(cast(problem, way.model), dtype=way.kernel)
        limit = sgdsde.stability.max_lr(linearization, BATCH_SIZE)
        lr = lr or limit / 2
        predicted = sgdsde.predict(linearization, sgdsde.SGD(lr, BATCH_SIZE), N_STEPS)
        kernel = linearization.kernel
        assert isinstance(kernel, Tensor)
        return {
            "kernel": kernel.double(),
            "eigenvalue": float(torch.linalg.eigvalsh(kernel)[-1]),
            "limit": limit,
            "lr": lr,
            "loss": predicted.train_loss.mean.double().cpu(),
        }


@contextmanager
def products(*, tf32: bool) -> Iterator[None]:
    """TF32 in matrix products and convolutions, or not, for as long as it lasts."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def errors(found: dict[str, Any], exact: dict[str, Any]) -> dict[str, float]:
    """Relative: of the kernel to its largest entry, of the loss at the worst recorded step."""
    difference = (found["kernel"] - exact["kernel"]).abs().max()
    return {
        "kernel": float(difference / exact["kernel"].abs().max()),
        "largest_eigenvalue": abs(found["eigenvalue"] / exact["eigenvalue"] - 1),
        "mean_square_limit": abs(found["limit"] / exact["limit"] - 1),
        "predicted_loss": float((found["loss"] / exact["loss"] - 1).abs().max()),
    }


def table(cases: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = ["| | | kernel | largest eigenvalue | mean-square limit | predicted loss |", "|---|---|---|---|---|---|"]
    for case, ways in cases.items():
        for way, found in ways.items():
            lines.append(f"| {case} | {way} | " + " | ".join(f"{value:.0e}" for value in found.values()) + " |")
    return "\n".join(lines)


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases: dict[str, dict[str, dict[str, float]]] = {}
    for name, problem in problems(device).items():
        exact = numbers(problem, EXACT, None)
        ways = [way for way in WAYS if device.type == "cuda" or not way.tf32]
        cases[name] = {way.name: errors(numbers(problem, way, exact["lr"]), exact) for way in ways}
    hardware = {**provenance.machine(), "torch": torch.__version__}
    if device.type == "cuda":
        hardware["device"] = torch.cuda.get_device_name()
    content = {"environment": hardware, "cases": cases}
    (RESULTS / f"precision_{device.type}.json").write_text(json.dumps(content, indent=1) + "\n")
    write_page({f"precision_{device.type}": table(cases)})
    print(table(cases))


if __name__ == "__main__":
    main()
