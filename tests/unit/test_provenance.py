"""Provenance: versions as the packages state them, the commit that git states, hashes as hashlib computes them."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from pathlib import Path

import numpy as np
import scipy
import torch

import sgdsde
from sgdsde import provenance
from tests.command_line import call_python


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_versions_are_those_in_use_and_none_for_a_missing_package() -> None:
    assert provenance.versions() == {
        "python": platform.python_version(),
        "sgdsde": sgdsde.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }
    assert provenance.versions(["no-such-package"])["no-such-package"] is None


def test_the_machine_is_described_without_its_name() -> None:
    described = provenance.machine()
    assert set(described) == {"processor", "cores", "system", "machine", "python"}
    assert described["processor"]
    assert platform.node() not in described.values()


def test_the_commit_and_the_files_that_differ_from_it(tmp_path: Path) -> None:
    assert provenance.commit(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert provenance.commit(tmp_path) is None
    (tmp_path / "a.txt").write_text("1")
    (tmp_path / "untracked.txt").write_text("1")
    git(tmp_path, "add", "a.txt")
    git(tmp_path, "commit", "-qm", "a")
    sha = git(tmp_path, "rev-parse", "HEAD")
    assert provenance.commit(tmp_path) == (sha, ())
    (tmp_path / "a.txt").write_text("2")
    assert provenance.commit(tmp_path) == (sha, (" M a.txt",))


def test_without_git_there_is_no_commit(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.commit(Path(__file__).parent) is None


def test_a_file_of_several_parts_has_the_hash_of_its_content(tmp_path: Path) -> None:
    content = bytes(range(256)) * (2**13) + b"end"
    (tmp_path / "big").write_bytes(content)
    assert provenance.file_digest(tmp_path / "big") == hashlib.sha256(content).hexdigest()


def test_it_needs_no_package() -> None:
    code = "import sys; sys.modules['torch'] = sys.modules['numpy'] = None; from sgdsde import provenance as p; "
    answer = call_python("-c", code + "assert p.versions()['torch']; p.machine()")
    assert answer.returncode == 0, answer.stderr
