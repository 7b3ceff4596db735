"""What the noise adds to the mean, against derivatives; and the weight directions, against the Jacobian itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import grad, jacrev, jvp

import sgdsde
from sgdsde.dynamics import GaussianClosure, MovingKernel, NoiseFeedback
from sgdsde.dynamics.moving_kernel.initial_directions import InitialDirections
from sgdsde.dynamics.moving_kernel.mean_path import MeanPath
from sgdsde.dynamics.moving_kernel.noise_induced_drift import Surroundings, draws, noise_correction
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
