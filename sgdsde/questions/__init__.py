"""Questions that everyone asks of a training, each answered by an object with numbers, a sentence and a plot."""

from sgdsde.questions.arrival import StepsTo, steps_to
from sgdsde.questions.crossing import Crossing
from sgdsde.questions.learning_rate import ChosenLR, choose_lr
from sgdsde.questions.scaling import scaling_rule
from sgdsde.questions.scaling_result import BatchScaling, RuleOutcome, ScalingRule
from sgdsde.questions.spread import SpreadOverRuns, spread_over_runs

__all__ = [
    "BatchScaling",
    "ChosenLR",
    "Crossing",
    "RuleOutcome",
    "ScalingRule",
    "SpreadOverRuns",
    "StepsTo",
    "choose_lr",
    "scaling_rule",
    "spread_over_runs",
    "steps_to",
]
