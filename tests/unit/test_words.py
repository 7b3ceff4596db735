"""Printed results: labelled paragraphs, and terms that the one glossary explains."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import sgdsde
from sgdsde._words import GLOSSARY, WIDTH, listed, percent, told
from tests.problems import mlp_problem

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_explains_the_same_terms_in_the_same_words() -> None:
    page = (ROOT / "docs" / "glossary.md").read_text()
    entries = dict(re.findall(r"^## (.+)\n\n(.+)$", page, re.MULTILINE))
    assert entries == GLOSSARY


def test_every_term_that_the_library_names_is_an_entry() -> None:
    named = set()
    for path in (ROOT / "sgdsde").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "told":
                (terms,) = [keyword.value for keyword in call.keywords if keyword.arg == "terms"]
                if isinstance(terms, ast.List):
                    named |= {node.value for node in terms.elts if isinstance(node, ast.Constant)}
    assert len(named) >= 4
    assert named <= set(GLOSSARY)


def test_paragraphs_are_labelled_and_fit() -> None:
    text = told(asked="a " * 120, answer="b", sure="c", do="d", table=["1 2"], terms=["run"])
    lines = text.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert [line.split(":")[0] for line in lines if re.match(r"\w[\w ]*:", line)] == [
        "Asked",
        "Answer",
        "How sure",
        "What to do",
    ]
    assert "1 2" in lines
    assert f"  run: {GLOSSARY['run']}" in text


def test_a_term_without_an_entry_is_an_error() -> None:
    with pytest.raises(KeyError):
        told(asked="", answer="", sure="", do="", terms=["eigenfoo"])


def test_numbers_in_words() -> None:
    assert [percent(x) for x in (0.123, 0.0123, 1.0, float("inf"))] == ["12 %", "1.2 %", "100 %", "without bound"]
    assert (listed(["a"]), listed(["a", "b"]), listed("abc", "or")) == ("a", "a and b", "a, b or c")


def test_every_result_says_what_was_asked_the_answer_how_sure_and_what_to_do() -> None:
    problem, sgd = mlp_problem(), sgdsde.SGD(0.05, 3)
    predicted = sgdsde.predict(problem, sgd, 8, record=[0, 4, 8])
    measured = sgdsde.run_ensemble(problem, sgd, 8, 4, record=[0, 4, 8])
    results = {
        "predicted": predicted,
        "measured": measured,
        "comparison": sgdsde.compare(predicted, measured),
        "sweep": sgdsde.sweep(problem, lr=[0.02, 0.05], batch_size=3, n_steps=4),
        "budget": sgdsde.error_budget(problem, sgd, 8, 4, record=[0, 4, 8]),
        "cost": sgdsde.expected_cost(problem, sgd, 8),
        "diagnosis": sgdsde.diagnose(problem, sgd, 8),
    }
    for name, result in results.items():
        text = str(result)
        heads = ["Asked: ", "Answer: ", "How sure: ", "What to do: ", "Terms (docs/glossary.md):"]
        places = [text.find(head) for head in heads]
        assert min(places) >= 0, name
        assert places == sorted(places), name
        assert "tensor(" not in text, name


def test_a_trajectory_and_a_sweep_say_their_numbers() -> None:
    problem = mlp_problem()
    predicted = sgdsde.predict(problem, sgdsde.SGD(0.05, 3), 8, record=[0, 4, 8])
    first, last = (float(predicted.train_loss.mean[i]) for i in (0, -1))
    assert f"train loss from {first:.4g} to {last:.4g}" in " ".join(str(predicted).split())
    assert "the kernel stays that of the initial weights" in " ".join(str(predicted).split())
    found = sgdsde.sweep(problem, lr=[0.02, 0.05, sgdsde.LimitFraction(2.0)], batch_size=3, n_steps=4)
    best = found.best()
    assert f"lr = {best.lr_at(0):.4g}, batch_size = 3 has the smallest predicted test loss" in str(found)
    assert "1 of 3 have no finite loss" in " ".join(str(found).split())
