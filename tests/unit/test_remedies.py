"""What an error tells to do works when it is done."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

import sgdsde
from tests.architectures import Wrapped

RNG = torch.Generator().manual_seed(0)
X, Y = (torch.randn(8, k, generator=RNG, dtype=torch.float64) for k in (4, 2))
LABELS = torch.randint(0, 3, (8, 5), generator=RNG)
IMAGES = torch.randn(8, 2, 3, 3, generator=RNG, dtype=torch.float64)


def linear(n: int, c: int) -> nn.Module:
    return nn.Linear(n, c, dtype=torch.float64)


def problem(model: object = None, x: object = X, y: object = Y, loss: object = None) -> sgdsde.Problem:
    return sgdsde.Problem(linear(4, 2) if model is None else model, x, y, loss=loss or nn.MSELoss())


def keyword_only() -> nn.Module:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = linear(4, 2)

        def forward(self, *, input_ids: Tensor) -> Tensor:
            return self.layer(input_ids)

    return Keyword()


def two_inputs() -> nn.Module:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = linear(2, 2), linear(2, 2)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.left(a) * self.right(b)

    return Two()


def forward_of(model: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> nn.Module:
    return Wrapped(lambda m, x: call(m.inner, x), inner=model)


def scheduled(n_steps: int) -> sgdsde.Trajectory:
    model = linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=20, cycle_momentum=False)
    loader = DataLoader(TensorDataset(X, Y), 4, shuffle=True)
    return sgdsde.predict(problem(model), sgdsde.SGD.from_optimizer(optimizer, loader, scheduler), n_steps)


def loaded(rows: list[object]) -> sgdsde.Problem:
    return sgdsde.Problem.from_loader(linear(4, 2), DataLoader(rows, 4, shuffle=True), loss=nn.MSELoss())


CASES: dict[str, tuple[Callable[[], object], str, Callable[[], object]]] = {
    "dict of inputs": (
        lambda: problem(two_inputs(), {"a": X[:, :2], "b": X[:, 2:]}),
        "got dict; join its tensors in one and split that in the forward of a module around the model",
        lambda: problem(forward_of(two_inputs(), lambda m, x: m(x[:, :2], x[:, 2:]))),
    ),
    "tuple of inputs": (
        lambda: problem(two_inputs(), (X[:, :2], X[:, 2:])),
        "got tuple; join its tensors in one",
        lambda: problem(forward_of(two_inputs(), lambda m, x: m(*x.chunk(2, 1)))),
    ),
    "two arguments": (
        lambda: problem(two_inputs()),
        "callable with one tensor of inputs, model(x), got Two.forward(a:",
        lambda: problem(forward_of(two_inputs(), lambda m, x: m(*x.chunk(2, 1)))),
    ),
    "keywords only": (
        lambda: problem(keyword_only()),
        "Keyword.forward(*, input_ids: 'Tensor') -> 'Tensor'; wrap the model in a module whose forward takes one",
        lambda: problem(forward_of(keyword_only(), lambda m, x: m(input_ids=x))),
    ),
    "sparse": (lambda: problem(x=X.to_sparse()), "use x_train.to_dense()", lambda: problem(x=X.to_sparse().to_dense())),
    "sparse targets": (
        lambda: problem(y=Y.to_sparse_csr()),
        "use y_train.to_dense()",
        lambda: problem(y=Y.to_sparse().to_dense()),
    ),
    "nested": (
        lambda: problem(x=torch.nested.nested_tensor(list(X))),
        "got a nested tensor; use x_train.to_padded_tensor(0.0)",
        lambda: problem(x=torch.nested.nested_tensor(list(X)).to_padded_tensor(0.0)),
    ),
    "one class a token": (
        lambda: problem(linear(4, 15), y=LABELS, loss=nn.CrossEntropyLoss()),
        "loss=lambda f, y: F.cross_entropy(f.view(-1, 3), y.flatten())",
        lambda: problem(linear(4, 15), y=LABELS, loss=lambda f, y: F.cross_entropy(f.view(-1, 3), y.flatten())),
    ),
    "one class a pixel": (
        lambda: problem(linear(4, 15), y=LABELS, loss=nn.CrossEntropyLoss()),
        "loss=lambda f, y: F.cross_entropy(f.view(len(f), 3, -1), y.flatten(1))",
        lambda: problem(
            linear(4, 15), y=LABELS, loss=lambda f, y: F.cross_entropy(f.view(len(f), 3, -1), y.flatten(1))
        ),
    ),
    "one index in a column": (
        lambda: problem(linear(4, 3), y=LABELS[:, :1], loss=nn.CrossEntropyLoss()),
        "use .flatten()",
        lambda: problem(linear(4, 3), y=LABELS[:, :1].flatten(), loss=nn.CrossEntropyLoss()),
    ),
    "tokens": (
        lambda: problem(linear(4, 3), torch.randn(8, 5, 4, dtype=torch.float64), LABELS, nn.CrossEntropyLoss()),
        "got [2, 5, 3]; end the model with nn.Flatten(), and give the targets this shape too (or the loss the first",
        lambda: problem(
            nn.Sequential(linear(4, 3), nn.Flatten()),
            torch.randn(8, 5, 4, generator=RNG, dtype=torch.float64),
            LABELS,
            lambda f, y: F.cross_entropy(f.view(-1, 3), y.flatten()),
        ),
    ),
    "images as outputs": (
        lambda: problem(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Flatten()).double(), IMAGES, IMAGES),
        "use y_train.flatten(1), the order of nn.Flatten()",
        lambda: problem(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Flatten()).double(), IMAGES, IMAGES.flatten(1)),
    ),
    "one row for all": (
        lambda: problem(Wrapped(lambda m, x: m.layer(x).mean(0, keepdim=True), layer=linear(4, 2))),
        "let forward return one row an example",
        lambda: problem(),
    ),
    "flat outputs": (
        lambda: problem(Wrapped(lambda m, x: m.layer(x)[:, 0], layer=linear(4, 2))),
        "end the model with unsqueeze(-1)",
        lambda: problem(Wrapped(lambda m, x: m.layer(x)[:, 0].unsqueeze(-1), layer=linear(4, 2)), y=Y[:, :1]),
    ),
    "no reduction": (
        lambda: problem(loss=nn.MSELoss(reduction="none")),
        "loss.reduction must be 'mean', got 'none'; use reduction='mean'",
        lambda: problem(loss=nn.MSELoss(reduction="mean")),
    ),
    "an ended schedule": (
        lambda: scheduled(30),
        "n_steps must be at most 21, where OneCycleLR ends, got more; ask for at most 21 steps",
        lambda: scheduled(21),
    ),
    "an ended function": (
        lambda: sgdsde.predict(problem(), sgdsde.SGD([0.1, 0.01].__getitem__, 4), 3),
        "lr(2) must be a number, got IndexError: list index out of range; ask for fewer steps, or let the function",
        lambda: sgdsde.predict(problem(), sgdsde.SGD([0.1, 0.01].__getitem__, 4), 2),
    ),
    "a kernel of a dict": (
        lambda: sgdsde.empirical_ntk(two_inputs(), {"a": X[:, :2], "b": X[:, 2:]}),
        "x1 must be a torch.Tensor, got dict; join its tensors in one",
        lambda: sgdsde.empirical_ntk(forward_of(two_inputs(), lambda m, x: m(*x.chunk(2, 1))), X),
    ),
    "a loader of three": (
        lambda: loaded([(x[:2], x[2:], y) for x, y in zip(X, Y)]),
        "return pairs (x, y) from the data set, several inputs joined in x and split again in forward",
        lambda: loaded(list(zip(X, Y))),
    ),
    "a derivative without gradients": (
        lambda: problem(
            Wrapped(lambda m, x: torch.autograd.grad(m.layer(x).sum(), x)[0][:, :2], layer=linear(4, 2)),
        ),
        "where forward takes a derivative itself, use torch.func.grad, or torch.enable_grad() around it",
        lambda: problem(
            Wrapped(
                lambda m, x: torch.vmap(torch.func.grad(lambda t: m.layer(t).tanh().sum()))(x)[:, :2],
                layer=linear(4, 2),
            )
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:.*(nested|Sparse CSR|torch.jit)")
def test_the_remedy_is_named_and_helps(name: str) -> None:
    refused, message, remedied = CASES[name]
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        refused()
    remedied()


def test_no_reduction_has_no_word_of_the_learning_rate() -> None:
    with pytest.raises(ValueError, match=r"use reduction='mean'$"):
        problem(loss=nn.MSELoss(reduction="none"))
    with pytest.raises(ValueError, match="multiply lr by the batch size"):
        problem(loss=nn.MSELoss(reduction="sum"))


def test_a_dampening_above_one_is_no_matter_of_the_learning_rate() -> None:
    made = problem()
    with pytest.warns(sgdsde.UnstableWarning, match=r"dampening=1.5 is above 1: .* grows at any learning rate"):
        sgdsde.predict(made, sgdsde.SGD(1e-4, 4, momentum=0.5, dampening=1.5), 3)
    sgdsde.predict(made, sgdsde.SGD(1e-4, 4, momentum=0.5, dampening=1.0), 3)


def test_the_limit_in_the_warning_is_that_of_the_dampened_optimizer() -> None:
    made = problem()
    plain = sgdsde.stability.max_lr(made, 4, momentum=0.5)
    dampened = sgdsde.SGD(2.5 * plain, 4, momentum=0.5, dampening=0.5)
    with pytest.warns(sgdsde.UnstableWarning, match=re.escape(f"limit {2 * plain:.6g} of SGD")):
        sgdsde.predict(made, dampened, 3)
    below = sgdsde.SGD(1.99 * plain, 4, momentum=0.5, dampening=0.5)
    assert sgdsde.stability.mean_square_radius(made, below) < 1
    sgdsde.predict(made, below, 3)


def test_what_does_not_fit_into_memory_is_refused_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    n = 8192
    made = problem(x=X.repeat(n // 8, 1), y=Y.repeat(n // 8, 1))
    monkeypatch.setattr("sgdsde._memory.free_bytes", lambda device: 20 * 2**30)
    monkeypatch.setattr("sgdsde.linearization.gram", None)  # no kernel is begun
    needed = 5 * 8 * (2 * n) ** 2
    for ask in (lambda: sgdsde.predict(made, sgdsde.SGD(0.1, 4), 3), lambda: sgdsde.stability.max_lr(made, 4)):
        with pytest.raises(
            MemoryError, match=re.escape(f"at least {needed:,} bytes") + r".*linearize\(problem, rank=500"
        ):
            ask()


def test_a_kernel_that_is_there_is_not_decomposed_beyond_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    linearization = sgdsde.linearize(problem())
    assert linearization.kernel.shape == (16, 16)
    monkeypatch.setattr("sgdsde._memory.free_bytes", lambda device: 4 * 4 * 8 * 16**2 - 4)
    with pytest.raises(MemoryError, match=r"at least 8,192 bytes, got 8,191; .*linearization.truncate\(500\)"):
        sgdsde.predict(linearization, sgdsde.SGD(0.1, 4), 3)
    monkeypatch.setattr("sgdsde._memory.free_bytes", lambda device: 4 * 4 * 8 * 16**2)
    sgdsde.predict(linearization, sgdsde.SGD(0.1, 4), 3)
