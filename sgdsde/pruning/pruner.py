"""Pruning itself: score, remove, and again, down to an exact number of weights."""

from __future__ import annotations

import warnings
from typing import get_args

import torch
from torch import nn

from sgdsde._checks import complaint, fraction_below_one, whole_number, word
from sgdsde._progress import ticker
from sgdsde._types import Params, Progress
from sgdsde.problem import Problem
from sgdsde.pruning.connectivity import connectivity
from sgdsde.pruning.criteria import Criterion, Draw
from sgdsde.pruning.flow_criteria import SynFlow
from sgdsde.pruning.masks import Masks
from sgdsde.pruning.selection import Scope, keep_largest, round_density, zeros_at_threshold
from sgdsde.pruning.weights import Subject, Where


class PruningWarning(UserWarning):
    """The masks are exact, but not what one would want: the message says what happened and what helps."""


def prune(
    problem_or_model: Problem | nn.Module,
    criterion: Criterion,
    sparsity: float,
    *,
    scope: Scope = "global",
    where: Where = None,
    n_examples: int | None = None,
    seed: int = 0,
    progress: Progress = None,
) -> Masks:
    """Masks that keep the weights of largest score, exactly round((1 - sparsity) n) of n; the model stays as it is.

    Args:
        problem_or_model: a bare model suffices for criteria without data.
        criterion: ``SynFlow()``, ``SNIP()``, ... with its rounds and schedule.
        sparsity: removed share of the prunable weights, in [0, 1). What masks of the model removed is part of it.
        scope: ``"global"``, or ``"layer"`` for the same share of every layer.
        where: predicate on parameter names: only these may be removed, and only these are counted.
        n_examples: training examples to score with, drawn by ``seed``; None: all.
        seed: of examples, random masks and training batches; independent of the weights'.
    Returns:
        ``Masks``; ``.apply(model)`` or ``.apply(problem)``. Of equal scores the first by position are kept.
    Warns:
        PruningWarning: position decided among weights of score zero; an empty layer; less than half of the kept weights
            on a path; outputs that no path reaches.
    Raises:
        ValueError, TypeError: bad arguments, a model without prunable weights, a criterion without its data.
    Cost: per round one scoring pass and one selection, linear in the number of weights.
    """
    if not isinstance(criterion, Criterion):
        received, remedy = repr(criterion), "use sgdsde.pruning.SynFlow() or another of sgdsde.pruning"
        raise TypeError(complaint("criterion", "an instance of a criterion", received, remedy))
    sparsity = fraction_below_one("sparsity", sparsity, "0.9 removes nine weights of ten")
    word("scope", scope, get_args(Scope))
    n_examples = None if n_examples is None else whole_number("n_examples", n_examples, minimum=1)
    seed = whole_number("seed", seed)
    subject = Subject.of(problem_or_model, where)
    _check_count(subject, sparsity)
    kept: Params = dict(subject.kept)
    scores: Params = {}
    ticks = ticker(progress, criterion.n_rounds, "rounds of pruning")
    for k in range(criterion.n_rounds):
        scores.clear()  # of the last round, before those of this one are made
        scores = criterion.score_subject(subject, kept, Draw(seed, k, n_examples))
        density = round_density(1 - sparsity, k + 1, criterion.n_rounds, criterion.schedule)
        is_last = k + 1 == criterion.n_rounds
        kept = keep_largest(scores, kept, density, scope, strict=is_last)
        ticks.update(1)
    ticks.close()
    zeros = zeros_at_threshold(scores, kept)
    scores.clear()
    example = criterion.example if isinstance(criterion, SynFlow) else None
    example = example[:1] if isinstance(example, torch.Tensor) else None
    whole = Subject.of(problem_or_model)
    masks = Masks(kept, connectivity(whole, whole.kept | kept, example))
    _warn(masks, zeros)
    return masks


def _check_count(subject: Subject, sparsity: float) -> None:
    n = sum(weight.numel for weight in subject.weights.values())
    if round((1 - sparsity) * n) == 0:
        received = f"{sparsity}, of {n} weights"
        raise ValueError(complaint("sparsity", "such that a weight is kept", received, "use a smaller sparsity"))


def _warn(masks: Masks, zeros: int) -> None:
    """One warning with all that went wrong."""
    findings = []
    if zeros:
        findings.append(
            f"the threshold lies among scores of zero ({zeros / masks.n_weights:.3g} of all scores), so that position "
            "decided which of them are kept: use more examples or rounds"
        )
    if masks.empty_layers:
        findings.append(f"no weight is kept in {', '.join(masks.empty_layers)}: use more rounds or scope='layer'")
    if masks.n_live is not None and masks.n_live < masks.n_kept / 2:
        findings.append(f"only {masks.n_live} of {masks.n_kept} kept weights lie on a path from an input to an output")
    if masks.disconnected_outputs:
        some = ", ".join(map(str, masks.disconnected_outputs[:10]))
        findings.append(f"no path reaches output {some}, which no input changes")
    if findings:
        message = "; ".join(findings) + "; SynFlow, or a smaller sparsity, avoids this"
        warnings.warn(message, PruningWarning, stacklevel=3)
