"""Pages of the API from ``__all__``: a new public name appears by itself."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from docs.builder.docstrings import restructured

NOT_FOR_USERS = ("cli",)
"""Packages whose ``__all__`` serves the package alone."""


def public_modules() -> list[ModuleType]:
    """sgdsde, and every module or package below it that is public: in ``sgdsde.__all__``, or with an ``__all__``."""
    package = importlib.import_module("sgdsde")
    found = {name: getattr(package, name) for name in package.__all__ if inspect.ismodule(getattr(package, name))}
    for info in pkgutil.iter_modules(package.__path__):
        if not info.name.startswith("_") and info.name not in NOT_FOR_USERS and info.ispkg:
            module = importlib.import_module(f"sgdsde.{info.name}")
            if own_names(module, [package]):
                found[info.name] = module
    return [package, *(found[name] for name in sorted(found))]


def public_names(module: ModuleType) -> list[str]:
    """What a module offers: its ``__all__``, else what it defines without an underscore; no modules."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            n for n, o in vars(module).items() if getattr(o, "__module__", None) == module.__name__ and n[0] != "_"
        ]
    return [name for name in names if not name.startswith("__") and not inspect.ismodule(getattr(module, name))]


def own_names(module: ModuleType, earlier: Sequence[ModuleType]) -> list[str]:
    """The public names of a module that none of the earlier ones offers already."""
    seen = {id(getattr(each, name)) for each in earlier for name in public_names(each)}
    return [name for name in public_names(module) if id(getattr(module, name)) not in seen]


def targets() -> dict[str, str]:
    """Full names of public objects, by each name that a page or docstring may use: ``max_lr``, ``stability.max_lr``."""
    found: dict[str, str] = {}
    full: dict[int, str] = {}
    for module in public_modules():
        for name in public_names(module):
            target = full.setdefault(id(getattr(module, name)), f"{module.__name__}.{name}")
            found.setdefault(name, target)
            found.setdefault(f"{module.__name__.removeprefix('sgdsde').lstrip('.')}.{name}", target)
    return found


def first_line(thing: object) -> str:
    """Of the docstring; empty for plain data, whose docstring is that of its type."""
    return "" if not callable(thing) else (inspect.getdoc(thing) or "").partition("\n")[0]


def _directive(thing: object) -> str:
    if inspect.isclass(thing):
        return "autoexception" if issubclass(thing, BaseException) else "autoclass"
    return "autofunction" if inspect.isroutine(thing) else "autodata"


def page(module: ModuleType, earlier: Sequence[ModuleType], known: dict[str, str]) -> str:
    """reStructuredText of one module: its docstring, a table of its names, and each of them."""
    title = module.__name__
    lines = [title, "=" * len(title), "", *restructured((inspect.getdoc(module) or "").split("\n"), (), known), ""]
    names = sorted(own_names(module, earlier), key=str.lower)
    lines += [".. list-table::", "   :widths: 30 70", ""]
    for name in names:
        told = restructured([first_line(getattr(module, name))], (), known)[0]
        lines += [f"   * - :py:obj:`{name} <{title}.{name}>`", f"     - {told}"]
    elsewhere = sorted(set(public_names(module)) - set(names), key=str.lower)
    if elsewhere:
        lines += ["", "Also here: " + ", ".join(f":py:obj:`{n} <{known[n]}>`" for n in elsewhere) + "."]
    for name in names:
        lines += ["", f".. {_directive(getattr(module, name))}:: {title}.{name}"]
    return "\n".join(lines) + "\n"


def write(folder: Path, write_text: Callable[[Path, str], None]) -> None:
    """All pages of the API and their index."""
    modules = public_modules()
    known = targets()
    for index, module in enumerate(modules):
        write_text(folder / f"{module.__name__}.rst", page(module, modules[:index], known))
    lines = [
        "API",
        "===",
        "",
        "Every public name with shapes, units, errors, exactness and cost, as ``help()`` says it.",
        "",
    ]
    lines += [".. toctree::", "   :hidden:", "", *(f"   {m.__name__}" for m in modules), ""]
    lines += [".. list-table::", "   :widths: 30 70", ""]
    for module in modules:
        told = restructured([(inspect.getdoc(module) or "").partition("\n")[0]], (), known)[0]
        lines += [f"   * - :doc:`{module.__name__}`", f"     - {told}"]
    write_text(folder / "index.rst", "\n".join(lines) + "\n")


def names_of(thing: Any) -> set[str]:
    """Arguments and attributes that the docstring of an object may tell of."""
    found: set[str] = set()
    with contextlib.suppress(TypeError, ValueError):
        found |= set(inspect.signature(thing).parameters)
    if inspect.isclass(thing):
        found |= {name for name in dir(thing) if not name.startswith("_")}
        found |= set(getattr(thing, "__annotations__", {}))
        if dataclasses.is_dataclass(thing):
            found |= {each.name for each in dataclasses.fields(thing)}
    return found
