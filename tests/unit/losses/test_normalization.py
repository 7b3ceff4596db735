"""Losses that hold for what a last layer guarantees: taken as what they mean, or refused with what to use."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sgdsde
from sgdsde.losses import TorchLoss

RNG = torch.Generator().manual_seed(0)
N, C = 24, 3
X = torch.randn(N, 4, generator=RNG, dtype=torch.float64)
LABELS = torch.randint(0, C, (N,), generator=RNG)
TOKENS = torch.randint(0, C, (N, 5), generator=RNG)
SHARES = torch.randn(N, C, generator=RNG, dtype=torch.float64).softmax(1)
BITS = (torch.randn(N, C, generator=RNG, dtype=torch.float64) > 0).double()
SGD = sgdsde.SGD(lr=0.5, batch_size=4)


class Log(nn.Module):
    """log_softmax of the classes of several tokens, flattened; the classes last or first."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        shape = (len(x), 5, C) if self.axis == 2 else (len(x), C, 5)
        return x.view(shape).log_softmax(self.axis).flatten(1)


def network(*last: nn.Module, width: int = C) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, width), *last).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def focal(outputs: Tensor, targets: Tensor) -> Tensor:
    chosen = outputs.gather(1, targets[:, None])[:, 0]
    return -((1 - chosen.exp()) ** 2 * chosen).mean()


def focal_of_logits(outputs: Tensor, targets: Tensor) -> Tensor:
    return focal(outputs.log_softmax(1), targets)


def tokens(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.nll_loss(outputs.view(-1, C), targets.flatten())


def pixels(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.nll_loss(outputs.view(len(outputs), C, -1), targets)


ENTROPY = float(-(SHARES * SHARES.log()).sum(1).mean())
SAME: dict[str, tuple[nn.Module, object, Tensor, nn.Module, object, float]] = {
    "nll": (nn.LogSoftmax(1), nn.NLLLoss(), LABELS, network(), nn.CrossEntropyLoss(), 0.0),
    "nll as a function": (nn.LogSoftmax(-1), F.nll_loss, LABELS, network(), nn.CrossEntropyLoss(), 0.0),
    "kl divergence": (
        nn.LogSoftmax(1),
        nn.KLDivLoss(reduction="batchmean"),
        SHARES,
        network(),
        nn.CrossEntropyLoss(),
        ENTROPY,
    ),
    "kl divergence of logarithms": (
        nn.LogSoftmax(1),
        nn.KLDivLoss(reduction="batchmean", log_target=True),
        SHARES.log(),
        network(),
        lambda f, y: F.kl_div(f.log_softmax(1), y, reduction="batchmean", log_target=True),
        0.0,
    ),
    "focal": (nn.LogSoftmax(1), focal, LABELS, network(), focal_of_logits, 0.0),
    "tokens": (
        Log(2),
        tokens,
        TOKENS,
        network(width=5 * C),
        lambda f, y: F.cross_entropy(f.view(-1, C), y.flatten()),
        0.0,
    ),
    "pixels": (
        Log(1),
        pixels,
        TOKENS,
        network(width=5 * C),
        lambda f, y: F.cross_entropy(f.view(len(f), C, -1), y),
        0.0,
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_a_loss_of_log_probabilities_is_the_loss_of_logits_that_it_trains(name: str) -> None:
    last, loss, y, logits, plain, offset = SAME[name]
    width = logits[-1].out_features
    made = sgdsde.Problem(network(last, width=width), X, y, loss=loss)
    other = sgdsde.Problem(logits, X, y, loss=plain)
    assert "as the loss of logits" in repr(made)
    assert "as the loss of logits" not in repr(other)
    for dynamics in (sgdsde.dynamics.GradientDescent(), sgdsde.dynamics.SDEPaths(n_paths=4)):
        found, right = (
            sgdsde.predict(sgdsde.linearize(p), SGD, 30, dynamics=dynamics).train_loss.mean + shift
            for p, shift in ((made, offset), (other, 0.0))
        )
        torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-11)
    found, right = (sgdsde.run_ensemble(p, SGD, 30, 2).train_loss.mean for p in (made, other))
    torch.testing.assert_close(found + offset, right, rtol=1e-9, atol=1e-11)
    if name == "focal":  # not convex: no quadratic stands for it
        return
    assert sgdsde.stability.max_lr(made, 4) == pytest.approx(sgdsde.stability.max_lr(other, 4), rel=1e-6)


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
def test_the_linear_loss_of_linearized_log_probabilities_has_no_bound() -> None:
    # Negative control: what the recognition is for.
    made = sgdsde.Problem(network(nn.LogSoftmax(1)), X, LABELS, loss=nn.NLLLoss())
    assert isinstance(made.criterion, TorchLoss)
    far = -50.0 * torch.ones(N, C, dtype=torch.float64)
    assert float(made.criterion.mean(-far, LABELS)) >= 0
    assert float(nn.NLLLoss()(-far, LABELS)) == -50


def test_outputs_that_are_log_probabilities_at_first_only_are_not_taken_for_them() -> None:
    class OnlyAtFirst(nn.Module):
        """Zero weights: log-probabilities of equal chances, and logits as soon as they move."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, C, dtype=torch.float64)
            nn.init.zeros_(self.layer.weight)
            nn.init.constant_(self.layer.bias, -float(torch.tensor(float(C)).log()))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    with pytest.raises(ValueError, match=r"got NLLLoss, linear in them; its outputs are no log-probabilities"):
        sgdsde.Problem(OnlyAtFirst(), X, LABELS, loss=nn.NLLLoss())


class Unit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1)


def alignment(outputs: Tensor, targets: Tensor) -> Tensor:
    return 2 - 2 * (outputs * targets).sum(1).mean()


REFUSED: dict[str, tuple[nn.Module, object, Tensor, str]] = {
    "logits under nll": (network(), nn.NLLLoss(), LABELS, "use nn.CrossEntropyLoss() on logits"),
    "chances under nll": (network(nn.Softmax(1)), nn.NLLLoss(), LABELS, "linear in them"),
    "unit vectors": (network(Unit()), alignment, SHARES, "put the last layer's normalization into the loss"),
    "a critic": (network(), lambda f, y: (f * y).mean(), SHARES, "bounded below as a function of the outputs"),
    "one class": (network(width=1), nn.CrossEntropyLoss(), 0 * LABELS, "one output, whose softmax is always 1"),
    "one class, own": (network(width=1), lambda f, y: F.cross_entropy(f, y), 0 * LABELS, "of zero gradient"),
    "one class, nll": (network(nn.LogSoftmax(1), width=1), nn.NLLLoss(), 0 * LABELS, "linear in them"),
    "constant": (network(), lambda f, y: 1 + 0 * f.sum(), SHARES, "one that depends on the outputs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_bound_or_no_gradient_is_refused(name: str) -> None:
    model, loss, y, message = REFUSED[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        sgdsde.Problem(model, X, y, loss=loss)


def test_the_remedies_help() -> None:
    sgdsde.Problem(network(), X, LABELS, loss=nn.CrossEntropyLoss())
    sgdsde.Problem(network(width=1), X, BITS[:, :1], loss=nn.BCEWithLogitsLoss())
    sgdsde.Problem(network(), X, SHARES, loss=lambda f, y: alignment(F.normalize(f, dim=1), y))


DOMAINS: dict[str, tuple[nn.Module, object, Callable[[], object], Tensor]] = {
    "BCEWithLogitsLoss": (nn.Sigmoid(), nn.BCELoss(), nn.BCEWithLogitsLoss, BITS),
    "log_input=True": (nn.Softplus(), nn.PoissonNLLLoss(log_input=False), nn.PoissonNLLLoss, BITS),
    "what its last layer is given": (
        nn.Softmax(1),
        lambda f, y: -f.gather(1, y[:, None]).log().mean(),
        lambda: lambda f, y: -f.softmax(1).gather(1, y[:, None]).log().mean(),
        LABELS,
    ),
}


@pytest.mark.parametrize("name", DOMAINS)
def test_a_loss_with_a_domain_is_trained_but_not_linearized(name: str) -> None:
    last, loss, instead, y = DOMAINS[name]
    made = sgdsde.Problem(network(last), X, y, loss=loss)
    assert torch.isfinite(sgdsde.run_ensemble(made, SGD, 5, 2).train_loss.mean).all()
    sgd = sgdsde.SGD(1e-3, 4)
    for ask in (sgdsde.linearize, lambda p: sgdsde.predict(p, sgd, 5), lambda p: sgdsde.stability.max_lr(p, 4)):
        with pytest.raises(ValueError, match=r"defined for all outputs where a model is linearized.*" + name):
            ask(made)
    assert torch.isfinite(sgdsde.predict(sgdsde.Problem(network(), X, y, loss=instead()), sgd, 5).train_loss.mean).all()


def test_kinks_are_looked_for_when_a_hessian_is_asked_for() -> None:
    made = sgdsde.Problem(network(), X, SHARES, loss=lambda f, y: (f - y).abs().mean())
    assert isinstance(made.criterion, TorchLoss)
    assert "kink" not in vars(made.criterion)
    with pytest.raises(ValueError, match="whose gradient jumps"):
        made.criterion.hessian(SHARES, SHARES)
