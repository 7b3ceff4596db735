"""Claim: SVAG is Euler's scheme of the SDE with l substeps, and a noisy full gradient has SGD's first two moments.

No sampling: every batch is drawn once with its probability, and every normal number is replaced by both signs.
"""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor, nn

import sgdsde
from sgdsde.dynamics import EulerMaruyama, MomentRecursion
from sgdsde.ensemble.batches import Batches
from sgdsde.ensemble.linearized import LinearizedLearner
from sgdsde.ensemble.real import RealLearner
from sgdsde.ensemble.variants import SVAG, Draw, NoisyGradient
from sgdsde.sampling import block_batches
from tests.catalogue import CASES as CATALOGUE
from tests.laws.test_euler_at_one_step_is_sgd import exact_moments
from tests.oracles import every_batch
from tests.problems import BY_NAME, classification_problem, mlp_problem

CASES = ("one output, null space", "two outputs, duplicated input")
SAMPLINGS = ("with_replacement", "without_replacement")


class Prepared:
    """Streams that hand out given batches or numbers, one tensor a call."""

    device, dtype = torch.device("cpu"), torch.float64

    def __init__(self, batches: dict[str, list[Tensor]] | None = None, numbers: Tensor | None = None) -> None:
        self._batches, self._numbers = batches or {}, numbers
        count = len(numbers) if numbers is not None else len(self._batches["batches"][0])
        self.runs = range(count)

    def batches(self, plan: object, purpose: str = "batches") -> object:
        return iter(self._batches[purpose])

    def normal(self, purpose: str) -> object:
        return lambda *shape: self._numbers


def batches_of(draw: Draw) -> Batches:
    return Batches(draw.indices[None], None if draw.weights is None else draw.weights[None])


def stepped(learner: LinearizedLearner, draws: list[Draw], chances: Tensor, lr: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of all outputs after these draws, run r with probability chances[r]."""
    state = learner.start(len(chances))["outputs"]
    for draw in draws:
        gradient, _ = learner.gradient({"outputs": state}, batches_of(draw))
        state = state - lr * gradient["outputs"]
    mean = torch.einsum("r,rxc->xc", chances, state)
    deviation = (state - mean).flatten(1)
    return mean, deviation.mT @ (deviation * chances[:, None])


def svag_moments(case: str, sgd: sgdsde.SGD, l: int) -> tuple[Tensor, Tensor]:  # noqa: E741
    """After one step of SGD, over every sequence of 2 l batches."""
    linearization = sgdsde.linearize(BY_NAME[case].problem())
    weighted = every_batch(4, sgd.batch_size_at(0), sgd.sampling)
    sequences = list(itertools.product(weighted, repeat=2 * l))
    chances = torch.tensor([math.prod(p for _, p in sequence) for sequence in sequences], dtype=torch.float64)
    batches = torch.tensor([[batch for batch, _ in sequence] for sequence in sequences])
    streams = Prepared(
        {"batches": list(batches[:, :l].unbind(1)), "second batches of SVAG": list(batches[:, l:].unbind(1))}
    )
    variant = SVAG(l)
    plan = variant.refined(sgd.plan(4, 1))
    draws = list(variant.draws(plan, streams))
    assert len(draws) == len(plan) == l
    assert float(plan.lr.sum()) == pytest.approx(sgd.lr_at(0), rel=1e-15)
    return stepped(LinearizedLearner(linearization), draws, chances, float(plan.lr[0]))


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(("case", "l", "batch_size"), [(CASES[0], 2, 2), (CASES[1], 2, 1), (CASES[0], 3, 1)])
def test_svag_has_the_moments_of_euler_with_l_substeps(case: str, l: int, batch_size: int, sampling: str) -> None:  # noqa: E741
    sgd = sgdsde.SGD(0.3, batch_size, sampling=sampling)
    mean, covariance = svag_moments(case, sgd, l)
    linearization = sgdsde.linearize(BY_NAME[case].problem())
    expected = exact_moments(linearization, sgd, 1, EulerMaruyama(substeps=l))
    torch.testing.assert_close(mean, expected[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(covariance, expected[1], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("change", [{"batch_size": 1}, {"lr": 0.15}])
def test_other_settings_are_not_met(change: dict) -> None:
    _, covariance = svag_moments(CASES[0], sgdsde.SGD(0.3, 2), 2)
    linearization = sgdsde.linearize(BY_NAME[CASES[0]].problem())
    for substeps, sgd in ((2, sgdsde.SGD(**{"lr": 0.3, "batch_size": 2} | change)), (1, sgdsde.SGD(0.3, 2))):
        _, other = exact_moments(linearization, sgd, 1, EulerMaruyama(substeps=substeps))
        assert float((covariance - other).norm()) > 0.02 * float(other.norm())


def weights_of_all_signs(sgd: sgdsde.SGD, n: int) -> Draw:
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=n)), dtype=torch.float64)
    (draw,) = NoisyGradient().draws(sgd.plan(n, 1), Prepared(numbers=signs))
    return draw


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
@pytest.mark.parametrize("case", CASES)
def test_a_noisy_step_of_the_linearized_model_has_sgds_moments(case: str, batch_size: int, sampling: str) -> None:
    linearization = sgdsde.linearize(BY_NAME[case].problem())
    sgd = sgdsde.SGD(0.3, batch_size, sampling=sampling)
    draw = weights_of_all_signs(sgd, 4) if sgd.plan(4, 1).noise_factor(0) else Draw(torch.arange(4).expand(16, 4))
    mean, covariance = stepped(LinearizedLearner(linearization), [draw], torch.full((16,), 1 / 16).double(), 0.3)
    (law,) = MomentRecursion().evolve(linearization, sgd, [1])
    size = law.mean.numel()
    torch.testing.assert_close(mean, torch.cat([law.mean, law.test_mean]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(covariance[:size, :size], law.covariance.to_dense(), rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(covariance[size:, size:], law.test_covariance.to_dense(), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("build", [mlp_problem, classification_problem])
def test_a_noisy_gradient_of_a_network_has_the_covariance_of_a_batchs(build: object, sampling: str) -> None:
    """(phi/B) Sigma, Sigma from one backward pass an example."""
    problem, batch_size = build(), 3
    n = problem.n_train
    draw = weights_of_all_signs(sgdsde.SGD(0.1, batch_size, sampling=sampling), n)
    learner = RealLearner(problem)
    gradients, _ = learner.gradient(learner.start(2**n), batches_of(draw))
    found = torch.cat([value.flatten(1) for value in gradients.values()], dim=1)
    each = []
    for i in range(n):
        leaves = {name: value.clone().requires_grad_() for name, value in problem.params.items()}
        loss = problem.loss(problem.forward(leaves, problem.x_train[i : i + 1]), problem.y_train[i : i + 1])
        each.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(leaves.values()))]))
    single = torch.stack(each)
    phi = 1.0 if sampling == "with_replacement" else (n - batch_size) / (n - 1)
    sigma = torch.cov(single.mT, correction=0)
    torch.testing.assert_close(found.mean(0), single.mean(0), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.cov(found.mT, correction=0), phi / batch_size * sigma, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------- as runs of an ensemble


@pytest.mark.parametrize(
    "words", [{}, {"sampling": "without_replacement", "weight_decay": 0.1}, {"label_noise_std": 0.3}]
)
@pytest.mark.parametrize("linearized", [False, True], ids=["real", "linearized"])
def test_svag_with_one_step_is_sgd_bit_for_bit(linearized: bool, words: dict) -> None:
    problem = mlp_problem()
    source = sgdsde.linearize(problem) if linearized else problem
    sgd = sgdsde.SGD(0.2, 3, **words)
    plain = sgdsde.run_ensemble(source, sgd, 3, 5, seed=1)
    svag = sgdsde.run_ensemble(source, sgd, 3, 5, seed=1, variant=SVAG(1))
    assert torch.equal(plain.train_loss.samples, svag.train_loss.samples)
    assert torch.equal(plain.test_loss.samples, svag.test_loss.samples)
    assert (plain.dynamics, svag.dynamics) == (plain.dynamics, f"{plain.dynamics}, SVAG(l=1)")


@pytest.mark.parametrize(
    "words", [{}, {"momentum": 0.7, "nesterov": True, "weight_decay": 0.1}, {"lr": lambda k: 0.2 / (k + 1)}]
)
@pytest.mark.parametrize("linearized", [False, True], ids=["real", "linearized"])
def test_a_noisy_gradient_without_noise_is_gradient_descent_bit_for_bit(linearized: bool, words: dict) -> None:
    problem = mlp_problem()
    source = sgdsde.linearize(problem) if linearized else problem
    sgd = sgdsde.SGD(**{"lr": 0.2, "batch_size": 7, "sampling": "without_replacement"} | words)
    plain = sgdsde.run_ensemble(source, sgd, 4, 3)
    noisy = sgdsde.run_ensemble(source, sgd, 4, 3, variant=NoisyGradient())
    assert torch.equal(plain.train_loss.samples, noisy.train_loss.samples)


@pytest.mark.parametrize("variant", [SVAG(3), NoisyGradient()], ids=["svag", "noisy"])
def test_on_a_linear_model_a_variant_is_that_of_the_linearization(variant: object) -> None:
    problem = BY_NAME["two outputs, null space"].problem()
    sgd = sgdsde.SGD(0.2, 2, weight_decay=0.1)
    real = sgdsde.run_ensemble(problem, sgd, 5, 3, variant=variant)
    linear = sgdsde.run_ensemble(sgdsde.linearize(problem), sgd, 5, 3, variant=variant)
    torch.testing.assert_close(real.train_loss.samples, linear.train_loss.samples, rtol=1e-10, atol=0)
    torch.testing.assert_close(real.test_loss.samples, linear.test_loss.samples, rtol=1e-10, atol=0)
    assert real.times.tolist() == pytest.approx([0.2 * k for k in real.steps.tolist()])


def test_svag_of_whole_batches_is_descent_in_smaller_steps() -> None:
    problem = mlp_problem()
    whole = sgdsde.SGD(0.2, 7, sampling="without_replacement", weight_decay=0.1)
    svag = sgdsde.run_ensemble(problem, whole, 3, 2, variant=SVAG(4), record=range(4))
    small = sgdsde.SGD(0.05, 7, sampling="without_replacement", weight_decay=0.1)
    finer = sgdsde.run_ensemble(problem, small, 12, 2, record=[0, 4, 8, 12])
    torch.testing.assert_close(svag.train_loss.samples, finer.train_loss.samples, rtol=1e-12, atol=0)
    assert svag.steps.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["conv2d", "lstm", "own backward pass"])
def test_svag_of_any_network_is_a_torch_loop(name: str) -> None:
    case = CATALOGUE[name]
    model, x = case.model(), case.inputs(4)
    with torch.no_grad():
        y = torch.zeros_like(model(x))
    problem, sgd = sgdsde.Problem(model, x, y, loss=nn.MSELoss()), sgdsde.SGD(1e-2, 3, weight_decay=0.1)
    measured = sgdsde.run_ensemble(problem, sgd, 2, 2, seed=5, variant=SVAG(3), observe=("outputs",), record=[2])
    plan = SVAG(3).refined(sgd.plan(4, 2))
    first, second = (
        [torch.from_numpy(rows[1]) for rows in block_batches(plan, 5, 0, purpose=purpose)]
        for purpose in ("batches", "second batches of SVAG")
    )
    trained = copy.deepcopy(model)
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-2 / 3, weight_decay=0.1)
    for one, two in zip(first, second):
        losses = [nn.functional.mse_loss(trained(x[rows]), y[rows]) for rows in (one, two)]
        optimizer.zero_grad()
        ((1 + math.sqrt(5)) / 2 * losses[0] + (1 - math.sqrt(5)) / 2 * losses[1]).backward()
        optimizer.step()
    with torch.no_grad():
        torch.testing.assert_close(measured.train_outputs.samples[1, 0], trained(x), rtol=1e-9, atol=1e-12)


MESSAGES = [
    (
        SVAG(2),
        {"momentum": 0.9},
        "cannot represent momentum=0.9; use momentum=0, or dynamics.MomentEquations for its SDE",
    ),
    (SVAG(2), {"sampling": "shuffled"}, "cannot represent sampling='shuffled', whose batches are not independent"),
    (NoisyGradient(), {"sampling": "shuffled"}, "cannot represent sampling='shuffled', whose steps are dependent"),
    (NoisyGradient(), {"label_noise_std": 0.5}, "cannot represent label_noise_std=0.5"),
]


@pytest.mark.parametrize(("variant", "words", "message"), MESSAGES, ids=[str(i) for i in range(4)])
def test_what_is_not_defined_is_refused(variant: object, words: dict, message: str) -> None:
    with pytest.raises(ValueError, match="cannot represent") as error:
        sgdsde.run_ensemble(mlp_problem(), sgdsde.SGD(0.1, 2, **words), 1, 1, variant=variant)
    assert message in str(error.value)
    assert str(error.value).startswith(repr(variant))


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="l must be at least 1, got 0"):
        SVAG(0)
    with pytest.raises(ValueError, match=r"l must be a whole number, got 1\.5"):
        SVAG(1.5)
    with pytest.raises(
        TypeError, match=r"variant must be SVAG, NoisyGradient or None, got 'svag'; use sgdsde.SVAG\(l=4\)"
    ):
        sgdsde.run_ensemble(mlp_problem(), sgdsde.SGD(0.1, 2), 1, 1, variant="svag")
    with pytest.raises(TypeError, match="variant must be SVAG"):
        sgdsde.run_ensemble(mlp_problem(), sgdsde.SGD(0.1, 2), 1, 1, variant=SVAG)
