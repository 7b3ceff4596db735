"""Claim: with momentum too, the moments of SGD are met to first order in lr by the equation of order 1, to second order
by that of order 2. Both sides are deterministic: the slope is asserted to 0.1 on the last two halvings."""

from __future__ import annotations

import math

import pytest
import torch

import sgdsde
from sgdsde.dynamics import MomentEquations, MomentRecursion, OrnsteinUhlenbeck
from sgdsde.dynamics.continuous.momentum_flow import Generator, real_logarithm
from sgdsde.step import Step
from tests.problems import BY_NAME
from tests.settings import chosen

CASE = BY_NAME["two outputs, null space"]
WORDS = chosen("light momentum", "nesterov, decay", "label noise, momentum, dampening, without replacement")


def slopes(dynamics: MomentEquations, words: dict) -> list[float]:
    linearization = sgdsde.linearize(CASE.problem())
    errors = []
    for halving in range(3):
        lr = sgdsde.stability.max_lr_full_batch(linearization) * (1 - words["momentum"]) / 256 / 2**halving
        sgd, n_steps = sgdsde.SGD(lr, 2, **words), 200 * 2**halving
        found, exact = (
            sgdsde.predict(linearization, sgd, n_steps, dynamics=each, record=[0, n_steps])
            for each in (dynamics, MomentRecursion())
        )
        errors.append(
            [abs(float(getattr(found, s).mean[-1] - getattr(exact, s).mean[-1])) for s in ("train_loss", "test_loss")]
        )
    return [math.log2(errors[i][side] / errors[i + 1][side]) for side in (0, 1) for i in (0, 1)]


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize("order", [1, 2])
def test_order(order: int, words: dict) -> None:
    assert slopes(MomentEquations(order, rtol=1e-11), words) == pytest.approx([order] * 4, abs=0.1)


@pytest.mark.parametrize("words", [{"momentum": 0.9}, {"momentum": 0.5, "nesterov": True}], ids=str)
def test_one_step_of_order_two_is_the_step_of_sgd(words: dict) -> None:
    """exp(L) = G for slow, oscillating and nearly critical modes; the noise of a step is nu nu^T."""
    drift = torch.tensor([1e-6, 0.01, 0.3, 1.0, 5.0], dtype=torch.float64)
    critical = (1 - words["momentum"] ** 0.5) ** 2 / 0.05
    modes = torch.cat([drift, drift.new_tensor([critical])])
    step = Step.of(sgdsde.SGD(0.05, 1, **words), 0.05, first=False).modal(modes)
    transition = step.matrices
    torch.testing.assert_close(torch.linalg.matrix_exp(real_logarithm(transition)), transition, rtol=1e-9, atol=1e-12)
    generator = Generator.of(step, 2)
    d_ee, d_eu, d_uu = generator.diffusion
    nodes = torch.linspace(0, 1, 2001, dtype=torch.float64)
    flow = torch.linalg.matrix_exp(generator.drift[1] * nodes[:, None, None])
    inner = torch.tensor([[d_ee[1, 1], d_eu[1, 1]], [d_eu[1, 1], d_uu[1, 1]]])
    total = torch.trapezoid(flow @ inner @ flow.mT, nodes, dim=0)
    source = step.gains
    torch.testing.assert_close(total, torch.outer(source, source), rtol=1e-5, atol=1e-9)


def test_a_step_that_flips_a_mode_has_no_flow_of_second_order() -> None:
    linearization = sgdsde.linearize(CASE.problem())
    sgd = sgdsde.SGD(
        1.2 * sgdsde.stability.max_lr_full_batch(linearization), 4, momentum=0.3, sampling="without_replacement"
    )
    with pytest.raises(ValueError, match=r"flips the sign of a mode; use MomentEquations\(order=1\)"):
        sgdsde.predict(linearization, sgd, 3, dynamics=MomentEquations(2))


@pytest.mark.parametrize("words", [{"momentum": 0.7}, {"momentum": 0.7, "nesterov": True}], ids=str)
def test_frozen_at_the_start_it_is_the_gaussian_process_of_its_linear_equation(words: dict) -> None:
    """Against the matrix exponential of Van Loan, dense, for all modes and their buffers at once."""
    linearization = sgdsde.linearize(CASE.problem())
    lr, n_steps = 0.05 * sgdsde.stability.max_lr_full_batch(linearization), 7
    sgd = sgdsde.SGD(lr, 2, **words)
    modes = linearization.eigenbasis
    r, n, s = len(modes.values), CASE.n_train, 2 / CASE.n_outputs
    step = Step.of(sgd, lr, first=False).modal(s * modes.values / n)
    drift = torch.zeros(2 * r, 2 * r, dtype=torch.float64)
    for i, block in enumerate(step.matrices - torch.eye(2)):
        drift[i::r, i::r] = block
    residual = linearization.residual.flatten() * s
    noise = sgdsde.noise.output_noise(linearization.kernel, torch.outer(residual, residual), n_train=n, batch_size=2)
    source = step.gains
    diffusion = torch.kron(torch.outer(source, source), modes.vectors.mT @ noise @ modes.vectors)
    block = torch.zeros(4 * r, 4 * r, dtype=torch.float64)
    block[: 2 * r, : 2 * r], block[: 2 * r, 2 * r :], block[2 * r :, 2 * r :] = -drift, diffusion, drift.mT
    exponential = torch.linalg.matrix_exp(block * n_steps)
    dense = exponential[2 * r :, 2 * r :].mT @ exponential[: 2 * r, 2 * r :]
    (law,) = OrnsteinUhlenbeck(freeze="init").evolve(linearization, sgd, [n_steps])
    torch.testing.assert_close(law.covariance.core, dense[:r, :r], rtol=1e-7, atol=1e-9 * float(dense.abs().max()))
