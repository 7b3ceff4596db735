"""What following the tail of a truncated kernel is worth: expected training losses against those on all eigenpairs.

    SGDSDE_DATA=... python -m benchmarks.bench_tail [--n-train 512 --seeds 2 --ranks 32 128]

Plain SGD at half of the mean-square limit, B = 4, one output. The reference is ``ReducedMoments`` on the whole kernel,
which has an error of 1e-4 itself. Results are written case by case to benchmarks/results/tail.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import nn

import sgdsde
from sgdsde import SGD, dynamics, stability
from sgdsde.prediction import evolve

RESULT = Path(__file__).parent / "results" / "tail.json"
RECORD = [0, 30, 100, 300, 1000, 3000]
WIDTH, BATCH_SIZE, SHARE = 1024, 4, 0.5


def linearized(name: str, n_train: int, seed: int) -> sgdsde.Linearization:
    """Digits, or MNIST averaged over squares of four pixels; a ReLU network of one hidden layer."""
    data = getattr(sgdsde.datasets, name)(n_train, 16, target="sign", flatten=True)
    x, y = data.x_train, data.y_train
    if name == "mnist":
        x = nn.functional.avg_pool2d(x.view(-1, 1, 28, 28), 2).flatten(1)
    model = sgdsde.networks.MLP(x.shape[1], WIDTH, 1, generator=torch.Generator().manual_seed(seed))
    return sgdsde.linearize(sgdsde.Problem(model, x, y, loss=nn.MSELoss()))


def errors(name: str, seed: int, options: argparse.Namespace) -> list[dict[str, object]]:
    whole = linearized(name, options.n_train, seed)
    sgd = SGD(SHARE * stability.max_lr(whole, BATCH_SIZE), BATCH_SIZE)

    def loss(one: sgdsde.Linearization, kind: dynamics.Dynamics) -> torch.Tensor:
        return evolve(kind, one, sgd, RECORD).train_loss.mean

    reference, found = loss(whole, dynamics.ReducedMoments()), []
    for rank in options.ranks:
        followed, frozen = whole.truncate(rank), whole.truncate(rank, tail="frozen")
        assert followed.basis is not None
        losses = {
            "followed": loss(followed, dynamics.ReducedMoments()),
            "half": loss(followed.halved(), dynamics.ReducedMoments()),
            "modal": loss(followed, dynamics.ModalMoments()),
            "frozen": loss(frozen, dynamics.ModalMoments()),
        }
        case: dict[str, object] = {"data": name, "seed": seed, "rank": rank, "modes": len(followed.basis.values)}
        case |= {kind: (values / reference - 1).tolist() for kind, values in losses.items()}
        change = (losses["half"] / losses["followed"] - 1).abs().cummax(0).values
        found.append(case | {"reported": change.tolist(), "loss": reference.tolist()})
        print(json.dumps(found[-1]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-train", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--ranks", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--data", nargs="+", default=["digits", "mnist"])
    options = parser.parse_args()
    result: dict[str, object] = {"n_train": options.n_train, "batch_size": BATCH_SIZE, "share": SHARE, "steps": RECORD}
    cases: list[dict[str, object]] = []
    for seed in range(options.seeds):
        for name in options.data:
            cases += errors(name, seed, options)
            RESULT.write_text(json.dumps(result | {"cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
