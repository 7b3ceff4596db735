"""The checks of a model see what kernels and ensembles compute: many cotangents, crowds, writes, false derivatives."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import sgdsde
from sgdsde import _fidelity
from sgdsde._functional import as_functional
from sgdsde._probe import probe
from tests.architectures import Wrapped
from tests.catalogue import NetCase, kernel_by_backward

RNG = torch.Generator().manual_seed(0)
X, Y = (torch.randn(12, k, generator=RNG, dtype=torch.float64) for k in (4, 2))


def network(forward: Callable[[Any, Tensor], Tensor], **more: Any) -> nn.Module:
    layers = {"first": nn.Linear(4, 4), "last": nn.Linear(4, 2)}
    return NetCase(lambda: Wrapped(forward, **layers, **more), (4,)).model()


def problem(model: Any, x: Tensor = X, y: Tensor = Y) -> sgdsde.Problem:
    return sgdsde.Problem(model, x, y, loss=nn.MSELoss())


# ---------------------------------------------------------------------------------------- cotangents at once


def centers(c: int, p: float) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.readout(torch.exp(-0.3 * torch.cdist(x, m.centers, p=p)))

    return NetCase(
        lambda: Wrapped(forward, centers=nn.Parameter(torch.randn(5, 4)), readout=nn.Linear(5, c)), (4,)
    ).model()


@pytest.mark.parametrize(("c", "p"), [(1, 2.0), (2, 2.0), (2, 1.0), (7, 2.0)])
def test_a_backward_pass_that_is_wrong_for_two_cotangents_at_once_is_not_used(c: int, p: float) -> None:
    model, x = centers(c, p), X[:6]
    right = kernel_by_backward(model, x)
    torch.testing.assert_close(sgdsde.empirical_ntk(model, x), right, rtol=1e-9, atol=1e-10)
    linearization = sgdsde.linearize(problem(model, x, torch.zeros(6, c, dtype=torch.float64)))
    torch.testing.assert_close(linearization.kernel, right, rtol=1e-9, atol=1e-10)
    alone = sgdsde.empirical_ntk(model, x, where=lambda name: name == "centers")
    right = kernel_by_backward(model, x, where=lambda name: name == "centers")
    torch.testing.assert_close(alone, right, rtol=1e-9, atol=1e-10)


class WrongForTwo(torch.autograd.Function):
    """x, by a function whose vectorized backward pass takes one cotangent for all."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(context: Any, inputs: Any, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return Backward.apply(gradient)

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor) -> Any:
        return WrongForTwo.apply(x), dims[0]


class Backward(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(context: Any, inputs: Any, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor) -> Any:
        first = x.movedim(dims[0], 0)[:1]
        return first.expand(info.batch_size, *first.shape[1:]).clone(), 0


def test_a_hand_written_batching_rule_is_held_against_plain_calls() -> None:
    model = network(lambda m, x: m.last(torch.tanh(WrongForTwo.apply(m.first(x)))))
    assert not probe(as_functional(model), X)[0].vectorizes
    torch.testing.assert_close(sgdsde.empirical_ntk(model, X), kernel_by_backward(model, X), rtol=1e-9, atol=1e-10)


def test_a_call_that_only_plain_vmap_refuses_takes_the_slow_path() -> None:
    model = network(lambda m, x: F.linear(torch.tanh(m.first(x)), m.last.weight.data, m.last.bias))
    model.first.requires_grad_(False)
    made = problem(model)
    assert not made.functional.vectorizes
    assert sgdsde.run_ensemble(made, sgdsde.SGD(0.1, 4), 3, 3).n_runs == 3


# --------------------------------------------------------------------------------------------- coupling


class Experts(nn.Module):
    """Two experts, each for the examples that come first, up to a capacity."""

    def __init__(self, capacity: Callable[[int], float]) -> None:
        super().__init__()
        self.gate, self.capacity = nn.Linear(4, 2), capacity
        self.experts = nn.ModuleList([nn.Linear(4, 2) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        chances, total = self.gate(x).softmax(-1), 0
        for i, expert in enumerate(self.experts):
            chosen = (chances.argmax(-1) == i).to(x.dtype)
            kept = chosen * (chosen.cumsum(0) <= self.capacity(len(x)))
            total = total + (kept * chances[:, i])[:, None] * expert(x)
        return total


@pytest.mark.parametrize("capacity", [lambda n: 4, lambda n: 5, lambda n: 40, lambda n: 1.25 * n / 2])
def test_experts_with_a_capacity_couple_examples(capacity: Callable[[int], float]) -> None:
    model = NetCase(lambda: nn.Sequential(nn.Linear(4, 4), Experts(capacity)), (4,)).model()
    with pytest.raises(ValueError, match=r"one example at a time, .* in layer '1' \(Experts\).*no capacity"):
        problem(model)
    problem(NetCase(lambda: nn.Sequential(nn.Linear(4, 4), Experts(lambda n: n)), (4,)).model())


def test_a_weak_coupling_is_seen() -> None:
    with pytest.raises(ValueError, match="a function of one example at a time"):
        problem(network(lambda m, x: m.last(torch.tanh(m.first(x))) + 1e-6 * x.mean(0)[:2]))


@pytest.mark.parametrize("layer", ["attention", "recurrent", "encoder"])
def test_the_first_axis_taken_for_time_is_named(layer: str) -> None:
    kinds: dict[str, Callable[[bool], tuple[nn.Module, Callable[[Any, Tensor], Tensor]]]] = {
        "attention": lambda first: (
            nn.MultiheadAttention(4, 2, batch_first=first),
            lambda m, x: m.layer(x, x, x)[0].mean(1),
        ),
        "recurrent": lambda first: (nn.GRU(4, 4, batch_first=first), lambda m, x: m.layer(x)[0].mean(1)),
        "encoder": lambda first: (
            nn.TransformerEncoderLayer(4, 2, 8, batch_first=first),
            lambda m, x: m.layer(x).mean(1),
        ),
    }
    x = torch.randn(8, 5, 4, generator=RNG, dtype=torch.float64)

    def model(first: bool) -> nn.Module:
        made, forward = kinds[layer](first)
        return NetCase(
            lambda: Wrapped(lambda m, x: m.last(forward(m, x)), layer=made, last=nn.Linear(4, 2)), (5, 4)
        ).model()

    with pytest.raises(ValueError, match=r"in layer 'layer.*; make it with batch_first=True"):
        problem(model(False), x, Y[:8])
    problem(model(True), x, Y[:8])  # and that helps


def test_amplified_rounding_is_not_called_coupling() -> None:
    generator = torch.Generator().manual_seed(0)
    layers = [layer for _ in range(40) for layer in (nn.Linear(64, 64), nn.Tanh())]
    chaotic = nn.Sequential(*layers, nn.Linear(64, 2))
    with torch.no_grad():
        for parameter in chaotic.parameters():
            parameter.copy_(3 / 8 * torch.randn(parameter.shape, generator=generator))
    x = torch.randn(6, 64, generator=generator)
    with pytest.raises(ValueError, match=r"one that does not amplify rounding, .* use model.double\(\)"):
        problem(chaotic, x, x[:, :2])


# ----------------------------------------------------------------------------------------------- writes


def clamped(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.first.weight.clamp_(-99, 99)
    return m.last(m.first(x))


def renewed(m: Any, x: Tensor) -> Tensor:
    m.first.weight = nn.Parameter(m.first.weight / m.first.weight.norm())
    return m.last(m.first(x))


def assigned(m: Any, x: Tensor) -> Tensor:
    m.first.weight.data = m.first.weight.data / 2
    return m.last(m.first(x))


WRITES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "an inactive clamp": clamped,
    "an inactive clamp of data": lambda m, x: (m.first.weight.data.clamp_(-99, 99), m.last(m.first(x)))[1],
    "a new parameter": renewed,
    "new data": assigned,
    "one entry": lambda m, x: (m.first.weight.data.__setitem__((0, 0), 0.0), m.last(m.first(x)))[1],
}


@pytest.mark.parametrize("name", WRITES)
def test_a_forward_that_writes_to_a_parameter_is_refused_by_name(name: str) -> None:
    model = network(WRITES[name])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"parameter 'first.weight' must be left as it is by forward, got changed.*'first'"
    ):
        problem(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_embeddings_with_a_largest_norm_are_refused(kind: type[nn.Module]) -> None:
    tokens = torch.randint(0, 6, (12, 3), generator=RNG)

    def model(max_norm: float | None) -> nn.Module:
        return nn.Sequential(kind(6, 4, max_norm=max_norm), nn.Flatten(), nn.LazyLinear(2)).double()

    for max_norm in (0.3, 1e6):
        made = model(max_norm)
        made(tokens)
        with pytest.raises(ValueError, match=r"parameter '0.weight' must be left .*max_norm of an embedding"):
            problem(made, tokens)
    made = model(None)
    made(tokens)
    problem(made, tokens)


# --------------------------------------------------------------------------------------------- derivatives


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return -gradient


def straight_through(m: Any, x: Tensor) -> Tensor:
    hidden = 3 * m.first(x)
    return m.last(hidden + (hidden.round() - hidden).detach())


def hooked(m: Any, x: Tensor) -> Tensor:
    hidden = torch.tanh(m.first(x))
    if hidden.requires_grad:
        hidden.register_hook(lambda gradient: 0.1 * gradient)
    return m.last(hidden)


FALSE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "straight through": straight_through,
    "reversed": lambda m, x: m.last(Reversed.apply(torch.tanh(m.first(x)))),
    "partly detached": lambda m, x: m.last(torch.tanh(m.first(x)) * m.first(x).sigmoid().detach()),
    "partly data": lambda m, x: m.last(m.first(x)) * m.last.bias.data,
    "hook in forward": hooked,
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", FALSE)
def test_a_backward_pass_that_is_no_derivative_is_refused(name: str, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="one whose backward pass is the derivative of its forward pass"):
        problem(network(FALSE[name]).to(dtype), X.to(dtype), Y.to(dtype))


def test_weights_behind_a_detach_stay_where_they_are() -> None:
    model = network(lambda m, x: m.last(torch.tanh(m.first(x)).detach()))
    made, full = problem(model), sgdsde.SGD(0.1, 12, sampling="without_replacement")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        F.mse_loss(model(X), Y).backward()
        optimizer.step()
    found = sgdsde.predict(made, full, 20).train_loss.mean[-1]  # linear in what is trained
    assert float(found) == pytest.approx(F.mse_loss(model(X), Y).item(), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_kinks_at_the_initial_weights_are_no_false_derivatives(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.MaxPool1d(2), nn.Linear(32, 2)).to(dtype)
    nn.init.zeros_(model[0].bias)
    x = X.to(dtype) * (X[:, :1] > 0)  # half of the examples are zero: every unit is on its kink
    problem(model, x, Y.to(dtype))


def test_the_comparison_with_finite_differences_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    # Negative control: a gradient that is off by a hundredth is found.
    class Off(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:
            return 1.01 * gradient

    model = network(lambda m, x: m.last(Off.apply(torch.tanh(m.first(x)))))
    with pytest.raises(ValueError, match="derivative of its forward pass"):
        problem(model)
    monkeypatch.setattr(_fidelity, "AGREEMENT", 0.1)
    problem(model)


# ------------------------------------------------------------------------------------ derivatives in forward


def by_autograd(m: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        outputs = m.last(torch.tanh(m.first(x)))
        return torch.autograd.grad(outputs.sum(), x, create_graph=True)[0][:, :2]


INSIDE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "grad": lambda m, x: torch.vmap(torch.func.grad(lambda t: m.last(torch.tanh(m.first(t))).sum()))(x)[:, :2],
    "jacrev": lambda m, x: torch.vmap(torch.func.jacrev(lambda t: m.last(torch.tanh(m.first(t)))))(x).sum(-1),
    "jvp": lambda m, x: torch.func.jvp(lambda t: m.last(torch.tanh(m.first(t))), (x,), (torch.ones_like(x),))[1],
    "autograd": by_autograd,
    "solve": lambda m, x: torch.linalg.solve(m.last.weight @ m.last.weight.mT, m.last(torch.tanh(m.first(x))).mT).mT,
}


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_derivatives_and_solutions_inside_of_forward(name: str) -> None:
    model, x, y = network(INSIDE[name]), X[:6], Y[:6]
    right = kernel_by_backward(model, x)
    torch.testing.assert_close(sgdsde.empirical_ntk(model, x), right, rtol=1e-9, atol=1e-9)
    made, sgd = problem(model, x, y), sgdsde.SGD(1e-3, 2)
    torch.testing.assert_close(sgdsde.linearize(made).kernel, right, rtol=1e-9, atol=1e-9)
    assert torch.isfinite(sgdsde.predict(made, sgd, 3).train_loss.mean).all()
    assert torch.isfinite(sgdsde.run_ensemble(made, sgd, 3, 2).train_loss.mean).all()


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


def test_checkpoints_are_refused_for_what_they_are() -> None:
    model = nn.Sequential(Checkpointed(), nn.Tanh(), nn.Linear(4, 2)).double()
    message = "activation checkpoints in layer '0' (Checkpointed), whose second forward pass cannot be followed"
    with pytest.raises(ValueError, match=re.escape(message)):
        problem(model)


# ------------------------------------------------------------------------------------------- once only


@pytest.mark.parametrize("rank", [None, 3])
def test_a_linearization_does_not_probe_again(rank: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    made = problem(network(lambda m, x: m.last(torch.tanh(m.first(x)))))
    for module in ("sgdsde.kernel.implicit", "sgdsde.kernel.empirical", "sgdsde.kernel.tiles.tile_making"):
        monkeypatch.setattr(f"{module}.probe", None)
    sgdsde.linearize(made, rank=rank, memory=None if rank is None else 60_000)
