"""Diagnosis of a problem and its SGD before any run is measured: which prediction to trust."""

from sgdsde.diagnosis.assembly import diagnose
from sgdsde.diagnosis.result import Advice, Check, Diagnosis, Grade

__all__ = ["Advice", "Check", "Diagnosis", "Grade", "diagnose"]
