"""The rules of the library's shape find what breaks them, on small trees that do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_architecture import (
    STAGE_OF,
    ambient_state,
    circles,
    import_without_extras,
    misplaced_modules,
    missing_modules,
    too_long,
    wrong_imports,
    wrong_script_imports,
)


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
        ("dynamics__paths", "from sgdsde.cli import main", "dynamics imports cli, which is downstream"),
        (
            "ensemble",
            "if TYPE_CHECKING:\n    from sgdsde.budget import B",
            "ensemble imports budget, which is downstream",
        ),
        ("ensemble", "def f():\n    from sgdsde.problem import P", "problem is imported inside a function"),
        ("__init__", "from sgdsde import cli", "__init__ imports cli, which is downstream"),
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
        comparison="from sgdsde.plots import draw\ndef plot():\n    import seaborn",
        trajectory="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pandas",
        dynamics__paths="from sgdsde.dynamics.modal import M\nfrom .modal import N\nfrom ..noise import frozen",
        cli="import tyro\nfrom sgdsde import Problem, plots\nprint(1)",
        meanfield__maps="from sgdsde.meanfield.variance import F",
        meanfield__variance="",
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
    assert circles(package) == ["sgdsde.losses -> sgdsde.sgd -> sgdsde.sampling -> sgdsde.losses"]


@pytest.mark.parametrize(
    ("maps", "circle"),
    [
        ("def f():\n    from sgdsde.meanfield.points import limit", "sgdsde.meanfield.points"),
        ("if TYPE_CHECKING:\n    from sgdsde.meanfield.points import Point", "sgdsde.meanfield.points"),
        ("from sgdsde.meanfield import limit", "sgdsde.meanfield.points"),
    ],
    ids=["when called", "for the type checker", "through the package"],
)
def test_a_circle_inside_a_folder_is_found(tmp_path: Path, maps: str, circle: str) -> None:
    package = tree(tmp_path, meanfield__maps=maps, meanfield__points="from sgdsde.meanfield.maps import F")
    (package / "meanfield" / "__init__.py").write_text("from sgdsde.meanfield.points import limit")
    (line,) = circles(package)
    assert circle in line
    assert "sgdsde.meanfield.maps" in line


def test_a_stage_without_a_module_is_found(tmp_path: Path) -> None:
    package = tree(tmp_path, **dict.fromkeys(set(STAGE_OF) - {"sgd"}, ""))
    assert missing_modules(package) == ["sgd of STAGES is no module of sgdsde; remove it"]


def test_long_files_and_functions_are_found(tmp_path: Path) -> None:
    body = "\n    x = 1" * 50
    documented = f'def f():\n    """{"word" * 9}\n\n    more\n    """{body}\n'
    package = tree(tmp_path, sgd="x = 1\n" * 301, losses=f"def f():{body}\n", problem=documented, bands="x = 1\n" * 300)
    assert too_long(package) == [
        "sgdsde/losses.py:1: f has 51 lines, 50 allowed",
        "sgdsde/sgd.py: 301 lines, 300 allowed; split it",
    ]


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
