"""``python -m sgdsde``."""

import sys

from sgdsde.cli import main

if __name__ == "__main__":
    sys.exit(main())
