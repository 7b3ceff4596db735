"""The public names: imported when first asked for, known to a type checker, hidden by no module."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

import pytest

import sgdsde
from tests.command_line import call_python

PACKAGE = Path(sgdsde.__file__).parent


def checked_imports() -> dict[str, str]:
    """Home by name, as the type checker sees them; the package itself for a module."""
    (block,) = [node for node in ast.parse((PACKAGE / "__init__.py").read_text()).body if isinstance(node, ast.If)][:1]
    return {alias.name: node.module for node in block.body for alias in node.names}


def test_every_public_name_is_what_its_home_defines() -> None:
    for name, home in checked_imports().items():
        assert getattr(sgdsde, name) is getattr(importlib.import_module(home), name), name


def test_a_type_checker_knows_the_same_names() -> None:
    assert sorted([*checked_imports(), "__version__"]) == sorted(sgdsde.__all__)
    assert set(sgdsde.__all__) <= set(dir(sgdsde))


def test_no_module_hides_a_public_name() -> None:
    modules = {path.stem for path in PACKAGE.iterdir()}
    functions = {name for name, home in checked_imports().items() if home != "sgdsde"}
    assert modules & functions == set()


def test_modules_that_are_not_listed_are_attributes_too() -> None:
    code = "import sys, sgdsde; assert 'torch' not in sys.modules; assert sgdsde.kernel.TiledKernel"
    answer = call_python("-c", code)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("name", ["Probem", "_nothing", "__wrapped__"])
def test_an_unknown_name_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'sgdsde' has no attribute '{name}'"):
        getattr(sgdsde, name)


def test_a_module_that_lacks_a_dependency_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("sgdsde.sampling")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(sgdsde, "sampling", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModuleNotFoundError, match="torch"):
        _ = sgdsde.sampling
