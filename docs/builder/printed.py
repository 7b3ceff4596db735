"""What the README's first lines print, as its next block shows it: up to the terms that a result explains below itself.

python -m docs.builder.printed          run them and write the block anew
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"
_SHOWN = re.compile(r"```python\n(?P<code>.*?)```\n\n```text\n(?P<output>.*?)```", re.DOTALL)


def shown(text: str) -> tuple[str, str]:
    """The code that is followed by its output, and that output."""
    (match,) = _SHOWN.finditer(text)
    return match["code"], match["output"]


def output_of(code: str) -> str:
    """What the code prints; the global stream of torch starts from 0, as the model is drawn from it."""
    import torch

    out = io.StringIO()
    with contextlib.redirect_stdout(out), torch.random.fork_rng():
        torch.manual_seed(0)
        exec(code, {"__name__": "readme"})
    return out.getvalue().partition("\n\nTerms")[0].rstrip("\n") + "\n"


def main() -> int:
    text = README.read_text()
    code, output = shown(text)
    README.write_text(text.replace(output, output_of(code)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
