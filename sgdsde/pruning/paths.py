"""Path kernel and path norms: what an architecture and its weights are without the data.

For a network without biases whose activations are piecewise linear, f(x) = sum over paths v_p a_p(x), v_p the product
of the weights along path p. Then J_theta f = J_v f J_theta v and

    K = J_v f Pi (J_v f)^T,    Pi = J_theta v (J_theta v)^T,    Tr Pi = sum over the kept weights of dR_2/d(w^2),

R_2 = sum of v_p^2. Source: Gebhart et al., arXiv:2101.10552; the trace in one pass is derived in docs/pruning.md.
"""

from __future__ import annotations

import torch
from torch import nn

from sgdsde._checks import complaint, whole_number
from sgdsde.problem import Problem
from sgdsde.pruning.flow_criteria import path_kernel_slopes, powered_weights
from sgdsde.pruning.linear_pass import LinearPass, check_linear, check_used_once, linear_outputs, ones_input
from sgdsde.pruning.weights import Subject


def path_kernel_trace(problem_or_model: Problem | nn.Module) -> float:
    """Tr Pi over the kept weights, biases and normalizations left out (the authors' code adds their gradients).

    Tr K <= l_max(J_v f (J_v f)^T) Tr Pi. Columns of removed weights do not count: a mask holds them fixed.

    Exactness: to rounding; enumeration of all paths gives the same.
    Cost: one forward and one backward pass of one example in float64.
    Raises:
        ValueError: a layer without a linear pass; a trace outside of the range of float64.
    """
    subject = Subject.of(problem_or_model)
    x = ones_input(subject)
    check_linear(subject, x)
    check_used_once(subject, x)
    trace, _, _ = path_kernel_slopes(subject, subject.kept, x)
    return float(trace.detach())


def path_norm(problem_or_model: Problem | nn.Module, power: int = 2) -> float:
    """R_p = sum over all paths of |v_p|^p; its p-th root is a norm of the path values.

    Source: Neyshabur et al., arXiv:1506.02617, for power = 2.
    Raises, Exactness, Cost: see ``path_kernel_trace``; one forward pass.
    """
    power = whole_number("power", power, minimum=1)
    subject = Subject.of(problem_or_model)
    x = ones_input(subject)
    check_linear(subject, x)
    with torch.no_grad():
        total = float(
            linear_outputs(subject, powered_weights(subject, subject.kept, power), x, LinearPass(power)).sum()
        )
    if total == float("inf"):
        raise ValueError(complaint("path norm", "within the range of float64", total))
    return total
