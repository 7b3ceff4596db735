"""Seeded mutations of formula files, each run against the default tests that reach its line: what do the tests notice?

    make mutants FOLDER=sgdsde/noise N=20 SEED=0

First every default test is run once under coverage, and the lines that it reaches are kept in ``build/mutants``; a file
of tests is run again when it has changed, all of them when the library has. Then N mutations (a sign, a factor, a
transpose, a dropped term, an index off by one, a flipped comparison, a constant) are drawn by the seed and put, one
after the other, into a copy of the tree. Against each run the tests that reach it, the quickest first, until one fails
or ``--seconds`` of processor time are used up; too long a run counts as noticed. Mutations that change no number that
anybody sees are listed by name and reason in ``equivalent.txt`` beside this file and left out of the count, one by one
or, where a function only chooses how something is computed, all of that function.

Why a script: mutmut 3.8 mutates names, strings and arguments as often as arithmetic, knows neither transposes nor
dropped terms, and always runs every mutation, hours here; cosmic-ray 8.7 has the arithmetic, but runs one test command
for all mutations, whichever tests reach the line, and neither draws a sample by a seed. Both change the text of error
messages, which are long here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.mutation.mutations import Mutation, mutations, sample
from tests.mutation.reach import part_name

ROOT = Path(__file__).parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent.txt")
STARTING = 60
"""Processor seconds that a run of pytest may take beyond twice the recorded time of its tests."""

NO_FAILURE, FAILED, INTERRUPTED, NOT_FOUND, NO_TESTS = 0, 1, 2, 4, 5
"""Exit codes of pytest; collecting is interrupted where a mutated module cannot be imported."""


@dataclass
class Reached:
    """Processor seconds of every default test that passes, and the tests that reach each line of each source."""

    seconds: dict[str, float] = field(default_factory=dict)
    lines: dict[str, dict[int, set[str]]] = field(default_factory=dict)

    def add(self, part: dict) -> None:
        """What one file of tests reaches; what belongs to the file as a whole belongs to each of its tests."""
        passing = {test: value for test, value in part["seconds"].items() if test not in part["failed"]}
        self.seconds |= passing
        for source, lines in part["lines"].items():
            of_source = self.lines.setdefault(source, {})
            for line, contexts in lines.items():
                tests = of_source.setdefault(int(line), set())
                whole = any("::" not in context for context in contexts)
                tests.update(passing if whole else passing.keys() & set(contexts))

    def tests(self, mutation: Mutation) -> list[str]:
        """That reach the mutation, the quickest first."""
        of_source = self.lines.get(mutation.file, {})
        found = set().union(*(tests for line, tests in of_source.items() if line in mutation.reach))
        return sorted(found, key=lambda test: (self.seconds[test], test))


def reached(folder: Path, selection: list[str], jobs: int) -> Reached:
    """Reads what the tests reach, after running those that have not been run since they or the library changed."""
    library = _digest(sorted((ROOT / "sgdsde").rglob("*.py")))
    wanted = sorted({file for path in selection for file in _test_files(ROOT / path)})
    digests = {file: _digest([ROOT / file]) + library for file in wanted}
    stamps = folder / "digests.json"
    known = json.loads(stamps.read_text()) if stamps.exists() else {}
    outdated = [file for file in wanted if known.get(file) != digests[file]]
    if outdated:
        print(f"running {len(outdated)} files of tests under coverage, to know the lines that they reach", flush=True)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.mutation.reach"]
        command += ["-n", str(jobs), "--dist", "loadfile"] if jobs > 1 else []
        code = subprocess.run([*command, *outdated], cwd=ROOT, env=_environment(ROOT, folder)).returncode
        if code not in (NO_FAILURE, FAILED, NO_TESTS):
            raise SystemExit(f"the tests could not be run: pytest ended with {code}")
        folder.mkdir(parents=True, exist_ok=True)
        stamps.write_text(json.dumps(known | {file: digests[file] for file in outdated}))
    found = Reached()
    for file in wanted:
        part = folder / part_name(file)
        if part.exists():
            found.add(json.loads(part.read_text()))
    return found


def _test_files(path: Path) -> list[str]:
    files = [path] if path.is_file() else path.rglob("test_*.py")
    return [file.relative_to(ROOT).as_posix() for file in files]


def _digest(files: Iterable[Path]) -> str:
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def _environment(tree: Path, folder: Path) -> dict[str, str]:
    ours = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(tree),
        "PYTHONDONTWRITEBYTECODE": "1",
        "REACH_FOLDER": str(folder),
    }
    return os.environ | ours


def copied_tree(target: Path) -> None:
    """The files that git knows or would know, as they are now."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def within(tests: list[str], seconds: dict[str, float], budget: float) -> list[str]:
    """The first tests whose recorded times add up to the budget, at least one."""
    chosen: list[str] = []
    used = 0.0
    for test in tests:
        used += seconds[test]
        if chosen and used > budget:
            break
        chosen.append(test)
    return chosen


def is_noticed(tree: Path, mutation: Mutation, tests: list[str], allowed: float) -> bool:
    """Whether one of the tests fails, or takes more processor time than allowed, once the mutation is in the tree."""
    file = tree / mutation.file
    source = file.read_bytes()
    try:
        file.write_bytes(mutation.applied(source))
        ended = _run_tests(tree, tests, allowed)
        if ended.returncode == NOT_FOUND:  # a default value that is part of the names of parametrized tests
            ended = _run_tests(tree, without_parameters(tests), allowed)
    finally:
        file.write_bytes(source)
    if ended.returncode == NOT_FOUND and "ERROR collecting" in ended.stdout:
        return True  # a module that cannot be imported
    if ended.returncode not in (NO_FAILURE, FAILED, INTERRUPTED) and ended.returncode > 0:
        raise SystemExit(f"pytest ended with {ended.returncode} at {mutation.name}:\n{ended.stdout[-2000:]}")
    return ended.returncode != NO_FAILURE


def _run_tests(tree: Path, tests: list[str], allowed: float) -> subprocess.CompletedProcess[str]:
    listing, limit = tree / "mutation_tests.txt", int(allowed) + 1
    listing.write_text("\n".join(tests))
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"@{listing}"],
        cwd=tree,
        env=_environment(tree, tree),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (limit, limit)),
    )


def without_parameters(tests: list[str]) -> list[str]:
    """The functions of the tests, each once, in their order."""
    return list(dict.fromkeys(test.split("[")[0] for test in tests))


def equivalents() -> dict[str, str]:
    """Names of equivalent mutations, or of functions of which every one is, and the reasons: lines `name | reason`."""
    lines = [line for line in EQUIVALENT.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.rsplit(" | ", 1) for line in lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Seeded mutations against the tests that reach them.")
    parser.add_argument("folder", help="folder or file of the library")
    parser.add_argument("--n", type=int, default=20, help="mutations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tests", nargs="+", default=["tests"], help="files and folders of tests to choose from")
    parser.add_argument("--jobs", type=int, default=1, help="processes that run the tests under coverage")
    parser.add_argument("--seconds", type=float, default=60.0, help="processor time of tests for each mutation")
    args = parser.parse_args(arguments)
    candidates = mutations(ROOT, args.folder)
    chosen = sample(candidates, args.n, args.seed)
    reach = reached(ROOT / "build" / "mutants" / "reach", args.tests, args.jobs)
    known, outcomes = equivalents(), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        tree = Path(name)
        copied_tree(tree)
        for mutation in chosen:
            reaching = reach.tests(mutation)
            tests = within(reaching, reach.seconds, args.seconds)
            used = sum(reach.seconds[test] for test in tests)
            if mutation.name in known or mutation.function in known:
                outcome = "equivalent"
            else:
                noticed = bool(tests) and is_noticed(tree, mutation, tests, 2 * used + STARTING)
                outcome = "noticed" if noticed else "survived"
            outcomes[outcome] += 1
            count = f"{len(tests)} of {len(reaching)} tests that reach it" if outcome == "survived" else ""
            print(f"{outcome:10} line {mutation.lines.start:3} {mutation.kind:10} {mutation.name} {count}", flush=True)
    files = {mutation.file for mutation in candidates}
    names = {name for mutation in candidates for name in (mutation.name, mutation.function)}
    for name in known:
        if name.split("::")[0] in files and name not in names:
            print(f"outdated in {EQUIVALENT.name}: {name}")
    counted = len(chosen) - outcomes["equivalent"]
    share = f" ({outcomes['noticed'] / counted:.0%})" if counted else ""
    also = f", {outcomes['equivalent']} equivalent" if outcomes["equivalent"] else ""
    print(f"{args.folder}, seed {args.seed}: {outcomes['noticed']} of {counted} noticed{share}{also}")


if __name__ == "__main__":
    main()
