"""Settings by the hundred, in and out of range: each a result or one line of the library's own, no hang and no NaN."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sgdsde
from sgdsde import stability
from tests.generated import WILD, answer, problem_words, right_sgds, sgds, theories

QUICK = settings(
    max_examples=20, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
MANY = settings(QUICK, max_examples=200)
OFTEN, SELDOM = st.integers(0, 12), st.integers(0, 5)
STEPS = SELDOM.flatmap(lambda chance: WILD if chance == 0 else OFTEN)
WILD_RECORDS = st.one_of(st.lists(OFTEN, max_size=4), st.lists(WILD, max_size=2), WILD)
RECORDS = SELDOM.flatmap(lambda chance: WILD_RECORDS if chance == 0 else st.none())


def check_sgd(words: dict[str, Any]) -> None:
    made = answer(lambda: sgdsde.SGD(**words))
    if made is not None:
        answer(lambda: made.plan(6, 5))


def check_problem(words: dict[str, Any]) -> None:
    model = words.pop("model")
    made = answer(lambda: sgdsde.Problem(model, words.pop("x_train"), words.pop("y_train"), **words))
    if made is not None:
        answer(lambda: sgdsde.predict(made, sgdsde.SGD(0.1, 2), 3))


def check_prediction(words: dict[str, Any], sgd: sgdsde.SGD, n_steps: Any, record: Any, theory: Any) -> None:
    problem = sgdsde.Problem(words.pop("model"), words.pop("x_train"), words.pop("y_train"), **words)
    kind, options = theory
    chosen = answer(lambda: kind(**options)) if kind is not None else None
    answer(lambda: sgdsde.predict(problem, sgd, n_steps, record=record, dynamics=chosen))


def check_runs(words: dict[str, Any], sgd: sgdsde.SGD, n_steps: Any, n_runs: Any, memory: Any) -> None:
    problem = sgdsde.Problem(words.pop("model"), words.pop("x_train"), words.pop("y_train"), **words)
    answer(lambda: sgdsde.run_ensemble(problem, sgd, n_steps, n_runs, memory=memory))
    answer(lambda: sgdsde.linearize(problem, memory=memory))
    answer(lambda: stability.max_lr(problem, n_runs))


CHECKS = {
    check_sgd: {"words": sgds()},
    check_problem: {"words": problem_words()},
    check_prediction: {
        "words": problem_words(right=True),
        "sgd": right_sgds(),
        "n_steps": STEPS,
        "record": RECORDS,
        "theory": st.one_of(st.just((None, {})), theories()),
    },
    check_runs: {
        "words": problem_words(right=True),
        "sgd": right_sgds(),
        "n_steps": STEPS,
        "n_runs": SELDOM.flatmap(lambda chance: WILD if chance == 0 else st.integers(1, 4)),
        "memory": SELDOM.flatmap(lambda chance: WILD if chance == 0 else st.sampled_from([None, 10**7])),
    },
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_few_settings_are_answered(check):
    QUICK(given(**CHECKS[check])(check))()


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_two_hundred_settings_are_answered(check):
    MANY(given(**CHECKS[check])(check))()
