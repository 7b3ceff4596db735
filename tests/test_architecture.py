"""The shape of the library, kept: imports point upstream, few dependencies, no ambient state.

``STAGES`` is the library's table of contents. A module may import those of earlier stages and, as long as no circle
arises, of its own. A new module must be placed here before anything else.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

STAGES: dict[str, tuple[str, ...]] = {
    "ground": ("_version", "_types", "_checks", "_linalg", "_streams", "_functional", "_memory", "_progress"),
    "what is trained, and how": ("losses", "networks", "datasets", "problem", "sampling", "sgd", "trajectory"),
    # The kernel knows models only and a Linearization holds it, so it stands here and not beside the noise.
    "linearize": ("jacobian", "kernel", "linearization"),
    "what the theory needs besides": ("noise",),
    "dynamics: predicted, and real": ("dynamics", "ensemble"),
    "predicted against measured": ("prediction", "comparison", "stability", "diagnosis", "budget"),
    "the whole pipeline": ("__init__",),
    "beside the pipeline": ("meanfield", "pruning", "regimes", "cleaning", "plots", "cli", "__main__"),
}
STAGE_OF = {name: number for number, names in enumerate(STAGES.values()) for name in names}
BESIDE = set(STAGES["beside the pipeline"])
COMMAND_LINE = {"cli", "__main__"}

# Imports against the stream, allowed inside a function only: a result's .plot draws when it is called.
WHEN_CALLED = {("trajectory", "plots"), ("comparison", "plots")}
# What `import sgdsde` makes available although it stands beside the pipeline.
OFFERED = {("__init__", name) for name in ("meanfield", "pruning", "regimes", "cleaning")}

REQUIRED = {"torch", "numpy", "scipy"}
EXTRAS = {"sklearn", "seaborn", "matplotlib", "pandas", "xarray", "tqdm", "tyro", "sdeint"}

GLOBAL_STATE = {
    "torch.manual_seed",
    "torch.seed",
    "torch.random.manual_seed",
    "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all",
    "torch.set_default_dtype",
    "torch.set_default_device",
    "torch.set_num_threads",
    "np.random.seed",
    "numpy.random.seed",
    "random.seed",
}


@dataclass(frozen=True)
class Import:
    """One imported name, absolute, and whether it happens at import time, when called, or for the type checker."""

    target: str
    line: int
    when: str


def modules(package: Path) -> dict[str, list[Path]]:
    """The files of each top-level name of the library: a module, or all of a folder."""
    found: dict[str, list[Path]] = {}
    for path in sorted(package.rglob("*.py")):
        found.setdefault(path.relative_to(package).with_suffix("").parts[0], []).append(path)
    return found


def imports(path: Path, package: Path) -> Iterator[Import]:
    """Every import of a file; ``from sgdsde import x`` counts as an import of sgdsde.x."""
    inside = [package.name, *path.relative_to(package).with_suffix("").parts]

    def walk(node: ast.AST, when: str) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, child.lineno, when) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = ".".join(inside[: -child.level]) if child.level else ""
                source = ".".join(part for part in (base, child.module) if part)
                targets = [f"{source}.{alias.name}" for alias in child.names] if source == package.name else [source]
                yield from (Import(target, child.lineno, when) for target in targets)
            elif isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                for statement in child.body:
                    yield from walk(ast.Module([statement], []), "types" if when == "import" else when)
                for statement in child.orelse:
                    yield from walk(ast.Module([statement], []), when)
            elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                yield from walk(child, "call")
            else:
                yield from walk(child, when)

    yield from walk(ast.parse(path.read_text()), "import")


def misplaced_modules(package: Path) -> list[str]:
    """Names of the library that the table of contents does not know."""
    return [
        f"{package.name}.{name} is in no stage; place it in STAGES of tests/test_architecture.py"
        for name in modules(package)
        if name not in STAGE_OF
    ]


def wrong_imports(package: Path) -> list[str]:
    """One line per import that points downstream, hides in a function, or needs what is not required."""
    lines = []
    for name, paths in modules(package).items():
        for path in paths:
            for entry in imports(path, package):
                fault = _fault(name, entry, package.name)
                if fault:
                    lines.append(f"{path.relative_to(package.parent)}:{entry.line}: {fault}")
    return lines


def _fault(name: str, entry: Import, package: str) -> str:
    root, _, rest = entry.target.partition(".")
    if root == package:
        return _fault_inside(name, rest.split(".")[0] or "__init__", entry)
    if root in EXTRAS:
        allowed = entry.when != "import" or name in COMMAND_LINE
        return "" if allowed else f"{root} is an extra; import it inside the function that uses it"
    if root not in REQUIRED and root not in sys.stdlib_module_names:
        return f"{root} is neither required nor an extra of setup.cfg"
    return f"{root} is imported inside a function; move it to the top" if entry.when == "call" else ""


def _fault_inside(name: str, target: str, entry: Import) -> str:
    # Not a module: a public name, which the package's own __init__ re-exports.
    target = target if target in STAGE_OF else "__init__"
    if name == target or (name, target) in OFFERED:
        return ""
    if (name, target) in WHEN_CALLED:
        return f"{name} may import {target} only inside a function" if entry.when == "import" else ""
    if STAGE_OF.get(target, 0) > STAGE_OF.get(name, 0):
        return f"{name} imports {target}, which is downstream of it"
    return f"{target} is imported inside a function; move it to the top" if entry.when == "call" else ""


def circles(package: Path) -> list[str]:
    """One line per circle of imports between modules of the library; types and calls do not count."""
    arrows: dict[str, set[str]] = {}
    for name, paths in modules(package).items():
        for path in paths:
            for entry in imports(path, package):
                root, _, rest = entry.target.partition(".")
                if root == package.name and entry.when == "import" and rest.split(".")[0] != name:
                    arrows.setdefault(name, set()).add(rest.split(".")[0])
    found: set[str] = set()

    def follow(trail: tuple[str, ...]) -> None:
        for target in sorted(arrows.get(trail[-1], ())):
            if target in trail:
                circle = trail[trail.index(target) :]
                first = circle.index(min(circle))
                found.add(" -> ".join((*circle[first:], *circle[: first + 1])))
            else:
                follow((*trail, target))

    for name in sorted(arrows):
        follow((name,))
    return sorted(found)


def ambient_state(package: Path) -> list[str]:
    """One line per print, ``.cuda()`` or change of global state."""
    lines = []
    for name, paths in modules(package).items():
        for path in paths:
            for node in ast.walk(ast.parse(path.read_text())):
                fault = ""
                if isinstance(node, ast.Call):
                    called = ast.unparse(node.func)
                    if called == "print" and name not in COMMAND_LINE:
                        fault = "print in the library; return the value, or warn"
                    elif called in GLOBAL_STATE:
                        fault = f"{called} changes global state; pass a generator, dtype or device"
                    elif isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
                        fault = ".cuda() fixes the device; let it travel with the data"
                elif isinstance(node, ast.ImportFrom):
                    wrong = [f"{node.module}.{a.name}" for a in node.names if f"{node.module}.{a.name}" in GLOBAL_STATE]
                    fault = f"{wrong[0]} changes global state" if wrong else ""
                if fault:
                    lines.append(f"{path.relative_to(package.parent)}:{node.lineno}: {fault}")
    return lines


BLOCKED_IMPORT = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {extras}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Block())
import sgdsde
"""


def import_without_extras(root: Path) -> str:
    """The error of `import sgdsde` with every extra missing, empty when there is none."""
    code = BLOCKED_IMPORT.format(extras=sorted(EXTRAS))
    answer = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    return answer.stderr if answer.returncode else ""


def wrong_script_imports(root: Path) -> list[str]:
    """One line per drawing import in experiments/ and per computing or unseen import in paper_figs/."""
    never = {
        "experiments": {"matplotlib", "seaborn", "paper_figs"},
        "paper_figs": {"sgdsde", "torch", "scipy", "sklearn"},
    }
    lines = []
    for folder, forbidden in never.items():
        for path in sorted((root / folder).glob("*.py")):
            for entry in imports(path, root / folder):
                if entry.target.partition(".")[0] in forbidden:
                    lines.append(f"{folder}/{path.name}:{entry.line}: {folder} must not import {entry.target}")
        for path in sorted((root / folder).glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                unseen = (
                    any(alias.name.startswith(f"{folder}.") for alias in node.names)
                    if isinstance(node, ast.Import)
                    else isinstance(node, ast.ImportFrom)
                    and (node.level > 0 or (node.module == "experiments" and folder == "experiments"))
                )
                if unseen:
                    lines.append(
                        f"{folder}/{path.name}:{node.lineno}: write `from {folder}.name import ...`, which make sees"
                    )
    return lines


# The rules, on this project.


def test_every_module_has_its_place() -> None:
    assert misplaced_modules(ROOT / "sgdsde") == []


def test_imports_point_upstream() -> None:
    assert wrong_imports(ROOT / "sgdsde") == []


def test_imports_run_in_no_circle() -> None:
    assert circles(ROOT / "sgdsde") == []


def test_there_is_no_ambient_state() -> None:
    assert ambient_state(ROOT / "sgdsde") == []


def test_import_needs_only_torch_numpy_scipy() -> None:
    assert import_without_extras(ROOT) == ""


def test_experiments_do_not_draw_and_figures_do_not_compute() -> None:
    assert wrong_script_imports(ROOT) == []


# The rules, on trees that break them.


def tree(root: Path, **files: str) -> Path:
    """A package ``sgdsde`` with these modules; two underscores in a name stand for a folder."""
    for name, content in {"__init__": "", **files}.items():
        parts = [name] if name.startswith("_") else name.split("__")
        path = (root / "sgdsde").joinpath(*parts).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root / "sgdsde"


def test_an_unplaced_module_is_found(tmp_path: Path) -> None:
    package = tree(tmp_path, problem="", utils="", helpers__strings="")
    assert misplaced_modules(package) == [
        f"sgdsde.{name} is in no stage; place it in STAGES of tests/test_architecture.py"
        for name in ("helpers", "utils")
    ]


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("problem", "from sgdsde.linearization import linearize", "problem imports linearization, which is downstream"),
        ("problem", "from sgdsde import stability", "problem imports stability, which is downstream"),
        ("problem", "from sgdsde import Problem", "problem imports __init__, which is downstream"),
        ("problem", "import sgdsde", "problem imports __init__, which is downstream"),
        ("problem", "from .ensemble import run_ensemble", "problem imports ensemble, which is downstream"),
        ("problem", "def f():\n    from sgdsde.kernel import K", "problem imports kernel, which is downstream"),
        ("dynamics__paths", "from ..prediction import predict", "dynamics imports prediction, which is downstream"),
        ("dynamics__paths", "from sgdsde.plots import draw", "dynamics imports plots, which is downstream"),
        (
            "ensemble",
            "if TYPE_CHECKING:\n    from sgdsde.budget import B",
            "ensemble imports budget, which is downstream",
        ),
        ("ensemble", "def f():\n    from sgdsde.problem import P", "problem is imported inside a function"),
        ("__init__", "from sgdsde import plots", "__init__ imports plots, which is downstream"),
        ("comparison", "from sgdsde.plots import draw", "comparison may import plots only inside a function"),
        ("sgd", "import pandas as pd", "pandas is an extra; import it inside the function"),
        ("plots", "from matplotlib import pyplot", "matplotlib is an extra; import it inside the function"),
        ("sgd", "def f():\n    import numpy", "numpy is imported inside a function"),
        ("sgd", "import requests", "requests is neither required nor an extra"),
        ("sgd", "class A:\n    try:\n        import jax\n    except ImportError: pass", "jax is neither required nor"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, name: str, content: str, fault: str) -> None:
    (line,) = wrong_imports(tree(tmp_path, **{name: content}))
    assert fault in line


def test_right_imports_are_left_alone(tmp_path: Path) -> None:
    package = tree(
        tmp_path,
        __init__="from sgdsde import dynamics, meanfield\nfrom sgdsde.problem import Problem",
        sgd="import math\nimport numpy as np\nfrom torch import nn\nfrom sgdsde._types import Params",
        sampling="from sgdsde.sgd import SGD",
        comparison="def plot():\n    import seaborn\n    from sgdsde.plots import draw",
        trajectory="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pandas",
        dynamics__paths="from sgdsde.dynamics.modal import M\nfrom .modal import N\nfrom ..noise import frozen",
        cli="import tyro\nfrom sgdsde import Problem, plots\nprint(1)",
        meanfield__maps="import sgdsde",
    )
    assert wrong_imports(package) == []
    assert ambient_state(package) == []
    assert circles(package) == []


def test_a_circle_is_found(tmp_path: Path) -> None:
    package = tree(
        tmp_path,
        sgd="from sgdsde.sampling import x",
        sampling="from . import losses",
        losses="import sgdsde.sgd",
        problem="from sgdsde.sgd import SGD",
    )
    assert wrong_imports(package) == []
    assert circles(package) == ["losses -> sgd -> sampling -> losses"]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("print(1)", "print in the library"),
        ("def f(x):\n    return x.to(0).cuda()", ".cuda() fixes the device"),
        ("import torch\ntorch.manual_seed(0)", "torch.manual_seed changes global state"),
        ("from torch import manual_seed", "torch.manual_seed changes global state"),
        ("import numpy as np\nnp.random.seed(0)", "np.random.seed changes global state"),
        ("torch.set_default_dtype(torch.float64)", "torch.set_default_dtype changes global state"),
    ],
)
def test_ambient_state_is_found(tmp_path: Path, content: str, fault: str) -> None:
    (line,) = ambient_state(tree(tmp_path, sgd=content))
    assert fault in line


def test_a_generator_of_its_own_is_no_ambient_state(tmp_path: Path) -> None:
    package = tree(
        tmp_path, sgd='import torch\ntorch.Generator().manual_seed(0)\ntorch.cuda.is_available()\n"""print(1)"""'
    )
    assert ambient_state(package) == []


def test_an_import_that_needs_an_extra_is_found(tmp_path: Path) -> None:
    tree(tmp_path, __init__="import seaborn.utils")
    assert "blocked: seaborn" in import_without_extras(tmp_path)


def test_a_drawing_experiment_and_a_computing_figure_are_found(tmp_path: Path) -> None:
    for name, content in {
        "experiments/fig01_a.py": "import seaborn as sns\nfrom experiments.frame import main",
        "experiments/fig02_b.py": "from experiments import shared",
        "paper_figs/fig01_a.py": "def draw(result):\n    import torch",
        "paper_figs/fig02_b.py": "import numpy\nfrom paper_figs import style\nfrom experiments.result import Result",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert wrong_script_imports(tmp_path) == [
        "experiments/fig01_a.py:1: experiments must not import seaborn",
        "experiments/fig02_b.py:1: write `from experiments.name import ...`, which make sees",
        "paper_figs/fig01_a.py:2: paper_figs must not import torch",
    ]
