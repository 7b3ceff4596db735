"""Error budgets: where predictions of four kinds go wrong, term by term."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

import sgdsde
from experiments.frame import Progress, Scale, by_scale, device, main
from experiments.problems import digits_mlp
from sgdsde.budget import TERMS
from sgdsde.dynamics import Dynamics, MomentRecursion, MovingKernel, OrnsteinUhlenbeck, SDEPaths
from sgdsde.stability import max_lr

SEED = 0
BATCH_SIZE = 8
FRACTION_OF_LIMIT = 0.4
NARROW_FRACTION = 0.2
"""Of the limit, for the network whose kernel moves."""


@dataclass(frozen=True)
class Sizes:
    """What a scale decides."""

    n_train: int
    n_classes_train: int
    width: int
    narrow: int
    n_steps: int
    n_runs: int
    n_reference: int


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    sizes = by_scale(
        scale,
        smoke=Sizes(32, 16, 128, 32, n_steps=16, n_runs=16, n_reference=192),
        laptop=Sizes(128, 48, 512, 48, n_steps=192, n_runs=128, n_reference=4000),
        paper=Sizes(512, 128, 4096, 64, n_steps=1024, n_runs=1000, n_reference=16000),
    )
    wide = sgdsde.linearize(digits_mlp(sizes.n_train, 32, sizes.width), progress=progress("wide"))
    narrow = sgdsde.linearize(digits_mlp(sizes.n_train, 32, sizes.narrow), progress=progress("narrow"))
    classes = sgdsde.linearize(classifier(sizes), progress=progress("classifier"))
    sgd = sgdsde.SGD(FRACTION_OF_LIMIT * max_lr(wide, BATCH_SIZE), BATCH_SIZE)
    slow = sgdsde.SGD(NARROW_FRACTION * max_lr(narrow, BATCH_SIZE), BATCH_SIZE)
    singles = sgdsde.SGD(CLASSIFIER_LR, 1)
    panels: dict[str, tuple[sgdsde.Linearization, sgdsde.SGD, Dynamics]] = {
        "recursion": (wide, sgd, MomentRecursion()),
        "frozen_noise": (wide, sgd, OrnsteinUhlenbeck(rtol=1e-6)),
        "moving_kernel": (narrow, slow, MovingKernel()),
        "cross_entropy": (classes, singles, SDEPaths(sizes.n_reference)),
    }
    arrays: dict[str, np.ndarray] = {"panels": np.array(list(panels)), "n_runs": np.array(sizes.n_runs)}
    for name, (linearization, how, theory) in panels.items():
        arrays |= budget(name, linearization, how, theory, sizes, progress)
    return arrays | controls(wide, sgd, sizes, progress)


CLASSIFIER_LR = 0.5


def classifier(sizes: Sizes) -> sgdsde.Problem:
    """Digits in ten classes under cross-entropy, a wide network."""
    data = sgdsde.datasets.digits(sizes.n_classes_train, 32, target="class")
    generator = torch.Generator().manual_seed(SEED)
    model = sgdsde.networks.MLP(data.in_features, sizes.width, 10, generator=generator).to(device())
    return sgdsde.Problem(model, **data.to(device=device()).tensors(), loss=torch.nn.CrossEntropyLoss())


def budget(
    name: str,
    linearization: sgdsde.Linearization,
    sgd: sgdsde.SGD,
    theory: Dynamics,
    sizes: Sizes,
    progress: Progress,
) -> dict[str, np.ndarray]:
    """Every number of one budget, by names that start with ``name``."""
    record = [0, *np.unique(np.rint(np.geomspace(1, sizes.n_steps, 30))).astype(int).tolist()]
    found = sgdsde.error_budget(
        linearization,
        sgd,
        sizes.n_steps,
        sizes.n_runs,
        dynamics=theory,
        seed=SEED,
        record=record,
        n_reference=sizes.n_reference,
        progress=progress(name),
    )
    arrays = {"steps": np.array(record), "lr": np.array(sgd.lr_at(0))}
    for side, curve in found.curves.items():
        arrays |= {f"{side}_{part}": getattr(curve, part).numpy() for part in ("measured", "predicted")}
        arrays[f"{side}_gap_error"] = curve.gap_standard_error.numpy()
        arrays[f"{side}_terms"] = np.stack([curve.terms[term].value.numpy() for term in TERMS])
        arrays[f"{side}_errors"] = np.stack([curve.terms[term].standard_error.numpy() for term in TERMS])
    arrays["terms"] = np.array(TERMS)
    return {f"{name}_{key}": value for key, value in arrays.items()}


def controls(wide: sgdsde.Linearization, sgd: sgdsde.SGD, sizes: Sizes, progress: Progress) -> dict[str, np.ndarray]:
    """Largest terms that must vanish, in units of the first loss: of a linear model, and of whole batches."""
    features = wide.eigenbasis.vectors * wide.eigenbasis.values.sqrt()
    n = wide.problem.n_train
    model = (lambda params, x: x @ params["theta"], {"theta": torch.zeros(features.shape[1], 1, dtype=features.dtype)})
    linear = sgdsde.Problem(model, features, wide.targets, loss=torch.nn.MSELoss())
    of_linear = sgdsde.error_budget(linear, sgd, sizes.n_steps, 8, dynamics=MovingKernel(), progress=progress("linear"))
    whole = replace(sgd, batch_size=n, sampling="without_replacement")
    of_whole = sgdsde.error_budget(wide, whole, sizes.n_steps, 2, dynamics=OrnsteinUhlenbeck())
    names = {"linear": ("linearization", "kernel_motion"), "whole": ("monte_carlo", "non_gaussian", "frozen_noise")}
    largest = {}
    for key, found in (("linear", of_linear), ("whole", of_whole)):
        worst = max(float(found.terms[name].value.abs().max()) for name in names[key])
        largest[f"{key}_terms"] = np.array(worst / float(found.train.measured[0]))
    return largest


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
