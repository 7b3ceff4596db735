"""The shape of the library, kept: imports point upstream, few dependencies, no ambient state.

``STAGES`` is the library's table of contents. A module may import those of earlier stages and, as long as no circle
arises, of its own. A new module must be placed here before anything else. The rules are tested on trees that break them
in ``tests/test_architecture_rules.py``.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

STAGES: dict[str, tuple[str, ...]] = {
    "ground": (
        "_version",
        "_types",
        "_checks",
        "_words",
        "_streams",
        "_sharing",
        "_functional",
        "_captured",
        "_fidelity",
        "_vectorization",
        "_probe",
        "_memory",
        "_progress",
        "_ranks",
        "_jobs",
        "_files",
        "_result_file",
        "provenance",
        "run_folder",
        "plots",
    ),
    "what is trained, and how": (
        "adapters",
        "losses",
        "networks",
        "datasets",
        "problem",
        "sampling",
        "sgd",
        "step",
        "bands",
        "trajectory",
        "_checkpoint",
        "recording",
        "machine",
    ),
    # Kernels of infinite width need networks only.
    "infinite width": ("meanfield",),
    # A mask turns a problem into a problem.
    "what is left of it": ("pruning",),
    # The kernel knows models only and a Linearization holds it, so it stands here and not beside the noise.
    "linearize": ("jacobian", "kernel", "_linear_parts", "curvature", "linearization"),
    "estimates from few samples": ("cleaning",),
    "what the theory needs besides": ("noise", "stability"),
    "dynamics: predicted, and real": ("dynamics", "ensemble"),
    "predicted against measured": (
        "observables",
        "reduction",
        "frozen_kernel",
        "evolution_cost",
        "prediction",
        "prediction_sweep",
        "cost",
        "measurement",
        "surface",
        "advice",
        "answering",
        "comparison",
        "budget",
        "regimes",
        "diagnosis",
        "_sweep_cells",
        "_sweep_parts",
        "sweeps",
        "questions",
        "ranking",
        "stored_results",
    ),
    "the whole pipeline": ("__init__",),
    "beside the pipeline": ("explorer", "cli", "__main__"),
}
STAGE_OF = {name: number for number, names in enumerate(STAGES.values()) for name in names}
COMMAND_LINE = {"cli", "__main__"}

LINES_OF_A_FILE, LINES_OF_A_FUNCTION = 300, 50

REQUIRED = {"torch", "numpy", "scipy"}
EXTRAS = {"sklearn", "seaborn", "matplotlib", "pandas", "xarray", "tqdm", "tyro", "sdeint", "joblib", "bokeh"}

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
    """Every import of a file; ``from sgdsde.a import b`` counts as an import of sgdsde.a.b, module or not."""
    inside = [package.name, *path.relative_to(package).with_suffix("").parts]

    def walk(node: ast.AST, when: str) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, child.lineno, when) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = ".".join(inside[: -child.level]) if child.level else ""
                source = ".".join(part for part in (base, child.module) if part)
                inside_package = source.partition(".")[0] == package.name
                targets = [f"{source}.{alias.name}" for alias in child.names] if inside_package else [source]
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


def missing_modules(package: Path) -> list[str]:
    """Names of the table of contents that the library does not have."""
    there = modules(package)
    return [f"{name} of STAGES is no module of {package.name}; remove it" for name in STAGE_OF if name not in there]


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
    if name == target:
        return ""
    if STAGE_OF.get(target, 0) > STAGE_OF.get(name, 0):
        return f"{name} imports {target}, which is downstream of it"
    return f"{target} is imported inside a function; move it to the top" if entry.when == "call" else ""


def circles(package: Path) -> list[str]:
    """One line per circle of imports between files: at import time, when called, or for the type checker."""
    arrows = _arrows(package)
    found = []
    for group in _strong_components(arrows):
        first = min(group)
        trail, seen = [first], {first}
        # A shortest way back to the first file.
        parents: dict[str, str] = {}
        for name in trail:
            for target in sorted(arrows[name] & group):
                if target not in seen:
                    seen.add(target)
                    parents[target] = name
                    trail.append(target)
        end = next(name for name in trail if first in arrows[name])
        way = [first]
        while end != first:
            way.insert(0, end)
            end = parents[end]
        found.append(" -> ".join((first, *way)))
    return sorted(found)


def _arrows(package: Path) -> dict[str, set[str]]:
    """The files, by dotted name, that each file imports; a package stands for its ``__init__``."""
    files = {_dotted(path, package): path for path in sorted(package.rglob("*.py"))}
    arrows: dict[str, set[str]] = {}
    for name, path in files.items():
        targets = set()
        for entry in imports(path, package):
            parts = entry.target.split(".")
            whole = next((".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in files), None)
            if whole is not None and whole != name:
                targets.add(whole)
        arrows[name] = targets
    return arrows


def _dotted(path: Path, package: Path) -> str:
    return ".".join((package.name, *path.relative_to(package).with_suffix("").parts)).removesuffix(".__init__")


def _strong_components(arrows: dict[str, set[str]]) -> list[set[str]]:
    """Groups of two files or more that reach each other."""
    reached = {}
    for start in arrows:
        seen, trail = {start}, [start]
        for name in trail:
            new = arrows[name] - seen
            seen |= new
            trail += new
        reached[start] = seen
    groups = {frozenset(b for b in seen if a in reached[b]) for a, seen in reached.items()}
    return [set(group) for group in groups if len(group) > 1]


def too_long(package: Path) -> list[str]:
    """One line per file that is too long, or function that is, its documentation left out."""
    lines = []
    for path in sorted(package.rglob("*.py")):
        text, where = path.read_text(), path.relative_to(package.parent)
        count = len(text.splitlines())
        if count > LINES_OF_A_FILE:
            lines.append(f"{where}: {count} lines, {LINES_OF_A_FILE} allowed; split it")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None:
                documented = ast.get_docstring(node) is not None
                start = node.body[0].end_lineno if documented else node.lineno - 1
                count = node.end_lineno - (start or 0)
                if count > LINES_OF_A_FUNCTION:
                    lines.append(f"{where}:{node.lineno}: {node.name} has {count} lines, {LINES_OF_A_FUNCTION} allowed")
    return lines


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
from sgdsde import *
"""


def import_without_extras(root: Path) -> str:
    """The error of importing every public name with every extra missing, empty when there is none."""
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


def test_every_module_has_its_place() -> None:
    assert misplaced_modules(ROOT / "sgdsde") == []


def test_the_table_of_contents_names_what_is_there() -> None:
    assert missing_modules(ROOT / "sgdsde") == []


def test_imports_point_upstream() -> None:
    assert wrong_imports(ROOT / "sgdsde") == []


def test_imports_run_in_no_circle() -> None:
    assert circles(ROOT / "sgdsde") == []


def test_files_and_functions_are_short() -> None:
    assert too_long(ROOT / "sgdsde") == []


def test_there_is_no_ambient_state() -> None:
    assert ambient_state(ROOT / "sgdsde") == []


def test_import_needs_only_torch_numpy_scipy() -> None:
    assert import_without_extras(ROOT) == ""


def test_experiments_do_not_draw_and_figures_do_not_compute() -> None:
    assert wrong_script_imports(ROOT) == []
