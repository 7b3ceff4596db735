"""Measurement of a mean loss to a stated standard error, by as few real runs as it takes."""

from sgdsde.measurement.assembly import Asked, MeasurementWarning, complete, measure
from sgdsde.measurement.estimate import NORMAL
from sgdsde.measurement.plain_run import clock, plain_seconds
from sgdsde.measurement.runs import RealRuns

__all__ = ["NORMAL", "Asked", "MeasurementWarning", "RealRuns", "clock", "complete", "measure", "plain_seconds"]
