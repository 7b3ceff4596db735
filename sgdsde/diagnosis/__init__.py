"""Diagnosis of a problem and its SGD by a few runs: what to predict, what to measure, at which error and cost."""

from sgdsde.diagnosis.assembly import diagnose, diagnosis_cost
from sgdsde.diagnosis.result import Advice, Check, Diagnosis, Grade, Option

__all__ = ["Advice", "Check", "Diagnosis", "Grade", "Option", "diagnose", "diagnosis_cost"]
