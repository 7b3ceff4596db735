"""The tool that seeds mutations: every one is a program that differs, words are left alone, a seed is a sample."""

import ast
from pathlib import Path

import pytest

from tests.mutation.mutations import mutations, mutations_of, sample
from tests.mutation.run import EQUIVALENT, ROOT, Reached, equivalents, is_noticed, within, without_parameters

SOURCE = b'''"""Words - words."""

def f(x: int, n: int = 1 + 1) -> "a - b":
    """1 + 1"""
    if x < 0:
        raise ValueError(f"x - 1 = {x - 1}" + str(x - 2))
    warn(x - 3)
    total = 0.5 * x.mT @ y[1:]  # \xcf\x80
    total -= min(x, 2)
    return -total / 2
'''


def test_every_kind_is_found_and_words_are_left_alone():
    found = mutations_of(SOURCE, "f.py")
    assert [(mutation.lines.start, mutation.old, mutation.new) for mutation in found if mutation.place == "f"] == [
        (3, "1 + 1", "1 - 1"),
        (3, "1 + 1", "1"),
        (3, "1", "2"),
        (3, "1", "2"),
        (5, "x < 0", "x >= 0"),
        (5, "0", "1"),
        (8, "0.5 * x.mT @ y[1:]", "(0.5 * x.mT).mT @ y[1:]"),
        (8, "0.5 * x.mT", "0.5 / x.mT"),
        (8, "0.5 * x.mT", "0.5"),
        (8, "0.5", "1.0"),
        (8, "x.mT", "x"),
        (8, "1", "2"),
        (9, "total -= min(x, 2)", "total += min(x, 2)"),
        (9, "min(x, 2)", "max(x, 2)"),
        (10, "-total / 2", "-total * 2"),
        (10, "-total / 2", "-total"),
        (10, "-total", "total"),
        (10, "2", "3"),
    ]


def test_every_mutation_of_the_library_is_one_other_program_with_a_name_of_its_own():
    found = mutations(ROOT, "sgdsde/noise")
    assert len({mutation.name for mutation in found}) == len(found) > 50
    for mutation in found:
        source = (ROOT / mutation.file).read_bytes()
        assert ast.dump(ast.parse(mutation.applied(source))) != ast.dump(ast.parse(source)), mutation.name


def test_a_seed_is_a_sample_in_which_no_kind_crowds_out_the_others():
    found = mutations(ROOT, "sgdsde/dynamics")
    chosen = sample(found, 70, seed=3)
    assert chosen == sample(found, 70, seed=3) != sample(found, 70, seed=4)
    assert len(set(chosen)) == 70
    assert len({mutation.kind for mutation in chosen}) == len({mutation.kind for mutation in found})
    assert sample(found[:5], 70, seed=0) == sorted(found[:5], key=lambda m: (m.file, m.start, m.new))
    with pytest.raises(FileNotFoundError, match="no Python file"):
        mutations(ROOT, "sgdsde/nowhere")


def test_tests_are_those_that_reach_the_line_and_a_module_fixture_belongs_to_all():
    (mutation, *_) = [m for m in mutations_of(SOURCE, "f.py") if m.lines.start == 8]
    reach = Reached()
    seconds = {"t.py::slow": 3.0, "t.py::quick": 1.0, "t.py::broken": 1.0}
    reach.add({"seconds": seconds, "failed": ["t.py::broken"], "lines": {"f.py": {"8": list(seconds), "9": ["t.py"]}}})
    reach.add({"seconds": {"u.py::other": 0.1}, "failed": [], "lines": {"f.py": {"9": ["u.py::other"]}}})
    assert reach.tests(mutation) == ["t.py::quick", "t.py::slow"]
    assert within(reach.tests(mutation), reach.seconds, 3.5) == ["t.py::quick"]
    assert within(["t.py::slow"], reach.seconds, 1.0) == ["t.py::slow"]
    (at_9, *_) = [m for m in mutations_of(SOURCE, "f.py") if m.lines.start == 9]
    assert reach.tests(at_9) == ["u.py::other", "t.py::quick", "t.py::slow"]
    (of_default, *_) = [m for m in mutations_of(SOURCE, "f.py") if m.lines.start == 3]
    assert reach.tests(of_default) == reach.tests(at_9), "what is computed at import is reached through its function"


def test_a_mutation_that_breaks_a_claim_is_noticed_and_taken_back(tmp_path: Path):
    source = b"def double(x):\n    return 2 * x + 0 * x\n"
    (tmp_path / "formula.py").write_bytes(source)
    (tmp_path / "test_formula.py").write_text("import formula\n\ndef test_it():\n    assert formula.double(3) == 6\n")
    by_new = {mutation.new: mutation for mutation in mutations_of(source, "formula.py")}
    assert is_noticed(tmp_path, by_new["2 / x"], ["test_formula.py::test_it"], 60)
    assert not is_noticed(tmp_path, by_new["2 * x - 0 * x"], ["test_formula.py::test_it"], 60)
    assert (tmp_path / "formula.py").read_bytes() == source


def test_every_equivalent_mutation_has_a_reason():
    known = equivalents()
    assert known
    for name, reason in known.items():
        file, change = name.split("::", 1)
        assert file.startswith("sgdsde/"), f"{name} in {EQUIVALENT}"
        assert " -> " in change or change.isidentifier() or change.replace(".", "_").isidentifier(), name
        assert change != "module", f"{name} in {EQUIVALENT}: the constants of a module are listed one by one"
        assert len(reason) > 10, f"{name} in {EQUIVALENT}"


def test_a_function_of_the_list_stands_for_all_of_its_mutations_and_no_others():
    """A name that belongs to nothing would be a hole: every entry names a mutation or a function that there is."""
    known = equivalents()
    found = [m for file in {name.split("::")[0] for name in known} for m in mutations(ROOT, file)]
    for name in known:
        assert any(name in (mutation.name, mutation.function) for mutation in found), f"outdated: {name}"
    inside = {mutation.place for mutation in found if mutation.function in known}
    assert inside == {name.split("::")[1] for name in known if " -> " not in name}


def test_a_default_in_the_names_of_tests_does_not_stop_the_run(tmp_path):
    """The mutated default renames its own parametrized test, which is then found by its function."""
    (tmp_path / "one.py").write_text("RATE = 2.0\n")
    (tmp_path / "test_one.py").write_text(
        "import pytest, one\n\n"
        "@pytest.mark.parametrize('rate', [one.RATE], ids=repr)\n"
        "def test_rate(rate):\n    assert rate == 2.0\n"
    )
    (mutation,) = mutations(tmp_path, "one.py")
    assert is_noticed(tmp_path, mutation, ["test_one.py::test_rate[2.0]"], 60)
    assert without_parameters(["a::f[1]", "a::f[2]", "a::g"]) == ["a::f", "a::g"]


def test_a_module_that_cannot_be_imported_is_noticed_and_a_test_that_there_is_not_stops_the_run(tmp_path):
    (tmp_path / "one.py").write_text("PARTS = {2: 'half'}\nHALF = PARTS[1 + 1]\n")
    (tmp_path / "test_one.py").write_text("import one\n\ndef test_half():\n    assert one.HALF == 'half'\n")
    (mutation,) = (found for found in mutations(tmp_path, "one.py") if found.new == "1 - 1")
    assert is_noticed(tmp_path, mutation, ["test_one.py::test_half"], 60)
    with pytest.raises(SystemExit, match="pytest ended with 4"):
        is_noticed(tmp_path, mutation, ["test_two.py::test_half"], 60)
