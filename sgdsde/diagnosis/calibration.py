"""Calibration of the errors of predictions, on the settings of experiments/fig17_diagnosis.py.

Fitted to the calibration half of these settings and checked on the other (docs/diagnosis.md); ``python -m
experiments.fig17_diagnosis`` prints the fit anew.
"""

from __future__ import annotations

MOVING_SCALE, MOVING_POWER = 0.42, 0.76
"""Error of the moving kernel: nine of ten settings lie below scale * feedback^power."""

DRIFT_CUT = 0.017
"""Kernel drift that best separates frozen kernels within 5 % from others; a weak criterion alone."""

LAZINESS_CUT = 0.011
"""Laziness that best separates them."""

DRIFT_MEASURED = 0.8
"""Kernel drift up to which the moving kernel has been held against runs."""

SHARE_OF_LIMIT = 0.6
"""Fraction of the mean-square limit beyond which the moving kernel warns that its errors are amplified."""


def moving_error(feedback: float) -> float:
    """Relative error of the moving kernel to expect, at kernel drift times the odds of noise in the loss."""
    return MOVING_SCALE * feedback**MOVING_POWER


def feedback_at(error: float) -> float:
    """The feedback at which that error is to be expected."""
    return float((error / MOVING_SCALE) ** (1 / MOVING_POWER))
