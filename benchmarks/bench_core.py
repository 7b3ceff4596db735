"""Ratios of the main stages against the plain way to do the same, interleaved in one process.

Each case is a pair of functions with equal results (checked). They run alternately; reported are median seconds with
the smallest and largest, their ratio, and where matrix products are the floor, the fraction of the machine's measured
matrix-product rate that the library reaches. Results with their environment go to benchmarks/results/core.json.

    .venv/bin/python -m benchmarks.bench_core            # one thread, as the committed numbers

A case of another kind: what ``Problem`` costs, with all its checks, in training steps of six models of the tests'
catalogue. One step is a forward pass, a backward pass and an update of a batch of 32, both in processor time.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

import sgdsde
from sgdsde import provenance
from tests.catalogue import CASES

RESULT = Path(__file__).parent / "results" / "core.json"
REPEATS = 5
MODELS = ("conv2d", "residual block", "multihead attention", "transformer encoder", "lstm", "tied weights")
BATCH = 32


def interleaved(ours: Callable[[], Tensor], plain: Callable[[], Tensor], tolerance: float) -> dict[str, object]:
    """Median, min and max seconds of both, alternating; refuses to time two things that differ."""
    first, second = ours(), plain()
    error = float((first - second).abs().max() / second.abs().max())
    if error > tolerance:
        raise SystemExit(f"the two sides differ by {error:.1e}, more than {tolerance:.0e}: nothing to compare")
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(REPEATS):
        for name, function in (("ours", ours), ("plain", plain)):
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    summary = {name: [statistics.median(values), min(values), max(values)] for name, values in seconds.items()}
    return {**summary, "ratio": summary["plain"][0] / summary["ours"][0], "relative_difference": error}


def matrix_product_rate(dtype: torch.dtype, size: int = 1024) -> float:
    """Operations a second of a square product, the best of several."""
    left, right = torch.randn(2, size, size, dtype=dtype)
    best = float("inf")
    for _ in range(REPEATS + 2):
        start = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def problem(n: int, width: int) -> sgdsde.Problem:
    data = sgdsde.datasets.digits(n, 64)
    model = sgdsde.networks.MLP(64, width, 1, generator=torch.Generator().manual_seed(0))
    return sgdsde.Problem(model, **data.tensors(), loss=nn.MSELoss())


def kernel(case: sgdsde.Problem) -> dict[str, object]:
    """Against torch.func's own recipe: all Jacobians by vmap(jacrev), joined, one product in float64.

    Entries of a float32 Jacobian are rounded; layer structure never forms them, so the kernels differ by that.
    """
    model, x = case.model, case.x_train

    def plain() -> Tensor:
        def output(params: dict[str, Tensor], example: Tensor) -> Tensor:
            return functional_call(model, params, (example[None],))[0]

        params = {name: value.detach() for name, value in model.named_parameters()}
        stacked = vmap(jacrev(output), in_dims=(None, 0))(params, x)
        joined = torch.cat([value.flatten(2).flatten(0, 1) for value in stacked.values()], dim=1).double()
        return joined @ joined.mT

    return interleaved(lambda: sgdsde.empirical_ntk(model, x), plain, 1e-6)


def recursion(case: sgdsde.Problem, n_steps: int) -> dict[str, object]:
    """Against the recursion as it is written, in output space: M' = A M A^T + (1/B) lr^2 K N(M) K."""
    linearization = sgdsde.linearize(case)
    _ = linearization.eigenbasis
    lr, batch_size, n = 0.3, 8, case.n_train
    sgd = sgdsde.SGD(lr, batch_size)
    K, e = linearization.kernel, linearization.residual.flatten()

    def ours() -> Tensor:
        return sgdsde.predict(linearization, sgd, n_steps, record=[n_steps]).train_loss.mean

    def plain() -> Tensor:
        A = torch.eye(n, dtype=K.dtype) - lr * 2 / n * K
        M = torch.outer(e, e)
        for _ in range(n_steps):
            N = 4 / n * M.diagonal().diag() - 4 / n**2 * M
            M = A @ M @ A.mT + lr**2 / batch_size * K @ N @ K
        return M.trace()[None] / n

    result = interleaved(ours, plain, 1e-8)
    operations = n_steps * 4 * n**3
    result["fraction_of_product_rate"] = operations / result["ours"][0] / matrix_product_rate(torch.float64)  # type: ignore[index]
    return result


def ensemble(case: sgdsde.Problem, n_runs: int, n_steps: int) -> dict[str, object]:
    """Against one torch.optim loop after the other on the same batches."""
    sgd = sgdsde.SGD(0.3, 8)
    batches = [sgdsde.sampling.batch_indices(sgd, case.n_train, n_steps, seed=0, run=run) for run in range(n_runs)]

    def ours() -> Tensor:
        return sgdsde.run_ensemble(case, sgd, n_steps, n_runs, record=[0, n_steps]).train_loss.mean[1:]

    def plain() -> Tensor:
        losses = []
        for rows in batches:
            model = copy.deepcopy(case.model)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
            for row in rows:
                optimizer.zero_grad()
                nn.functional.mse_loss(model(case.x_train[row]), case.y_train[row]).backward()
                optimizer.step()
            with torch.no_grad():
                losses.append(nn.functional.mse_loss(model(case.x_train), case.y_train))
        return torch.stack(losses).double().mean()[None]

    return interleaved(ours, plain, 1e-3)


def pressed(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss of somebody's own."""
    return (outputs - targets).abs().pow(1.5).mean()


def construction(name: str, loss: Callable[[Tensor, Tensor], Tensor]) -> dict[str, object]:
    """``Problem(...)`` in training steps of the same model, in turns."""
    model, x = CASES[name].model(torch.float32), CASES[name].inputs(BATCH, torch.float32)
    with torch.no_grad():
        y = torch.tanh(model(x).roll(1, 0))
    trained = copy.deepcopy(model)
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        loss(trained(x), y).backward()
        optimizer.step()

    seconds: dict[str, list[float]] = {"problem": [], "step": []}
    for _ in range(4 * REPEATS + 1):
        for key, function, times in (
            ("problem", lambda: sgdsde.Problem(model, x, y, loss=loss), 1),
            ("step", step, 10),
        ):
            start = time.process_time()
            for _ in range(times):
                function()
            seconds[key].append((time.process_time() - start) / times)
    medians = {key: statistics.median(values[1:]) for key, values in seconds.items()}  # without the first, warm-up
    return {**medians, "steps": medians["problem"] / medians["step"]}


def environment() -> dict[str, object]:
    return {
        **provenance.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "float64_products_per_second": matrix_product_rate(torch.float64),
        "float32_products_per_second": matrix_product_rate(torch.float32),
    }


def main() -> None:
    torch.set_num_threads(1)
    cases = {
        "kernel, MLP 64-1024-1, n = 512": kernel(problem(512, 1024)),
        "moment recursion, n = 512, 50 steps": recursion(problem(512, 256), 50),
        "ensemble, MLP 64-1024-1, 16 runs, 100 steps": ensemble(problem(512, 1024), 16, 100),
        "ensemble, MLP 64-64-1, 64 runs, 100 steps": ensemble(problem(256, 64), 64, 100),
    }
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"nn.MSELoss()": nn.MSELoss(), "own function": pressed}
    checks = {name: {key: construction(name, loss) for key, loss in losses.items()} for name in MODELS}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"environment": environment(), "cases": cases, "problem": checks}, indent=1) + "\n")
    for name, case in cases.items():
        ours, plain = case["ours"], case["plain"]
        print(f"{name}: {ours[0]:.3f} s against {plain[0]:.3f} s, ratio {case['ratio']:.2f}")  # type: ignore[index]
    for name, found in checks.items():
        print(
            f"Problem, {name}: " + ", ".join(f"{each['steps']:.0f} steps under {loss}" for loss, each in found.items())
        )


if __name__ == "__main__":
    main()
