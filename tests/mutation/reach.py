"""Pytest plugin: the lines of the library that each test reaches, and its processor seconds.

One JSON file for each file of tests. What a fixture of a module runs belongs to every test of the module. Loaded by
``tests.mutation.run``; needs coverage.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest


class Reach:
    """Contexts of coverage, one per test; nothing is written to coverage's own file."""

    def __init__(self, root: Path, folder: Path) -> None:
        import coverage

        self.root, self.folder = root, folder
        self.coverage = coverage.Coverage(data_file=None, include=[f"{root}/sgdsde/*"], config_file=False)
        self.coverage.start()
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Any:
        self.coverage.switch_context(item.nodeid)
        start = time.process_time()
        result = yield
        self.seconds[item.nodeid] = time.process_time() - start
        self.coverage.switch_context("")
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Any:
        if fixturedef.scope == "function":
            return (yield)
        test = request._pyfuncitem.nodeid
        self.coverage.switch_context(test.split("::")[0])
        try:
            return (yield)
        finally:
            self.coverage.switch_context(test)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: Any) -> Any:
        report = yield
        if report.failed:
            self.failed.add(item.nodeid)
        return report

    def pytest_sessionfinish(self) -> None:
        self.coverage.stop()
        data = self.coverage.get_data()
        lines: dict[str, dict[str, dict[int, list[str]]]] = {}  # file of tests, source, line: contexts
        for source in data.measured_files():
            relative = Path(source).relative_to(self.root).as_posix()
            for line, contexts in data.contexts_by_lineno(source).items():
                for context in filter(None, contexts):
                    of_file = lines.setdefault(context.split("::")[0], {}).setdefault(relative, {})
                    of_file.setdefault(line, []).append(context)
        files = {test.split("::")[0] for test in self.seconds}
        self.folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            seconds = {test: value for test, value in self.seconds.items() if test.split("::")[0] == file}
            part = {"seconds": seconds, "failed": sorted(self.failed & set(seconds)), "lines": lines.get(file, {})}
            (self.folder / part_name(file)).write_text(json.dumps(part))


def part_name(file: str) -> str:
    """Of the JSON file that holds what the tests of this file reach."""
    return file.replace("/", "__") + ".json"


def pytest_configure(config: Any) -> None:
    config.pluginmanager.register(Reach(Path.cwd(), Path(os.environ["REACH_FOLDER"])))
