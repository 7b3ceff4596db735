"""The Ito term against dense Hessians, against every pattern of noise on the network itself, and in the paths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sgdsde
from sgdsde.dynamics import EulerMaruyama, ExponentialEuler, ItoTerm, OutputLaw, SDEPaths
from sgdsde.dynamics.paths.ito_term import Displacement
from sgdsde.noise import ito_term, noise_direction
from tests.oracles import AllSigns
from tests.problems import BY_NAME, classification_problem, mlp_problem, seeded_module


def small_network() -> sgdsde.Problem:
    model = seeded_module(lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)), 7)
    rng = np.random.default_rng(7)
    x, y = torch.from_numpy(rng.normal(size=(7, 2))), torch.from_numpy(rng.normal(size=(7, 2)))
    return sgdsde.Problem(model, x[:5], y[:5], loss=nn.MSELoss(), x_test=x[5:], y_test=y[5:])


def flat_outputs(problem: sgdsde.Problem, theta: Tensor, x: Tensor) -> Tensor:
    """F at weights given as one vector."""
    params, first = {}, 0
    for name, value in problem.params.items():
        params[name] = theta[first : first + value.numel()].view_as(value)
        first += value.numel()
    return problem.forward(params, x)


def dense_gamma(problem: sgdsde.Problem, residual: Tensor, x: Tensor, n_directions: int) -> Tensor:
    """tr(Sigma Hess f) from the per-example gradients one by one and the Hessian of every output."""
    theta = torch.cat([value.flatten() for value in problem.params.values()])
    jacobian = torch.autograd.functional.jacobian(lambda t: flat_outputs(problem, t, problem.x_train), theta)
    gradients = torch.einsum("iap,ia->ip", jacobian, residual)
    deviation = gradients - gradients.mean(0)
    values, vectors = torch.linalg.eigh(deviation.mT @ deviation / len(deviation))
    sigma = (vectors * values)[:, -n_directions:] @ vectors[:, -n_directions:].mT
    traces = []
    for output in range(len(x) * problem.n_outputs):
        hessian = torch.autograd.functional.hessian(lambda t, k=output: flat_outputs(problem, t, x).flatten()[k], theta)
        traces.append((sigma * hessian).sum())
    return torch.stack(traces).view(len(x), -1)


@pytest.mark.parametrize("n_directions", [1, 3, 5])
@pytest.mark.parametrize("problem", [small_network(), classification_problem()], ids=["tanh", "relu"])
def test_equals_dense_hessians(problem: sgdsde.Problem, n_directions: int) -> None:
    linearization = sgdsde.linearize(problem)
    residual = problem.criterion.gradient(linearization.outputs, problem.y_train)
    train, test = ito_term(linearization, residual, n_directions=n_directions)
    torch.testing.assert_close(
        train, dense_gamma(problem, residual, problem.x_train, n_directions), rtol=1e-8, atol=1e-12
    )
    torch.testing.assert_close(
        test, dense_gamma(problem, residual, problem.x_test, n_directions), rtol=1e-8, atol=1e-12
    )
    assert float(train.abs().max()) > 1e-3


def test_zero_for_linear_models() -> None:
    linearization = sgdsde.linearize(BY_NAME["two outputs"].problem())
    train, test = ito_term(linearization, linearization.residual)
    assert float(train.abs().max()) == float(test.abs().max()) == 0


def test_it_is_what_noise_does_to_the_network() -> None:
    """Weights moved by lr sqrt(phi/B) J^T V xi, all sign patterns xi: the mean of the outputs moves by
    (phi lr^2 / 2B) Gamma, up to terms of order lr^4."""
    problem = small_network()
    linearization = sgdsde.linearize(problem)
    residual = problem.criterion.gradient(linearization.outputs, problem.y_train)
    signs = AllSigns(5)
    v = noise_direction(residual.expand(signs.n_paths, -1, -1), signs.normal("", 5))
    theta = torch.cat([value.flatten() for value in problem.params.values()])
    jacobian = torch.autograd.functional.jacobian(lambda t: flat_outputs(problem, t, problem.x_train), theta)
    moves = torch.einsum("ria,iap->rp", v, jacobian)
    gamma, lr, batch_size = ito_term(linearization, residual)[0], 1e-3, 2
    scale = lr / batch_size**0.5
    outputs = torch.stack([flat_outputs(problem, theta + scale * move, problem.x_train) for move in moves])
    shift = outputs.mean(0) - linearization.outputs
    torch.testing.assert_close(shift, lr**2 / (2 * batch_size) * gamma, rtol=1e-4, atol=1e-13)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(shift, lr**2 / batch_size * gamma, rtol=0.1, atol=1e-13)


def paths(linearization: sgdsde.Linearization, sgd: sgdsde.SGD, n_steps: int, **words: object) -> OutputLaw:
    (law,) = SDEPaths(64, **words).evolve(linearization, sgd, [n_steps])
    return law


def test_one_step_of_the_paths() -> None:
    linearization, sgd = sgdsde.linearize(small_network()), sgdsde.SGD(0.1, 2)
    plain = paths(linearization, sgd, 1)
    curved = paths(linearization, sgd, 1, ito_term=ItoTerm(n_directions=5, n_refreshes=2))
    start, test_start = ito_term(linearization, linearization.residual)
    (after,) = sgdsde.dynamics.GradientDescent().evolve(linearization, sgd, [1])
    end, test_end = ito_term(linearization, after.mean - linearization.targets)
    clock = 0.1**2 / 4
    shift = clock * (start + end) / 2
    torch.testing.assert_close(curved.samples - plain.samples, shift.expand(64, -1, -1), rtol=1e-9, atol=1e-14)
    test_shift = clock * (test_start + test_end) / 2
    torch.testing.assert_close(
        curved.test_samples - plain.test_samples, test_shift.expand(64, -1, -1), rtol=1e-9, atol=1e-14
    )


def test_many_steps_follow_the_curve() -> None:
    """Few refreshes near many; and the displacement feeds back, so training counteracts it."""
    linearization, sgd = sgdsde.linearize(mlp_problem()), sgdsde.SGD(0.05, 2)
    many = ItoTerm(7, 16).displacement(linearization, sgd, sgd.plan(7, 100))
    few = ItoTerm(7, 8).displacement(linearization, sgd, sgd.plan(7, 100))
    for step in (1, 7.5, 40, 100):
        torch.testing.assert_close(few.at(step), many.at(step), rtol=0.03, atol=0.01 * float(many.at(100).abs().max()))
    added = many.at(100)[:7]
    moved = paths(linearization, sgd, 100, ito_term=ItoTerm(7, 16)).mean - paths(linearization, sgd, 100).mean
    assert float(moved.norm()) < 0.9 * float(added.norm())


def test_whole_batches_have_none() -> None:
    linearization, sgd = sgdsde.linearize(small_network()), sgdsde.SGD(0.1, 5, sampling="without_replacement")
    curved = paths(linearization, sgd, 4, ito_term=ItoTerm())
    torch.testing.assert_close(curved.samples, paths(linearization, sgd, 4).samples, rtol=1e-13, atol=1e-14)


def test_substeps_and_groups() -> None:
    linearization, sgd = sgdsde.linearize(small_network()), sgdsde.SGD(0.05, 2)
    coarse, fine = (
        paths(linearization, sgd, 20, integrator=EulerMaruyama(k), ito_term=ItoTerm(5, 20)).mean
        - paths(linearization, sgd, 20, integrator=EulerMaruyama(k)).mean
        for k in (1, 8)
    )
    torch.testing.assert_close(coarse, fine, rtol=0.1, atol=0.1 * float(fine.abs().max()))


def test_messages() -> None:
    linearization = sgdsde.linearize(small_network())
    with pytest.raises(ValueError, match="n_directions must be at most n_train=5, got 6"):
        ito_term(linearization, linearization.residual, n_directions=6)
    with pytest.raises(ValueError, match="n_directions must be at least 1, got 0"):
        ItoTerm(n_directions=0)
    with pytest.raises(TypeError, match=r"ito_term must be an ItoTerm or None, got True; use dynamics\.ItoTerm\(\)"):
        SDEPaths(ito_term=True)
    with pytest.raises(ValueError, match="ito_term must be used with plain SGD, got momentum"):
        paths(linearization, sgdsde.SGD(0.1, 2, momentum=0.5), 2, ito_term=ItoTerm())
    with pytest.raises(ValueError, match=r"ExponentialEuler cannot represent an Ito term; use EulerMaruyama\(\)"):
        paths(linearization, sgdsde.SGD(0.1, 2), 2, ito_term=ItoTerm(), integrator=ExponentialEuler())


@pytest.mark.parametrize("steps", [[0, 1, 2, 6], [0, 6], [0, 2, 3, 6]], ids=str)
def test_a_displacement_is_the_integral_over_the_clock_of_the_term_between_its_refreshes(steps: list[int]) -> None:
    """Of several refreshes, at steps and between them; a stretch without noise adds nothing."""
    clock = np.concatenate([[0.0], np.cumsum([0.5, 0.1, 0.0, 0.2, 0.2, 0.7])])
    terms = [torch.randn(3, 2, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in steps]
    found = Displacement(clock, steps, terms)
    knots = clock[steps]
    for step in (0, 0.3, 1, 1.5, 2, 2.5, 3, 3.4, 5, 5.9, 6):
        now, expected = np.interp(step, range(7), clock), torch.zeros(3, 2, dtype=torch.float64)
        for begin, end, first, last in zip(knots[:-1], knots[1:], terms[:-1], terms[1:]):
            if begin < min(end, now):  # the mean of the values at both ends of what is passed of a stretch
                passed = min(end, now) - begin
                reached = first + passed / (end - begin) * (last - first)
                expected += passed * (first + reached) / 2
        torch.testing.assert_close(found.at(step), expected, rtol=1e-10, atol=1e-12)
    still = Displacement(np.zeros(1), [0], terms[:1])
    assert not still.at(0).any()
