"""Error budget of a prediction: terms that add up to measured minus predicted loss."""

from sgdsde.budget.assembly import error_budget
from sgdsde.budget.result import TERMS, CurveBudget, ErrorBudget, Term

__all__ = ["TERMS", "CurveBudget", "ErrorBudget", "Term", "error_budget"]
