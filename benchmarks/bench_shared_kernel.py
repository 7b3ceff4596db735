"""Error of one kernel for all outputs, K_0 (x) I_c in place of K, by width: the table of docs/large_kernels.md.

``python -m benchmarks.bench_shared_kernel`` prints it and writes benchmarks/results/shared_kernel.json; a few
minutes on one core. One-hot digits, a ReLU network of one hidden layer in NTK parametrization, B = 8, a quarter of the
mean-square limit of K. Both predictions are exact for their kernel, so nothing is sampled.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

import sgdsde
from sgdsde import provenance
from sgdsde.kernel import DenseKernel, KroneckerKernel

RESULT = Path(__file__).parent / "results" / "shared_kernel.json"
WIDTHS = (32, 128, 512, 2048)
STEPS = (30, 100, 200)
BATCH = 8


def row(width: int) -> dict[str, float]:
    """Relative errors of kernel, losses and stability limit at one width, and the fall of the training loss."""
    data = sgdsde.datasets.digits(64, 64, target="onehot", dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    model = sgdsde.networks.MLP(64, width, 10, dtype=torch.float64, generator=generator)
    problem = sgdsde.Problem(model, **data.tensors(), loss=nn.MSELoss())
    whole = sgdsde.linearize(problem)
    trace = sgdsde.empirical_ntk(model, problem.x_train, outputs="trace", dtype=torch.float64)
    shared = sgdsde.linearize(problem, kernel=KroneckerKernel(DenseKernel(trace), 10, scale=1 / 10))
    limit, other = (sgdsde.stability.max_lr(each, BATCH) for each in (whole, shared))
    sgd = sgdsde.SGD(limit / 4, BATCH)
    exact = sgdsde.predict(whole, sgd, STEPS[-1], record=[0, *STEPS])
    theory = sgdsde.dynamics.TracedRecursion()
    found = sgdsde.predict(shared, sgd, STEPS[-1], record=[0, *STEPS], dynamics=theory)
    errors = (found.train_loss.mean / exact.train_loss.mean - 1).tolist()
    difference = whole.dense_kernel - torch.kron(trace / 10, torch.eye(10, dtype=trace.dtype))
    return {
        "width": width,
        "kernel": float(difference.norm() / whole.dense_kernel.norm()),
        **{f"train loss at {step}": error for step, error in zip(STEPS, errors[1:])},
        f"test loss at {STEPS[-1]}": float(found.test_loss.mean[-1] / exact.test_loss.mean[-1] - 1),
        "limit": other / limit - 1,
        "fall": float(exact.train_loss.mean[0] / exact.train_loss.mean[-1]),
    }


def table(rows: list[dict[str, float]]) -> str:
    """The rows in Markdown."""
    names = [name for name in rows[0] if name not in ("width", "fall")]
    lines = ["| width | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += [
        f"| {each['width']} | " + " | ".join(f"{100 * each[name]:+.2g} %" for name in names) + " |" for each in rows
    ]
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)
    rows = [row(width) for width in WIDTHS]
    content = {"environment": {**provenance.machine(), "versions": provenance.versions()}, "rows": rows}
    RESULT.write_text(json.dumps(content, indent=1) + "\n")
    print(table(rows))
    print(f"training loss falls by {min(r['fall'] for r in rows):.0f} to {max(r['fall'] for r in rows):.0f} times")


if __name__ == "__main__":
    main()
