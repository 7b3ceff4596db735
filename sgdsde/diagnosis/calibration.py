"""Calibration of a diagnosis, on the settings of experiments/fig17_diagnosis.py.

Fitted to two thirds of these settings and checked on the rest (docs/diagnosis.md); the figure claims the fit anew.
"""

from __future__ import annotations

MOVING_SCALE, DRIFT_POWER, SPREAD_POWER = 0.14, 0.40, 0.54
"""Error of the moving kernel: scale * drift^a * spread^b in the middle of the settings."""

MOVING_FACTOR = 2.6
"""Four of five settings lie within this factor of that, on either side."""

DRIFT_CUT = 0.017
"""Kernel drift that best separates frozen kernels within 5 % from others; a weak criterion alone."""

LAZINESS_CUT = 0.011
"""Laziness that best separates them."""

DRIFT_MEASURED = 6.0
"""Kernel drift along a run up to which the moving kernel has been held against runs, most of them within 14 %."""

SHARE_OF_LIMIT = 0.6
"""Fraction of the mean-square limit beyond which the moving kernel warns that its errors are amplified."""

BATCH_POWER, LOOP_POWER = 1.2, 0.4
"""Powers with which the cost of a batch grows with its runs: from 6 or 16 to 64 runs of layers that share products, and
from 3 to 64 of other networks, medians of 46 and 23 settings on a busy machine. Below the pilot's number a guess."""


def moving_error(drift: float, spread: float) -> float:
    """Relative error of the moving kernel to expect, at kernel drift along a run and spread of the loss over runs."""
    return MOVING_SCALE * drift**DRIFT_POWER * spread**SPREAD_POWER
