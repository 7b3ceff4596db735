"""Seconds and bytes of the empirical kernel against examples, outputs and width, beside torch.func's own recipe.

On a CPU the seconds are those of the processor, with one thread: what else the machine does hardly changes them.
"""

from __future__ import annotations

import ctypes
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

import sgdsde
from experiments.frame import Progress, Scale, by_scale, device, main

SEED = 0
IN_FEATURES = 64
METHODS = ("sgdsde", "torch_func")
SWEEPS = ("examples", "outputs", "width")
PEERS = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "ntk.json"
SHARED = ("tied_weights", "reused_layer")
"""Cases of the benchmark that show errors, not times."""
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
LONG = 3.0
"""Seconds of a call from which on it is not repeated."""


@dataclass(frozen=True)
class Sizes:
    """What a scale decides: the values of each sweep, and what is held while another is swept."""

    examples: tuple[int, ...]
    outputs: tuple[int, ...]
    width: tuple[int, ...]
    held: dict[str, int]
    repeats: int


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    held = {"examples": 64, "outputs": 8, "width": 256}
    sizes = by_scale(
        scale,
        smoke=Sizes((16, 64), (2, 8), (64, 256), {"examples": 32, "outputs": 4, "width": 128}, 4),
        laptop=Sizes((16, 32, 64, 128, 256), (2, 4, 8, 16, 32), (64, 128, 256, 512, 1024), held, 5),
        paper=Sizes((16, 32, 64, 128, 256, 512), (2, 4, 8, 16, 32), (64, 128, 256, 512, 1024, 2048), held, 7),
    )
    torch.set_num_threads(1)
    arrays: dict[str, np.ndarray] = {"sweeps": np.array(SWEEPS), "methods": np.array(METHODS)}
    arrays["held"] = np.array([sizes.held[name] for name in SWEEPS])
    arrays["backward_pass_error"] = np.array(error_against_backward_passes())
    kernels(8, 2, 8)  # what is imported late, before the clock
    differences = []
    for sweep in SWEEPS:
        values: tuple[int, ...] = getattr(sizes, sweep)
        measured = [point(sizes, sweep, value) for value in progress(sweep)(values)]
        arrays[sweep] = np.array(values)
        arrays[f"{sweep}_seconds"] = np.array([entry[0] for entry in measured])  # [point, method]
        arrays[f"{sweep}_bytes"] = np.array([entry[1] for entry in measured])
        differences += [entry[2] for entry in measured]
    arrays["largest_difference"] = np.array(max(differences))
    return arrays | peers()


def point(sizes: Sizes, sweep: str, value: int) -> tuple[list[float], list[float], float]:
    """Least seconds and peak bytes of each method, and the difference of their kernels."""
    size = sizes.held | {sweep: value}
    methods = methods_of(*model_and_inputs(size["examples"], size["outputs"], size["width"], torch.float32))
    seconds = [float("inf")] * len(METHODS)
    peaks = [0.0] * len(METHODS)
    found: list[Tensor] = []
    for repeat in range(sizes.repeats):
        for index, method in enumerate(methods):
            if repeat and seconds[index] > LONG:
                continue
            elapsed, peak, kernel = measured_call(method)
            seconds[index], peaks[index] = min(seconds[index], elapsed), max(peaks[index], peak)
            if not repeat:
                found.append(kernel)
            del kernel
    return seconds, peaks, relative_difference(*found)


def kernels(n: int, c: int, width: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """By every method, in the order of METHODS."""
    return [method() for method in methods_of(*model_and_inputs(n, c, width, dtype))]


def model_and_inputs(n: int, c: int, width: int, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """Two hidden layers with biases in the NTK parametrization, and normal inputs [n, 64]."""
    generator = torch.Generator().manual_seed(SEED)
    model = sgdsde.networks.MLP(IN_FEATURES, width, c, depth=2, sigma_b=0.1, dtype=dtype, generator=generator)
    x = torch.randn(n, IN_FEATURES, dtype=dtype, generator=generator)
    return model.to(device()), x.to(device())


def methods_of(model: nn.Module, x: Tensor) -> list[Callable[[], Tensor]]:
    params = {name: value.detach() for name, value in model.named_parameters()}

    def output(values: dict[str, Tensor], example: Tensor) -> Tensor:
        return functional_call(model, values, (example[None],))[0]

    def ours() -> Tensor:
        return sgdsde.empirical_ntk(model, x, dtype=x.dtype)

    def torch_func() -> Tensor:
        jacobians = vmap(jacrev(output), (None, 0))(params, x)
        flat = [value.flatten(2).flatten(0, 1) for value in jacobians.values()]
        return torch.stack([value @ value.mT for value in flat]).sum(0)

    return [ours, torch_func]


def error_against_backward_passes() -> float:
    """Largest of all methods in float64, against one backward pass per output, relative to the largest entry."""
    model, x = model_and_inputs(6, 3, 16, torch.float64)
    params = list(model.parameters())
    rows = []
    for value in model(x).flatten():
        gradients = torch.autograd.grad(value, params, retain_graph=True)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    jacobian = torch.stack(rows)
    return max(relative_difference(kernel, jacobian @ jacobian.mT) for kernel in kernels(6, 3, 16, torch.float64))


def relative_difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def measured_call(method: Callable[[], Tensor]) -> tuple[float, float, Tensor]:
    """Seconds, peak bytes above what was held before (NaN where the system does not tell), result."""
    on_cuda = device().type == "cuda"
    if on_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = float(torch.cuda.memory_allocated())
    else:
        before = resident_after_reset()
    clock = time.perf_counter if on_cuda else time.process_time
    start = clock()
    kernel = method()
    if on_cuda:
        torch.cuda.synchronize()
    elapsed = clock() - start
    after = float(torch.cuda.max_memory_allocated()) if on_cuda else status("VmHWM")
    return elapsed, after - before, kernel


def resident_after_reset() -> float:
    """Resident bytes after freed memory went back to the system; the peak counts from here on."""
    if not CLEAR.exists():
        return float("nan")
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
    CLEAR.write_text("5")
    return status("VmRSS")


def status(field: str) -> float:
    """One of this process's sizes in bytes, NaN where the system does not tell."""
    lines = STATUS.read_text().splitlines() if STATUS.exists() else []
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith(field)), float("nan"))


def peers() -> dict[str, np.ndarray]:
    """The committed comparison with tools: seconds [case, tool, (median, least, largest)], errors [case, tool]."""
    content = json.loads(PEERS.read_text())
    cases = content["cases"]
    timed = [name for name in cases if name not in SHARED]
    tools = list(dict.fromkeys(tool for found in cases.values() for tool in found))
    seconds = [[cases[name].get(tool, {}).get("seconds", [np.nan] * 3) for tool in tools] for name in timed]
    errors = [[cases[name].get(tool, {}).get("error", np.nan) for tool in tools] for name in SHARED]
    return {
        "peer_cases": np.array(timed),
        "peer_tools": np.array(tools),
        "peer_seconds": np.array(seconds),
        "shared_cases": np.array(SHARED),
        "shared_errors": np.array(errors),
        "peer_environment": np.array(json.dumps(content["environment"])),
    }


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
