"""Claim: run j of ``run_ensemble`` is what a plain ``torch.optim.SGD`` loop makes of the batches of run j.

For every combination of words, schedules through torch's ``LambdaLR``: to 1e-10 in float64, 1e-5 in float32.
"""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch

import sgdsde
from tests.oracles import torch_run
from tests.problems import classification_problem, conv_problem, mlp_problem

N_STEPS, N_RUNS, SEED = 7, 2, 4

OPTIMIZERS = {
    "plain": {},
    "dampening alone": {"dampening": 0.3},
    "momentum": {"momentum": 0.9},
    "momentum, dampening": {"momentum": 0.8, "dampening": 0.3},
    "nesterov": {"momentum": 0.9, "nesterov": True},
}
DECAYS = (0.0, 0.05)
SAMPLINGS = {
    "with replacement": {"sampling": "with_replacement"},
    "without replacement": {"sampling": "without_replacement"},
    "shuffled": {"sampling": "shuffled"},
    "shuffled, drop last": {"sampling": "shuffled", "drop_last": True},
}
LEARNING_RATES = {"constant lr": 0.2, "falling lr": lambda step: 0.3 / (1 + step) ** 0.5}
BATCH_SIZES = {"constant batch": 3, "growing batch": lambda step: (1, 2, 2, 3, 5, 4, 7)[step]}
ALL = list(itertools.product(OPTIMIZERS, DECAYS, SAMPLINGS, LEARNING_RATES, BATCH_SIZES))
SOME = ALL[::7]


@cache
def problem_of(kind: str, dtype: torch.dtype = torch.float64) -> sgdsde.Problem:
    builds = {"mlp": mlp_problem, "conv": conv_problem, "classification": classification_problem}
    if kind == "smoothed classification":
        return classification_problem(dtype=dtype, label_smoothing=0.1)
    return builds[kind](dtype=dtype)


def words_of(optimizer: str, decay: float, sampling: str, lr: str, batch: str) -> dict:
    words = {"lr": LEARNING_RATES[lr], "batch_size": BATCH_SIZES[batch], "weight_decay": decay}
    return {**words, **OPTIMIZERS[optimizer], **SAMPLINGS[sampling]}


def gap(problem: sgdsde.Problem, words: dict, **changed: object) -> float:
    """Largest difference between the ensemble and the loops, over runs, steps, train and test outputs.

    ``changed``: words of the loops alone.
    """
    measured = sgdsde.run_ensemble(
        problem, sgdsde.SGD(**words), N_STEPS, N_RUNS, seed=SEED, record=range(N_STEPS + 1), observe=("loss", "outputs")
    )
    largest = 0.0
    for run in range(N_RUNS):
        loop = torch_run(problem, sgdsde.SGD(**{**words, **changed}), N_STEPS, seed=SEED, run=run)
        for side, outputs in zip(("train", "test"), loop):
            samples = getattr(measured, f"{side}_outputs").samples[run]
            largest = max(largest, float((samples - outputs.double()).abs().max()))
            y = getattr(problem, f"y_{side}")
            losses = torch.stack([problem.loss(step, y) for step in outputs]).double()
            largest = max(largest, float((getattr(measured, f"{side}_loss").samples[run] - losses).abs().max()))
    return largest


@pytest.mark.parametrize(("optimizer", "decay", "sampling", "lr", "batch"), ALL)
def test_every_combination_on_a_dense_network(optimizer: str, decay: float, sampling: str, lr: str, batch: str) -> None:
    assert gap(problem_of("mlp"), words_of(optimizer, decay, sampling, lr, batch)) < 1e-10


@pytest.mark.parametrize("kind", ["conv", "classification", "smoothed classification"])
@pytest.mark.parametrize(("optimizer", "decay", "sampling", "lr", "batch"), SOME)
def test_some_on_other_networks_and_losses(
    kind: str, optimizer: str, decay: float, sampling: str, lr: str, batch: str
) -> None:
    assert gap(problem_of(kind), words_of(optimizer, decay, sampling, lr, batch)) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["conv", "classification"])
@pytest.mark.parametrize(("optimizer", "decay", "sampling", "lr", "batch"), ALL)
def test_every_combination_on_other_networks_and_losses(
    kind: str, optimizer: str, decay: float, sampling: str, lr: str, batch: str
) -> None:
    assert gap(problem_of(kind), words_of(optimizer, decay, sampling, lr, batch)) < 1e-10


@pytest.mark.parametrize("kind", ["mlp", "conv", "classification"])
@pytest.mark.parametrize(("optimizer", "decay", "sampling", "lr", "batch"), ALL[::23])
def test_some_in_single_precision(kind: str, optimizer: str, decay: float, sampling: str, lr: str, batch: str) -> None:
    assert gap(problem_of(kind, torch.float32), words_of(optimizer, decay, sampling, lr, batch)) < 1e-5


WRONG = {
    "dampening": {"dampening": 0.0},
    "nesterov": {"nesterov": True, "dampening": 0.0},
    "momentum": {"momentum": 0.79},
    "decay": {"weight_decay": 0.049},
    "lr": {"lr": 0.199},
    "sampling": {"sampling": "shuffled"},
    "the last lr": {"lr": lambda step: 0.2 if step < N_STEPS - 1 else 0.19},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_the_comparison_notices_every_wrong_word(wrong: dict) -> None:
    words = {"lr": 0.2, "batch_size": 3, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.05}
    assert gap(problem_of("mlp"), words) < 1e-10
    assert gap(problem_of("mlp"), words, **wrong) > 1e-6
