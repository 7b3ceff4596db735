"""Any torch loss that is a mean over examples: values, derivatives, labels, and what is refused by name."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde.losses import CrossEntropy, SquaredError, TorchLoss, as_loss, examine
from tests.oracles import torch_run
from tests.problems import seeded_module

GENERATOR = torch.Generator().manual_seed(0)
N, C = 6, 3
OUTPUTS = torch.randn(N, C, generator=GENERATOR, dtype=torch.float64)
REAL = torch.randn(N, C, generator=GENERATOR, dtype=torch.float64)
BITS = (REAL > 0).double()
SIGNS = 2 * BITS - 1
SHARES = REAL.softmax(1)
LABELS = torch.tensor([0, 2, 1, 1, 0, 2])


def cosine(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (1 - nn.functional.cosine_similarity(outputs, targets)).mean()


class FocalLoss(nn.Module):
    """A loss of somebody's own, with a buffer in single precision."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("power", torch.tensor(2.0))

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        chance = outputs.log_softmax(1).gather(1, targets[:, None])[:, 0]
        return (-((1 - chance.exp()) ** self.power) * chance).mean()


SMOOTH = {
    "logistic": (nn.BCEWithLogitsLoss(), BITS),
    "logistic, weights of classes": (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 0.5])), BITS),
    "logistic, weights of outputs": (nn.BCEWithLogitsLoss(weight=torch.tensor([1.0, 2.0, 0.5])), BITS),
    "huber": (nn.HuberLoss(delta=0.7), REAL),
    "smooth l1": (nn.SmoothL1Loss(beta=0.4), REAL),
    "poisson": (nn.PoissonNLLLoss(full=True), 5 * SHARES),
    "soft margin": (nn.SoftMarginLoss(), SIGNS),
    "multi-label soft margin": (nn.MultiLabelSoftMarginLoss(), BITS),
    "kl divergence": (nn.KLDivLoss(reduction="batchmean"), SHARES),
    "kl divergence, mean of all": (nn.KLDivLoss(log_target=True), SHARES.log()),
    "negative log-likelihood": (nn.NLLLoss(), LABELS),
    "own module": (FocalLoss(), LABELS),
    "own function": (cosine, REAL),
    "logistic as a function": (nn.functional.binary_cross_entropy_with_logits, BITS),
}
KINKED = {
    "absolute": (nn.L1Loss(), REAL),
    "smooth l1 of width 0": (nn.SmoothL1Loss(beta=0.0), REAL),
    "hinge embedding": (nn.HingeEmbeddingLoss(), SIGNS),
    "multi-margin": (nn.MultiMarginLoss(), LABELS),
    "multi-label margin": (nn.MultiLabelMarginLoss(), torch.tensor([[0, -1, -1], [1, 2, -1]] * 3)),
    "own hinge": (lambda f, y: (1 - f * y).clamp_min(0).mean(), SIGNS),
    "own dead zone": (lambda f, y: ((f - y).abs() - 0.3).clamp_min(0).mean(), REAL),
    "own norm": (lambda f, y: (f - y).norm(dim=1).mean(), REAL),
}
quiet = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")


def examined(loss: object, targets: torch.Tensor, outputs: torch.Tensor = OUTPUTS) -> TorchLoss:
    criterion = as_loss(loss, C)
    assert isinstance(criterion, TorchLoss)
    return examine(criterion, outputs[:2], criterion.check_targets("y", targets, outputs), None)


@quiet
@pytest.mark.parametrize("name", SMOOTH)
def test_value_and_derivatives_are_autograds_example_by_example(name: str) -> None:
    loss, targets = SMOOTH[name]
    criterion = examined(loss, targets)
    assert criterion.kink == ""
    own = loss.double() if isinstance(loss, nn.Module) else loss
    torch.testing.assert_close(criterion.mean(OUTPUTS, targets), own(OUTPUTS, targets), rtol=1e-13, atol=0)
    for i in range(N):

        def alone(output: torch.Tensor, i: int = i) -> torch.Tensor:
            return own(output[None], targets[i : i + 1])

        gradient = torch.autograd.functional.jacobian(alone, OUTPUTS[i])
        hessian = torch.autograd.functional.hessian(alone, OUTPUTS[i])
        assert float(criterion.per_example(OUTPUTS, targets)[i]) == pytest.approx(float(alone(OUTPUTS[i])), rel=1e-12)
        torch.testing.assert_close(criterion.gradient(OUTPUTS, targets)[i], gradient, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(criterion.hessian(OUTPUTS, targets)[i], hessian, rtol=1e-10, atol=1e-13)


@quiet
@pytest.mark.parametrize("name", ["logistic", "kl divergence", "own module", "multi-margin"])
def test_leading_dimensions_are_runs(name: str) -> None:
    loss, targets = (SMOOTH | KINKED)[name]
    criterion = examined(loss, targets)
    runs = torch.stack([OUTPUTS, 2 * OUTPUTS, -OUTPUTS])
    for function in (criterion.mean, criterion.gradient, criterion.per_example):
        torch.testing.assert_close(function(runs, targets), torch.stack([function(f, targets) for f in runs]))


@pytest.mark.parametrize(("criterion", "targets"), [
    (SquaredError(0.5), REAL),
    (CrossEntropy(), LABELS),
    (CrossEntropy(0.3), SHARES),
], ids=["squared error", "cross-entropy", "smoothed cross-entropy"])  # fmt: skip
def test_hessian_in_closed_form_is_autograds(criterion: object, targets: torch.Tensor) -> None:
    def gradient(outputs: torch.Tensor) -> torch.Tensor:
        return criterion.gradient(outputs, targets)

    full = torch.autograd.functional.jacobian(gradient, OUTPUTS)
    own = torch.stack([full[i, :, i] for i in range(N)])
    torch.testing.assert_close(criterion.hessian(OUTPUTS, targets), own, rtol=1e-12, atol=1e-15)
    assert criterion.hessian(torch.stack([OUTPUTS, OUTPUTS]), targets).shape == (2, N, C, C)


@pytest.mark.parametrize("name", KINKED)
def test_a_loss_without_second_derivative_is_named(name: str) -> None:
    loss, targets = KINKED[name]
    criterion = examined(loss, targets)
    words = "torch does not have" if "margin" in name else "gradient jumps by"
    assert words in criterion.kink
    with pytest.raises(
        ValueError, match=r"loss must be twice differentiable.*got .*, whose .*; use dynamics\.LinearizedSGD"
    ):
        criterion.hessian(OUTPUTS, targets)
    assert torch.isfinite(criterion.gradient(OUTPUTS, targets)).all()


def test_a_jump_of_the_second_derivative_is_no_kink() -> None:
    def dead_zone_squared(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return ((outputs - targets).abs() - 0.3).clamp_min(0).square().mean()

    assert examined(dead_zone_squared, REAL).kink == ""
    assert examined(lambda f, y: (f - y).abs().pow(1.5).mean(), REAL).kink == "", "unbounded, but no jump"
    soft = examined(lambda f, y: nn.functional.softplus(20 * (1 - f * y)).mean() / 20, SIGNS[:, :1], OUTPUTS[:, :1])
    assert soft.kink == "", "torch's softplus becomes linear beyond 20"


def drifting(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    drifting.calls += 1
    return ((outputs - targets) ** 2).mean() * (1 + drifting.calls)


drifting.calls = 0
learned = nn.Module()
learned.register_parameter("scale", nn.Parameter(torch.ones(1)))
REFUSED = {
    "a sum": (nn.HuberLoss(reduction="sum"), REAL, "loss.reduction must be 'mean', got 'sum'"),
    "a sum of squares": (lambda f, y: ((f - y) ** 2).sum(), REAL, "mean of its values on the single examples"),
    "class weights": (nn.NLLLoss(weight=torch.ones(C)), LABELS, "loss.weight must be None"),
    "an ignored class": (nn.NLLLoss(ignore_index=1), LABELS, "loss.ignore_index must be unused, got 1"),
    "own class weights": (
        lambda f, y: nn.functional.cross_entropy(f, y, weight=torch.tensor([1.0, 2.0, 3.0]).to(f)),
        LABELS,
        "weights of classes or batches, ignored targets",
    ),
    "an own mask": (
        lambda f, y: (((f - y) ** 2).mean(1) * (y[:, 0] > 0)).sum() / (y[:, 0] > 0).sum().clamp_min(1),
        REAL,
        "mean of its values on the single examples",
    ),
    "weights of the batch": (
        nn.BCEWithLogitsLoss(weight=torch.arange(1.0, N + 1)[:, None]),
        BITS,
        "mean of its values on the single examples",
    ),
    "coupled examples": (
        lambda f, y: ((f - y) ** 2).mean() + (f - f.mean(0)).square().mean(),
        REAL,
        "terms that couple examples",
    ),
    "one value an example": (lambda f, y: ((f - y) ** 2).mean(1), REAL, "got a tensor [6] from <lambda>"),
    "a float": (lambda f, y: 1.0, REAL, "got float from <lambda>; return a tensor"),
    "three arguments": (
        nn.GaussianNLLLoss(),
        REAL,
        "GaussianNLLLoss, which fails on outputs [6, 3] and y_train [6, 3]",
    ),
    "a logarithm below zero": (lambda f, y: (f - 100).log().mean(), REAL, "loss must be finite at the initial outputs"),
    "its own count": (drifting, REAL, "deterministic, got drifting with two values"),
    "a branch on the data": (
        lambda f, y: (f - y).square().mean() if (f > y).any() else 2 * (f - y).square().mean(),
        REAL,
        "computable for one example at a time by torch.func.vmap",
    ),
    "no gradient": (lambda f, y: (f.detach() - y).square().mean(), REAL, "of zero gradient; remove detach()"),
    "parameters of its own": (learned, REAL, "without parameters of its own to train, got scale"),
    "the class": (nn.HuberLoss, REAL, "got the class HuberLoss; create the module, nn.HuberLoss()"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_mean_over_examples_is_refused_by_name(name: str) -> None:
    loss, targets, message = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        examined(loss, targets)


def test_a_network_that_starts_at_zero_hides_no_coupling() -> None:
    model = nn.Linear(4, C)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    with pytest.raises(ValueError, match="terms that couple examples"):
        sgdsde.Problem(model, torch.ones(N, 4), REAL.float(), loss=REFUSED["coupled examples"][0])


def test_an_ignored_target_is_found_wherever_it_stands() -> None:
    def ignoring(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, targets, ignore_index=2)

    labels = torch.zeros(500, dtype=torch.int64)
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(1))
    assert sgdsde.Problem(nn.Linear(4, C), x, labels, loss=ignoring).criterion.name == "ignoring"
    labels[467] = 2
    with pytest.raises(ValueError, match=r"single examples, got ignoring, .* on y_train where"):
        sgdsde.Problem(nn.Linear(4, C), x, labels, loss=ignoring)
    with pytest.raises(ValueError, match=r"single examples, got ignoring, .* on y_test where"):
        sgdsde.Problem(nn.Linear(4, C), x[:9], labels[:9], loss=ignoring, x_test=x, y_test=labels)


@pytest.mark.parametrize("loss", [nn.L1Loss(), nn.HuberLoss(), nn.BCEWithLogitsLoss()], ids=["l1", "huber", "logistic"])
def test_targets_that_torch_would_broadcast_are_refused(loss: nn.Module) -> None:
    x, y = torch.ones(5, 2), torch.ones(5)
    with pytest.raises(ValueError, match=r"y_train must be \[5, 1\].*got \[5\]; use y_train\[:, None\]"):
        sgdsde.Problem(nn.Linear(2, 1), x, y, loss=loss)


def test_integers_where_torch_wants_numbers_are_refused() -> None:
    x, y = torch.ones(5, 2), torch.ones(5, 1, dtype=torch.int64)
    with pytest.raises(
        TypeError, match=r"y_train must be floating-point under BCEWithLogitsLoss, got torch\.int64; conv"
    ):
        sgdsde.Problem(nn.Linear(2, 1), x, y, loss=nn.BCEWithLogitsLoss())


@pytest.mark.parametrize(
    ("loss", "wrong"),
    [
        (nn.BCEWithLogitsLoss(), -1.0),
        (nn.BCEWithLogitsLoss(), 1.5),
        (nn.functional.binary_cross_entropy_with_logits, -1.0),
        (nn.PoissonNLLLoss(), -0.5),
    ],
    ids=["signs", "beyond one", "function", "negative count"],
)
def test_targets_that_leave_a_loss_without_a_minimum_are_refused(loss: Any, wrong: float) -> None:
    x, y = torch.ones(5, 2), torch.tensor([0.0, 1.0, 0.5, 0.0, 1.0])[:, None]
    far = 50.0 if wrong > 1 else -1e6
    assert loss(torch.full((1, 1), far), torch.full((1, 1), wrong)) < -10  # and on, the farther the lower
    sgdsde.Problem(nn.Linear(2, 1), x, y, loss=loss)
    y[3] = wrong
    with pytest.raises(ValueError, match=rf"y_train must be in \[0, .*bounded below, got {wrong:g}"):
        sgdsde.Problem(nn.Linear(2, 1), x, y, loss=loss)


def small_problem(loss: object, targets: torch.Tensor, *, dtype: torch.dtype = torch.float64) -> sgdsde.Problem:
    last = [nn.LogSoftmax(1)] if isinstance(loss, nn.KLDivLoss | nn.NLLLoss) else []
    model = seeded_module(lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, C), *last), 1).to(dtype)
    x = torch.randn(N, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    y = targets.to(dtype) if targets.is_floating_point() else targets
    return sgdsde.Problem(model, x, y, loss=loss, x_test=x[:2], y_test=y[:2])


@quiet
@pytest.mark.parametrize(
    "name", ["logistic", "kl divergence", "own module", "own function", "absolute", "multi-margin"]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
def test_an_ensemble_is_the_torch_loop(name: str, dtype: torch.dtype) -> None:
    problem, sgd = small_problem(*(SMOOTH | KINKED)[name], dtype=dtype), sgdsde.SGD(0.3, 2, momentum=0.5)
    measured = sgdsde.run_ensemble(problem, sgd, 5, 3, seed=2, record=range(6), observe=("outputs",))
    for run in range(3):
        outputs, _ = torch_run(problem, sgd, 5, seed=2, run=run)
        rtol = 1e-9 if dtype == torch.float64 else 1e-4
        torch.testing.assert_close(measured.train_outputs.samples[run], outputs.double(), rtol=rtol, atol=rtol)


@quiet
def test_paths_and_descent_take_any_loss() -> None:
    for name in ("logistic", "own module", "multi-margin", "own dead zone"):
        loss, targets = (SMOOTH | KINKED)[name]
        linearization = sgdsde.linearize(small_problem(loss, targets))
        full = sgdsde.SGD(0.2, N, sampling="without_replacement")
        descent = sgdsde.predict(linearization, full, 4, dynamics=sgdsde.dynamics.GradientDescent())
        paths = sgdsde.predict(linearization, full, 4, dynamics=sgdsde.dynamics.SDEPaths(n_paths=2))
        torch.testing.assert_close(paths.train_loss.mean, descent.train_loss.mean, msg=name)
        runs = sgdsde.run_ensemble(linearization, full, 4, 1)
        torch.testing.assert_close(runs.train_loss.mean, descent.train_loss.mean, msg=name)


def test_losses_of_one_name_have_digests_of_their_own() -> None:
    losses = [nn.HuberLoss(), nn.HuberLoss(delta=0.5), nn.SmoothL1Loss(beta=0.5), nn.MSELoss()]
    losses += [lambda f, y: (f - y).pow(4).mean(), lambda f, y: (f - y).pow(6).mean()]
    digests = [small_problem(loss, REAL).digest for loss in losses]
    assert len(set(digests)) == len(losses)
    assert digests == [small_problem(loss, REAL).digest for loss in losses], "the same in another problem"
    weights = [small_problem(nn.BCEWithLogitsLoss(pos_weight=w * torch.ones(C)), BITS).digest for w in (1.0, 2.0)]
    assert weights[0] != weights[1]


def test_functions_of_torch_are_the_losses_themselves() -> None:
    assert as_loss(nn.functional.mse_loss, 4) == SquaredError(0.5)
    assert as_loss(nn.functional.cross_entropy, 4) == CrossEntropy()


def test_probabilities_of_a_network_are_trained_but_not_linearized() -> None:
    model = seeded_module(lambda: nn.Sequential(nn.Linear(2, 1), nn.Sigmoid()), 2)
    x = 8 * torch.randn(6, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    problem = sgdsde.Problem(model, x, BITS[:, :1], loss=nn.BCELoss())
    assert torch.isfinite(sgdsde.run_ensemble(problem, sgdsde.SGD(1.0, 2), 5, 2).train_loss.mean).all()
    with pytest.raises(ValueError, match=r"defined for all outputs.*got BCELoss, which holds.*BCEWithLogitsLoss"):
        sgdsde.predict(problem, sgdsde.SGD(0.1, 2), 5)


@pytest.mark.parametrize("loss", [nn.L1Loss(), nn.SoftMarginLoss()], ids=str)
def test_a_loss_that_bends_only_far_from_the_outputs_is_not_taken_as_linear(loss):
    """All outputs on one side of all targets, for several initializations."""
    for seed in range(4):
        model = seeded_module(lambda: nn.Linear(2, 1), seed)
        x = torch.ones(4, 2, dtype=torch.float64)
        for target in (-1.0, 1.0):
            y = torch.full((4, 1), target, dtype=torch.float64)
            sgdsde.Problem(model, x, y, loss=loss)
