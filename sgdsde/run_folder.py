"""The folder of one run: its files, and a manifest that says how they were made and what each must hash to."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sgdsde import provenance

MANIFEST = "manifest.json"
FORMAT_VERSION = 2
"""Version 1 had no digest of the manifest itself, and its options in groups, under ``arguments``."""

MANIFEST_BYTES = 2**24
"""A manifest is a few thousand bytes; more are an attack or an accident."""


class ManifestError(ValueError):
    """A manifest that is none of a run, or one that cannot be believed."""


def write_manifest(folder: Path, names: Sequence[str], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest, written last: ``facts`` with versions, time, the hash of every named file and one of itself."""
    content = plain(
        {
            "format_version": FORMAT_VERSION,
            **facts,
            "versions": provenance.versions(),
            "platform": platform.platform(),
            "written": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "files": {name: {"sha256": provenance.file_digest(folder / name)} for name in names},
        }
    )
    content["digest"] = _digest(content)
    (folder / MANIFEST).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    return dict(content)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a run with its options, flat, under ``configuration``.

    Raises:
        ManifestError: cut, changed, of something else than a run, or of a newer format. OSError.
    """
    if path.stat().st_size > MANIFEST_BYTES:
        raise ManifestError(f"not the manifest of a run: {path.stat().st_size:,} bytes")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"not JSON, cut or changed ({type(error).__name__})") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if type(version) is not int or not isinstance(content.get("command"), str):
        raise ManifestError("not the manifest of a run")
    if version > FORMAT_VERSION:
        raise ManifestError(f"format version {version}, newer than {FORMAT_VERSION}; update sgdsde")
    if version < 1:
        raise ManifestError(f"format version {version}, which never was")
    if version == FORMAT_VERSION or "digest" in content:
        if content.pop("digest", None) != _digest(content):
            raise ManifestError("changed after it was written: its digest is another; run again")
    else:
        groups = content.pop("arguments", {})
        content["configuration"] = _flat(groups) if isinstance(groups, dict) else None
    if not _is_whole(content):
        raise ManifestError("not the manifest of a run: its files or its configuration are missing")
    return content


def file_fault(folder: Path, name: str, entry: Mapping[str, Any]) -> str:
    """What is wrong with a file of a run, in words; empty where it is what was written."""
    try:
        digest = provenance.file_digest(folder / name)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if digest == entry["sha256"] else "cut or changed after it was written: its hash is another"


def plain(value: Any) -> Any:
    """The value in what JSON has; numbers that are not finite as ``"inf"``, ``"-inf"``, ``"nan"``."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _flat(groups: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in groups.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat


def _is_whole(content: Mapping[str, Any]) -> bool:
    files = content.get("files")
    if not isinstance(files, dict) or not isinstance(content.get("configuration"), dict):
        return False
    return all(
        Path(name).name == name and isinstance(entry, dict) and isinstance(entry.get("sha256"), str)
        for name, entry in files.items()
    )
