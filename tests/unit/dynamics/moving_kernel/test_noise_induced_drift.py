"""What the noise adds to the mean, against derivatives; and the weight directions, against the Jacobian itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import grad, jacrev, jvp

import sgdsde
from sgdsde.dynamics import GaussianClosure, MovingKernel, NoiseFeedback
from sgdsde.dynamics.moments.feature_state import Features
from sgdsde.dynamics.moving_kernel import noise_induced_drift
from sgdsde.dynamics.moving_kernel.diagonal_tail import DrawnTail
from sgdsde.dynamics.moving_kernel.initial_directions import InitialDirections
from sgdsde.dynamics.moving_kernel.mean_path import MeanPath
from sgdsde.dynamics.moving_kernel.noise_induced_drift import NoiseCorrection, Surroundings, draws, noise_correction
from sgdsde.dynamics.moving_kernel.weight_subspace import WeightSubspace, kernel_distance


def quadratic() -> sgdsde.Problem:
    """f = (x . w)^2: its squared error is a quartic of the weights, and E g has no term beyond the second order."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(3, generator=generator, dtype=torch.float64)
    x, x_test = (torch.randn(m, 3, generator=generator, dtype=torch.float64) for m in (7, 2))
    y, y_test = (torch.randn(m, 1, generator=generator, dtype=torch.float64) for m in (7, 2))

    def model(params, x):
        return (x @ params["w"]).square()[:, None]

    return sgdsde.Problem((model, {"w": w}), x, y, loss=nn.MSELoss(), x_test=x_test, y_test=y_test)


def leading_directions(problem: sgdsde.Problem, rank: int) -> WeightSubspace:
    linearization = sgdsde.linearize(problem)
    return WeightSubspace.leading(linearization, InitialDirections.of(linearization, rank), rank=rank)


def start(problem: sgdsde.Problem) -> tuple[MeanPath, WeightSubspace]:
    sgd = sgdsde.SGD(0.1, 2)
    path = MeanPath.start(problem, sgd, sgd.plan(problem.n_train, 1))
    return path, leading_directions(problem, 64)


def covariance(size: int) -> torch.Tensor:
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return 0.1 * root @ root.mT


def test_draws_have_the_covariance_in_their_leading_directions():
    target = covariance(6)
    points = draws(target, 6)
    torch.testing.assert_close(points.mT @ points / 6, target)
    few = draws(target, 3)
    values, vectors = torch.linalg.eigh(target)
    leading = few @ vectors[:, -3:]
    torch.testing.assert_close(leading.mT @ leading / 3, values[-3:].diag())


def test_the_effect_is_the_second_derivative_of_gradient_and_outputs():
    problem = quadratic()
    path, directions = start(problem)
    spread = covariance(3)
    features = directions.features(path.params)
    effect, alone = (
        noise_correction(feedback, Surroundings(path, directions, features, spread), size=1.0, step=0)
        for feedback in (NoiseFeedback(n_draws=3), NoiseFeedback(n_draws=3, outputs=False))
    )
    in_weights = directions.rows.mT @ spread @ directions.rows

    def loss(w):
        return problem.criterion.mean(problem.forward({"w": w}, problem.x_train), problem.y_train)

    third = jacrev(jacrev(grad(loss)))(path.params["w"])
    expected = torch.einsum("abc,bc->a", third, in_weights) / 2
    torch.testing.assert_close(alone.gradient["w"], expected, rtol=1e-8, atol=1e-10)
    assert alone.outputs is None
    x = torch.cat([problem.x_train, problem.x_test])
    ito = torch.einsum("ma,ab,mb->m", x, in_weights, x)[:, None]
    torch.testing.assert_close(effect.outputs, ito, rtol=1e-8, atol=1e-10)
    # What the displaced mean outputs already say of the gradient is not said twice.
    said = path.gradient(problem.criterion.curvature * ito[: problem.n_train])
    torch.testing.assert_close(effect.gradient["w"] + said["w"], expected, rtol=1e-8, atol=1e-10)


def test_networks_are_evaluated_some_at_a_time(monkeypatch):
    """However many pairs there are and are held at once, with and without draws beyond the directions."""
    problem = network()
    path, directions = start(problem)
    features, spread = directions.features(path.params), covariance(len(directions))
    generator = torch.Generator().manual_seed(4)
    rows = 0.1 * torch.randn(5, directions.rows.shape[1], generator=generator, dtype=torch.float64)
    moves = directions.features_along(path.params, rows, with_test=False).train.mT
    around = Surroundings(path, directions, features, spread, DrawnTail(rows, moves))
    deltas, linear = around.draws(5)
    x = torch.cat([problem.x_train, problem.x_test])
    outputs, gradients = [], []
    for i in range(5):
        for sign in (1, -1):
            at = {name: value + sign * deltas[name][i] for name, value in path.params.items()}
            outputs.append(problem.forward(at, x))
            gradients.append(MeanPath.gradient(replace(path, params=at)))
        delta = {name: value[i] for name, value in deltas.items()}
        slope = jvp(lambda params: problem.forward(params, problem.x_train), (path.params,), (delta,))[1]
        torch.testing.assert_close(linear[i], slope.flatten())
    ito = torch.stack(outputs).mean(0) - path.outputs(0)
    plain = path.outputs(0)[: problem.n_train] + ito[: problem.n_train]
    said = [
        path.gradient(problem.criterion.gradient(plain + sign * one.view_as(plain), problem.y_train))
        for one in linear
        for sign in (1, -1)
    ]
    for at_once in (16, 5, 2):
        monkeypatch.setattr(noise_induced_drift, "NETWORKS_AT_ONCE", at_once)
        effect = noise_correction(NoiseFeedback(n_draws=5), around, size=0.2, step=0)
        torch.testing.assert_close(effect.outputs, ito, rtol=1e-8, atol=1e-11)
        for name, value in effect.gradient.items():
            mean = torch.stack([one[name] - other[name] for one, other in zip(gradients, said)]).mean(0)
            torch.testing.assert_close(value, mean, rtol=1e-8, atol=1e-11)
        assert effect.share(0.05) == 0.25
        assert NoiseCorrection().share(0.5) == 0.0
        for name, value in effect.weighted(0.3).items():
            torch.testing.assert_close(value, 0.3 * effect.gradient[name])


@pytest.mark.parametrize("n_directions", [32, 3])
def test_features_are_averaged_along_the_directions_that_fluctuate_most(n_directions, monkeypatch):
    """Mean of J(w + delta) V and J(w - delta) V over some of the draws less J V, projected; train and test."""
    monkeypatch.setattr(noise_induced_drift, "KERNEL_DIRECTIONS", n_directions)
    problem = network()
    path, directions = start(problem)
    features, spread = directions.features(path.params), covariance(len(directions))
    around = Surroundings(path, directions, features, spread)
    effect = noise_correction(NoiseFeedback(n_draws=4, n_kernel_draws=3), around, size=1.0, step=0)
    deltas, _ = around.draws(4)
    leading = torch.linalg.eigh(spread).eigenvectors[:, -n_directions:]
    projection = leading @ leading.mT
    for found, whole, side in (
        (effect.features.train, features.train, "train"),
        (effect.features.test, features.test, "test"),
    ):
        moved = []
        for i in range(3):
            for sign in (1, -1):
                at = {name: value + sign * deltas[name][i] for name, value in path.params.items()}
                moved.append(getattr(directions.features(at), side))
        expected = (torch.stack(moved).mean(0) - whole) @ projection
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11)
        assert found.abs().max() > 1e-4
    plus = features.plus(effect.features, 0.3)
    torch.testing.assert_close(plus.train, features.train + 0.3 * effect.features.train)
    torch.testing.assert_close(plus.test, features.test + 0.3 * effect.features.test)
    assert features.plus(Features(effect.features.train, None), 0.3).test is None
    assert Features(features.train, None).plus(effect.features, 0.3).test is None


def test_directions_are_orthonormal_however_ill_conditioned_what_spans_them_is():
    """Gradients over ten octaves of size and nearly parallel, and more of them than there are dimensions."""
    problem = network()
    path, directions = start(problem)
    d, r = problem.n_train * problem.n_outputs, len(directions)
    generator = torch.Generator().manual_seed(6)
    for count in (5, d + 6):
        cotangents = torch.randn(count, d, generator=generator, dtype=torch.float64)
        cotangents = cotangents[:1] + cotangents * torch.logspace(0, -5, count, dtype=torch.float64)[:, None]
        found = directions._spanning(path.params, cotangents)
        assert len(found) == min(count, r)
        torch.testing.assert_close(found.rows @ found.rows.mT, torch.eye(len(found)).double(), rtol=0, atol=1e-11)
        gradients = jacobian_of(problem, path).mT @ cotangents.mT
        left = gradients - found.rows.mT @ (found.rows @ gradients)
        assert left.norm() < 1e-7 * gradients.norm()


def jacobian_of(problem: sgdsde.Problem, path: MeanPath) -> torch.Tensor:
    """[n*c, p]."""
    parts = jacrev(lambda params: problem.forward(params, problem.x_train).flatten())(path.params)
    return torch.cat([part.flatten(1) for part in parts.values()], 1)


def test_what_lies_outside_of_the_directions():
    problem = network()
    path, _ = start(problem)
    directions, jacobian = leading_directions(problem, 4), jacobian_of(problem, path)
    projection = directions.rows.mT @ directions.rows
    assert len(directions) == 4
    u = torch.randn(3, len(jacobian), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = u @ jacobian
    torch.testing.assert_close(directions.outside(path.params, u), rows - rows @ projection)
    torch.testing.assert_close(directions.without(rows), rows - rows @ projection)
    torch.testing.assert_close(directions.trace(path.params), jacobian.square().sum().item())
    features = directions.features(path.params)
    torch.testing.assert_close(features.train, jacobian @ directions.rows.mT)
    torch.testing.assert_close(directions.test_features(path.params), features.test)
    assert directions.features(path.params, with_test=False).test is None


def test_a_linear_model_feels_nothing():
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    problem = sgdsde.Problem(nn.Linear(4, 2).double(), x, y, loss=nn.MSELoss())
    path, directions = start(problem)
    features = directions.features(path.params)
    feedback = NoiseFeedback(n_kernel_draws=2)
    around = Surroundings(path, directions, features, covariance(len(directions)))
    effect = noise_correction(feedback, around, size=1.0, step=0)
    assert max(float(value.abs().max()) for value in effect.gradient.values()) < 1e-13
    assert effect.outputs.abs().max() < 1e-13
    assert effect.features.train.abs().max() < 1e-13


def network() -> sgdsde.Problem:
    data = sgdsde.datasets.synthetic(8, 3, 5, 2, teacher="mlp", seed=3, dtype=torch.float64)
    model = sgdsde.networks.MLP(5, 6, 2, activation="tanh", generator=torch.Generator().manual_seed(1)).double()
    return sgdsde.Problem(model, **data.tensors(), loss=nn.MSELoss())


def test_directions_span_the_jacobian_and_follow_it():
    problem = network()
    path, directions = start(problem)
    identity = torch.eye(len(directions), dtype=torch.float64)
    torch.testing.assert_close(directions.rows @ directions.rows.mT, identity, atol=1e-12, rtol=0)
    features = directions.features(path.params)
    torch.testing.assert_close(features.train @ features.train.mT, sgdsde.empirical_ntk(problem.model, problem.x_train))
    moved = {name: value + 0.1 * torch.randn_like(value) for name, value in path.params.items()}
    turned = directions.turned(moved, directions.features(moved))
    found = turned.features(moved)
    kernel = sgdsde.empirical_ntk(problem.model, problem.x_train, params=moved)
    torch.testing.assert_close(found.train @ found.train.mT, kernel, rtol=1e-8, atol=1e-10)
    expected = torch.linalg.norm(kernel - features.train @ features.train.mT)
    distance = kernel_distance(found, features) * torch.linalg.norm(features.train @ features.train.mT)
    torch.testing.assert_close(distance, expected, rtol=1e-8, atol=0)
    overlap = turned.overlap(directions)
    assert overlap.square().sum() < len(directions) - 1e-6, "it has turned"
    torch.testing.assert_close(overlap, overlap.mT, rtol=0, atol=1e-10)
    assert torch.linalg.eigvalsh(overlap).min() > 0, "the smallest turn: no rotation within the span"


def test_weights_of_coordinates_move_the_outputs_by_the_features():
    problem = network()
    path, directions = start(problem)
    coordinates = torch.randn(1, len(directions), dtype=torch.float64)
    weights = {name: value[0] for name, value in directions.by_parameter(directions.rows_of(coordinates)).items()}
    slope = jvp(lambda params: problem.forward(params, problem.x_test), (path.params,), (weights,))[1]
    torch.testing.assert_close(directions.features(path.params).test @ coordinates[0], slope.flatten())


@pytest.mark.parametrize("words", [{}, {"momentum": 0.7}, {"sampling": "shuffled"}, {"weight_decay": 0.05}], ids=str)
def test_a_linear_model_under_cross_entropy_gives_the_gaussian_closure(words):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(13, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (13,), generator=generator)
    problem = sgdsde.Problem(
        nn.Linear(6, 3).double(), x[:9], y[:9], loss=nn.CrossEntropyLoss(), x_test=x[9:], y_test=y[9:]
    )
    linearization, sgd = sgdsde.linearize(problem), sgdsde.SGD(0.2, 3, **words)
    closure = sgdsde.predict(linearization, sgd, 8, dynamics=GaussianClosure())
    moving = sgdsde.predict(linearization, sgd, 8, dynamics=MovingKernel(epoch_starts=0))
    torch.testing.assert_close(moving.train_loss.mean, closure.train_loss.mean, rtol=1e-9, atol=0)
    torch.testing.assert_close(moving.test_loss.mean, closure.test_loss.mean, rtol=1e-9, atol=0)


def test_networks_without_vectorized_derivatives_give_the_same():
    """A recurrent network, which torch cannot vectorize, and the same by hand; draws among equal directions differ."""
    generator = torch.Generator().manual_seed(4)
    layer = nn.RNN(2, 3, batch_first=True).double()
    readout = nn.Linear(3, 1).double()

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.readout = layer, readout

        def forward(self, x):
            return self.readout(self.layer(x)[0][:, -1])

    def by_hand(params, x):
        state = x.new_zeros(len(x), 3)
        for t in range(x.shape[1]):
            state = torch.tanh(
                x[:, t] @ params["layer.weight_ih_l0"].mT
                + params["layer.bias_ih_l0"]
                + state @ params["layer.weight_hh_l0"].mT
                + params["layer.bias_hh_l0"]
            )
        return state @ params["readout.weight"].mT + params["readout.bias"]

    x = torch.randn(6, 3, 2, generator=generator, dtype=torch.float64)
    y = torch.randn(6, 1, generator=generator, dtype=torch.float64)
    model = Recurrent()
    plain = {name: value.detach() for name, value in model.named_parameters()}
    found = [
        sgdsde.predict(
            sgdsde.Problem(each, x, y, loss=nn.MSELoss()), sgdsde.SGD(0.03, 2), 5, dynamics=MovingKernel()
        ).train_loss.mean
        for each in (model, (by_hand, plain))
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=0)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="n_draws must be"):
        NoiseFeedback(n_draws=0)
    with pytest.raises(ValueError, match="epoch_starts"):
        MovingKernel(epoch_starts=-1)
