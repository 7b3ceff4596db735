"""The folder of results: checked before the work, written whole after it, the manifest last."""

from __future__ import annotations

import csv
import dataclasses
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sgdsde._checks import complaint
from sgdsde.cli.options import OutputOptions
from sgdsde.run_folder import MANIFEST


@dataclasses.dataclass(frozen=True)
class ResultFolder:
    """A folder that will hold the named files and a manifest.

    Raises:
        FileExistsError: one of them is there and may not be replaced. NotADirectoryError, PermissionError.
    """

    path: Path
    names: Sequence[str]

    @classmethod
    def prepared(cls, options: OutputOptions, default: str, names: Sequence[str]) -> ResultFolder:
        path = Path(os.path.expanduser(default if options.out == "auto" else options.out))
        there = [name for name in (*names, MANIFEST) if (path / name).exists()]
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(complaint("--out", "a folder", f"the file {path}"))
        if there and not options.overwrite:
            received = f"{path} with {there[0]}"
            raise FileExistsError(complaint("--out", "a folder without results", received, "add --overwrite"))
        parent = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        try:
            os.rmdir(tempfile.mkdtemp(dir=parent))  # some folders only look as if they could be written
        except OSError as error:
            received = f"{path}, where nothing can be made in {parent} ({error.strerror})"
            raise PermissionError(complaint("--out", "in a folder that can be written", received)) from None
        return cls(path, names)

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """A temporary folder to write the files to; moved into place if the block ends without an error."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.tmp")
        temporary.mkdir()
        try:
            yield temporary
            if not self.path.exists():
                temporary.rename(self.path)
                return
            # An old manifest must never stand beside new results.
            (self.path / MANIFEST).unlink(missing_ok=True)
            for name in (*self.names, MANIFEST):
                os.replace(temporary / name, self.path / name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_table(path: Path, columns: dict[str, Any]) -> None:
    """A CSV file of equally long columns, in full precision."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(values.tolist() for values in columns.values())))


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A CSV file of rows with the same names."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
