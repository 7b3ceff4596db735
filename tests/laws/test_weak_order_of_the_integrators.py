"""Claim: the second moments of sample paths reach those of the SDE at the stated order in the step, measured.

No sampling: one output, two examples. Every integrator's step is linear in the residual and a polynomial of degree at
most two in its normal numbers, so three Gauss-Hermite nodes a number give the second moments after one step exactly,
and the moments of three starts give the map of all second moments, which is then iterated.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

import sgdsde
from sgdsde.dynamics import EulerMaruyama, ExponentialEuler, Integrator, MomentEquations, WeakOrder2
from sgdsde.dynamics.paths.integrators import PathSetup
from tests.oracles import Given
from tests.problems import linear_problem

FEATURES = [[[1.0, 0.3]], [[-0.4, 1.1]]]
NODES, WEIGHTS = (-math.sqrt(3.0), 0.0, math.sqrt(3.0)), (1 / 6, 2 / 3, 1 / 6)
STARTS = ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0))
LR, BATCH_SIZE, SUBSTEPS = 0.6, 16, (2, 4, 8, 16)


def linearization(residual: tuple[float, ...]) -> sgdsde.Linearization:
    problem = linear_problem(FEATURES, -np.array(residual)[:, None], [0.0, 0.0])
    return sgdsde.linearize(problem)


def cubature(n_numbers: int) -> tuple[Tensor, Tensor]:
    nodes = torch.tensor(list(itertools.product(NODES, repeat=n_numbers)), dtype=torch.float64)
    weights = torch.tensor([math.prod(w) for w in itertools.product(WEIGHTS, repeat=n_numbers)], dtype=torch.float64)
    return nodes, weights


def upper(moment: Tensor) -> Tensor:
    return torch.stack([moment[0, 0], moment[1, 1], moment[0, 1]])


def second_moments_after(integrator: Integrator, lr: float, batch_size: int, start: tuple[float, ...]) -> Tensor:
    """Of one step of SGD of this length, by cubature."""
    two = isinstance(integrator, WeakOrder2)
    nodes, weights = cubature(4 if two else 2)
    made, sgd = linearization(start), sgdsde.SGD(lr, batch_size)
    setup = PathSetup(made, sgd, sgd.plan(2, 1), 0)
    numbers = nodes.view(-1, 2, 2) if two else nodes
    group = integrator.group(setup, range(len(nodes)), Given([numbers]))
    group.advance(0, 1)
    e = group.outputs(1)[0][:, :, 0] - made.targets[:, 0]
    return upper(torch.einsum("p,pi,pj->ij", weights, e, e))


def error(integrator: Integrator, substeps: int) -> float:
    """Largest error of the second moments after time lr, in ``substeps`` steps; k of lr/k have batches of B/k."""
    columns = [second_moments_after(integrator, LR / substeps, BATCH_SIZE // substeps, start) for start in STARTS]
    first, second, both = columns
    step = torch.stack([first, second, both - first - second], 1)  # acts on (M_11, M_22, M_12)
    start = (1.0, -0.5)
    reached = torch.linalg.matrix_power(step, substeps) @ torch.tensor([1.0, 0.25, -0.5], dtype=torch.float64)
    return float((reached - exact_second_moments(start)).abs().max())


@functools.cache
def exact_second_moments(start: tuple[float, ...]) -> Tensor:
    (law,) = MomentEquations(1, rtol=1e-11).evolve(linearization(start), sgdsde.SGD(LR, BATCH_SIZE), [1])
    mean = law.mean[:, 0] - linearization(start).targets[:, 0]
    return upper(law.covariance.to_dense() + torch.outer(mean, mean))


def orders(integrator: Integrator) -> list[float]:
    errors = [error(integrator, substeps) for substeps in SUBSTEPS]
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


def test_second_order() -> None:
    assert min(orders(WeakOrder2())) > 1.85


@pytest.mark.parametrize("integrator", [EulerMaruyama(), ExponentialEuler()], ids=repr)
def test_the_others_are_of_first_order(integrator: Integrator) -> None:
    """The control: the same measurement tells a method of order 1 from one of order 2."""
    assert 0.75 < orders(integrator)[-1] < 1.25


def test_second_order_is_closer_at_every_step() -> None:
    for substeps in SUBSTEPS:
        assert error(WeakOrder2(), substeps) < error(ExponentialEuler(), substeps)


# ------------------------------------------------------ fourth moments: all of weak order 2, not the first two


def fourth_moments_after(integrator: Integrator, lr: float, batch_size: int, start: tuple[float, ...]) -> Tensor:
    """E e_1^a e_2^(4-a) for a = 0..4; five nodes a number are exact for polynomials of degree nine."""
    two = isinstance(integrator, WeakOrder2)
    points, masses = np.polynomial.hermite_e.hermegauss(5)
    count = 4 if two else 2
    nodes = torch.tensor(list(itertools.product(points, repeat=count)))
    weights = torch.tensor([math.prod(w) for w in itertools.product(masses / masses.sum(), repeat=count)])
    made, sgd = linearization(start), sgdsde.SGD(lr, batch_size)
    setup = PathSetup(made, sgd, sgd.plan(2, 1), 0)
    group = integrator.group(setup, range(len(nodes)), Given([nodes.view(-1, 2, 2) if two else nodes]))
    group.advance(0, 1)
    e = group.outputs(1)[0][:, :, 0] - made.targets[:, 0]
    return weights.to(e) @ monomials(e)


def monomials(e: Tensor) -> Tensor:
    return torch.stack([e[..., 0] ** a * e[..., 1] ** (4 - a) for a in range(5)], -1)


def exact_fourth_moments(start: Tensor) -> Tensor:
    """From the generator on e (x) e (x) e (x) e: the drift on each factor, the noise on each pair of factors."""
    made = linearization((0.0, 0.0))
    kernel, eye = made.kernel, torch.eye(2, dtype=torch.float64)
    centring = eye - 0.5
    noises = [-2 * math.sqrt(LR / BATCH_SIZE / 2) * kernel @ column.diag() for column in centring]

    def on_factors(matrices: dict[int, Tensor]) -> Tensor:
        result = torch.ones(1, 1, dtype=torch.float64)
        for place in range(4):
            result = torch.kron(result, matrices.get(place, eye))
        return result

    generator = sum(on_factors({place: -kernel}) for place in range(4))  # H = 2 K / n with n = 2
    for i, j in itertools.combinations(range(4), 2):
        generator = generator + sum(on_factors({i: noise, j: noise}) for noise in noises)
    power = torch.ones(1, dtype=torch.float64)
    for _ in range(4):
        power = torch.kron(power, start)
    reached = (torch.linalg.matrix_exp(LR * generator) @ power).view(2, 2, 2, 2)
    return torch.stack([reached[tuple(0 if place < a else 1 for place in range(4))] for a in range(5)])


def fourth_moment_error(integrator: Integrator, substeps: int) -> float:
    starts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0], [2.0, 1.0]], dtype=torch.float64)
    images = [
        fourth_moments_after(integrator, LR / substeps, BATCH_SIZE // substeps, tuple(s.tolist())) for s in starts
    ]
    step = torch.linalg.solve(monomials(starts), torch.stack(images))  # rows: moments before, columns: after
    start = torch.tensor([1.0, -0.5], dtype=torch.float64)
    reached = monomials(start) @ torch.linalg.matrix_power(step, substeps)
    return float((reached - exact_fourth_moments(start)).abs().max())


@pytest.mark.parametrize(("integrator", "lowest", "highest"), [
    (WeakOrder2(), 1.9, 2.1),
    (ExponentialEuler(), 0.9, 1.1),
])  # fmt: skip
def test_fourth_moments(integrator: Integrator, lowest: float, highest: float) -> None:
    errors = [fourth_moment_error(integrator, substeps) for substeps in SUBSTEPS]
    assert lowest < math.log2(errors[-2] / errors[-1]) < highest
