"""The command line: ``sgdsde compare | predict | diagnose | sweep | ntk | prune | eoc | explore``."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence

from sgdsde._version import __version__

OK, INTERNAL, USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit codes; a prediction that disagrees is a result, not an error."""

DEBUG = "SGDSDE_DEBUG"
"""Set to anything, this environment variable shows the traceback of an error."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code. Errors and warnings are one line each on stderr."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv == ["--version"]:
        print(f"sgdsde {__version__}")
        return OK
    try:
        from sgdsde.cli import parser
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "tyro":
            raise
        return _fail("the command line needs tyro; install it with: pip install 'sgdsde[cli]'", USAGE)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = _warn  # type: ignore[assignment]
        try:
            command = parser.parse(argv)
            if command is not None:
                from sgdsde.cli import commands

                commands.run(command, argv)
        except (ValueError, TypeError, OSError, MemoryError, ModuleNotFoundError) as error:
            return _fail(str(error) or type(error).__name__, USAGE)
        except KeyboardInterrupt:
            return _fail("interrupted; nothing was written", INTERRUPTED)
        except Exception as error:
            hint = f" (a fault of sgdsde; {DEBUG}=1 shows where)"
            return _fail(f"{type(error).__name__}: {error}{hint}", INTERNAL)
    return OK


def _fail(message: str, code: int) -> int:
    if os.environ.get(DEBUG):
        traceback.print_exc()
    print(f"sgdsde: error: {_one_line(message)}", file=sys.stderr)
    return code


def _warn(message: Warning | str, category: type[Warning], *_: object) -> None:
    print(f"sgdsde: warning: {_one_line(str(message))}", file=sys.stderr)


def _one_line(message: str) -> str:
    return " ".join(message.split())
