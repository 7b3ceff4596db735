"""Which outputs are right is the loss's to say; where none are, accuracy is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde.losses import as_loss, is_right


@pytest.mark.parametrize(("loss", "targets", "labels"), [
    (nn.BCEWithLogitsLoss(), [[0.0], [1.0], [1.0]], [-1.0, 1.0, 1.0]),
    (nn.SoftMarginLoss(), [[-1.0], [1.0], [1.0]], [-1.0, 1.0, 1.0]),
    (nn.MSELoss(), [[-1.0], [0.4], [2.0]], [-1.0, 1.0, 1.0]),
    (nn.BCEWithLogitsLoss(), [[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]], [1, 0, 1]),
    (nn.MSELoss(), [[0.0, 1.0], [0.6, -0.4], [0.0, 1.0]], [1, 0, 1]),
    (nn.CrossEntropyLoss(), [[0.1, 0.9], [1.0, 0.0], [0.2, 0.8]], [1, 0, 1]),
    (nn.KLDivLoss(reduction="batchmean"), [[0.1, 0.9], [1.0, 0.0], [0.2, 0.8]], [1, 0, 1]),
    (nn.MultiMarginLoss(), [1, 0, 1], [1, 0, 1]),
    (nn.CrossEntropyLoss(), [1, 0, 1], [1, 0, 1]),
], ids=["logistic", "soft margin", "squares", "logistic, one of two", "squares, one of two", "probabilities",
        "kl divergence", "multi-margin", "classes"])  # fmt: skip
def test_labels(loss: nn.Module, targets: list, labels: list) -> None:
    y = torch.tensor(targets)
    c = y.shape[1] if y.ndim > 1 else 2
    assert as_loss(loss, c).labels("y", y, c).tolist() == labels


@pytest.mark.parametrize(("loss", "targets", "message"), [
    (nn.MSELoss(), [[0.0], [1.0]], "y must be of a sign, -1 or 1, .*got 0 at example 0; code the classes as -1 and 1"),
    (nn.MSELoss(), [[1.0, 1.0], [1.0, 0.0]], r"rows with one largest entry.*row 0: \[1.0, 1.0\]"),
    (nn.HuberLoss(), [[1.0], [-1.0]], "a loss of classes.*got HuberLoss; leave \"accuracy\" out of observe"),
    (nn.PoissonNLLLoss(), [[1.0], [2.0]], "a loss of classes.*got PoissonNLLLoss"),
    (nn.BCEWithLogitsLoss(), [[0.5], [1.0]], "y must be 0 and 1 where accuracy is asked for"),
    (nn.BCEWithLogitsLoss(), [[1.0, 1.0], [1.0, 0.0]], "rows with one largest entry"),
    (nn.SoftMarginLoss(), [[0.0], [1.0]], "y must be -1 and 1 where accuracy is asked for"),
    (lambda f, y: (f * y).mean(), [[1.0], [-1.0]], "a loss of classes.*got <lambda>"),
], ids=["0 and 1 under squares", "tie", "huber", "poisson", "soft labels", "several labels", "0 and 1 under signs",
        "own"])  # fmt: skip
def test_accuracy_without_meaning_is_refused(loss: object, targets: list, message: str) -> None:
    y = torch.tensor(targets)
    with pytest.raises(ValueError, match=message):
        as_loss(loss, y.shape[1]).labels("y", y, y.shape[1])


def test_accuracy_under_logistic_loss_is_measured_and_predicted_on_the_right_side() -> None:
    rng = torch.Generator().manual_seed(5)
    x = torch.randn(12, 3, generator=rng, dtype=torch.float64)
    bits = (torch.rand(12, 1, generator=rng) > 0.5).double()
    problem = sgdsde.Problem(nn.Linear(3, 1).double(), x, bits, loss=nn.BCEWithLogitsLoss())
    words = {"record": (0, 5), "observe": ("accuracy", "outputs")}
    measured = sgdsde.run_ensemble(problem, sgdsde.SGD(0.5, 3), 5, 4, **words)
    expected = ((measured.train_outputs.samples > 0) == (bits > 0.5)).double().mean((2, 3))
    torch.testing.assert_close(measured.train_accuracy.samples, expected)
    predicted = sgdsde.predict(problem, sgdsde.SGD(0.5, 3), 5, dynamics=sgdsde.dynamics.GradientDescent(), **words)
    expected = ((predicted.train_outputs.mean > 0) == (bits > 0.5)).double().mean((1, 2))
    torch.testing.assert_close(predicted.train_accuracy.mean, expected)
    for ask in (sgdsde.predict, lambda *args, **kw: sgdsde.run_ensemble(*args, 2, **kw)):
        huber = sgdsde.Problem(nn.Linear(3, 1).double(), x, 2 * bits - 1, loss=nn.HuberLoss())
        with pytest.raises(ValueError, match="got HuberLoss"):
            ask(huber, sgdsde.SGD(0.1, 2), 1, observe=("accuracy",))
    assert not is_right(torch.tensor([[torch.nan]]), torch.tensor([1.0]))[0]
