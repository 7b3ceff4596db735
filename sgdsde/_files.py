"""Files written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path with the target's suffix beside the target, renamed to it when the block ends without an error.

    Raises:
        FileNotFoundError: the target's folder does not exist. IsADirectoryError: the target is a folder.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder of {target} must exist, got none; create {target.parent} first")
    if target.is_dir():
        raise IsADirectoryError(f"{target} must be the path of a file, got a folder; name a file inside it")
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(4)}.tmp{target.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def create_once(path: str | os.PathLike[str], text: str) -> bool:
    """Write a file that is not there, whole or not at all; False, and nothing changed, where another one came first."""
    target = Path(path)
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(4)}.tmp{target.suffix}")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if target.exists():
            return False
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return True
