"""Every combination of loss, sampling, momentum, decay, label noise, schedule, dynamics: an answer, or one step to it.

A refusal names an alternative that works for this very problem. The test reads it, does what it says, and must get a
finite prediction. The default, with no dynamics named, never refuses but for label noise under another loss.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import warnings

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde import dynamics
from tests.problems import classification_problem, mlp_problem

N_STEPS = 6


def absolute_problem() -> sgdsde.Problem:
    """A loss without a second derivative."""
    problem = mlp_problem()
    return sgdsde.Problem(problem.model, problem.x_train, problem.y_train, loss=nn.L1Loss())


PROBLEMS = {"squared": mlp_problem, "classes": classification_problem, "absolute": absolute_problem}
CHOICES = {
    "sampling": ["with_replacement", "without_replacement", "shuffled"],
    "momentum": [0.0, 0.5],
    "weight_decay": [0.0, 0.02],
    "label_noise_std": [0.0, 0.1],
    "lr": [0.02, lambda k: 0.02 / (1 + k)],
}
DYNAMICS = {
    "default": None,
    "GradientFlow": dynamics.GradientFlow(),
    "GradientDescent": dynamics.GradientDescent(),
    "OrnsteinUhlenbeck": dynamics.OrnsteinUhlenbeck(),
    "OrnsteinUhlenbeck(init)": dynamics.OrnsteinUhlenbeck("init"),
    "MomentEquations": dynamics.MomentEquations(),
    "MomentRecursion": dynamics.MomentRecursion(),
    "GaussianClosure": dynamics.GaussianClosure(),
    "SDEPaths": dynamics.SDEPaths(4),
    "ExponentialEuler": dynamics.SDEPaths(4, dynamics.ExponentialEuler()),
    "WeakOrder2": dynamics.SDEPaths(4, dynamics.WeakOrder2()),
    "FrozenNoise": dynamics.SDEPaths(4, dynamics.FrozenNoise()),
    "two substeps": dynamics.SDEPaths(4, dynamics.EulerMaruyama(2)),
    "LinearizedSGD": dynamics.LinearizedSGD(4),
    "TracedRecursion": dynamics.TracedRecursion(),
    "ReducedMoments": dynamics.ReducedMoments(),
    "MovingKernel": dynamics.MovingKernel(feedback=None),
}


@pytest.fixture(scope="module", params=PROBLEMS, ids=str)
def linearization(request: pytest.FixtureRequest) -> sgdsde.Linearization:
    return sgdsde.linearize(PROBLEMS[request.param]())


def settings() -> list[sgdsde.SGD]:
    made = (dict(zip(CHOICES, values)) for values in itertools.product(*CHOICES.values()))
    return [sgdsde.SGD(batch_size=3, **words) for words in made]


def answer(linearization: sgdsde.Linearization, sgd: sgdsde.SGD, theory: dynamics.Dynamics | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = sgdsde.predict(linearization, sgd, N_STEPS, dynamics=theory, record=[0, 1, N_STEPS])
    assert torch.isfinite(found.train_loss.mean).all()


def followed(message: str, sgd: sgdsde.SGD, theory: dynamics.Dynamics) -> tuple[sgdsde.SGD, dynamics.Dynamics]:
    """What the remedy of an error says: a dynamics, an integrator, changes of the SGD."""
    remedy = message.rsplit("; use ", 1)[1]
    for word, value in re.findall(r"(\w+)=(0)\b", remedy):
        sgd = dataclasses.replace(sgd, **{word: float(value)})
    named = re.search(r"(?:dynamics\.)?([A-Z]\w+)\(([^)]*)\)", remedy)
    if named is None:
        assert sgd, remedy
        return sgd, theory
    made = eval(f"dynamics.{named[1]}({named[2]})", {"dynamics": dynamics})
    return sgd, dataclasses.replace(theory, integrator=made) if isinstance(made, dynamics.Integrator) else made


@pytest.mark.parametrize("name", DYNAMICS, ids=str)
def test_following_the_advice_gives_an_answer(linearization: sgdsde.Linearization, name: str) -> None:
    theory, refused = DYNAMICS[name], 0
    for sgd in settings():
        message = refusal(linearization, sgd, theory)
        if message:
            refused += 1
            answer(linearization, *followed(message, sgd, theory))
            assert name != "default" or "label noise" in message, "the default must work without a word from the user"
    if name in ("default", "SDEPaths", "LinearizedSGD", "GradientDescent"):
        assert refused < len(settings())


def refusal(linearization: sgdsde.Linearization, sgd: sgdsde.SGD, theory: dynamics.Dynamics | None) -> str:
    try:
        answer(linearization, sgd, theory)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("sampling", CHOICES["sampling"])
def test_limit_budget_and_diagnosis_know_every_sampling(linearization: sgdsde.Linearization, sampling: str) -> None:
    sgd = sgdsde.SGD(0.02, 3, sampling=sampling)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        budget = sgdsde.error_budget(linearization, sgd, N_STEPS, 4, n_reference=16, record=[0, N_STEPS])
        diagnosis = sgdsde.diagnose(linearization, sgd, N_STEPS)
    assert torch.isfinite(budget.train.gap).all()
    assert str(diagnosis)
    if not isinstance(linearization.problem.loss, nn.L1Loss):
        assert sgdsde.stability.max_lr(linearization, 3, sampling=sampling) > 0
