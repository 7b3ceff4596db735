"""What is predicted and trained is the user's own module: as torch's loop trains it, or refused by name."""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sgdsde
from tests.architectures import Wrapped

RNG = torch.Generator().manual_seed(0)
X, Y = (torch.randn(12, k, generator=RNG, dtype=torch.float64) for k in (4, 2))
FULL = sgdsde.SGD(lr=0.1, batch_size=12, sampling="without_replacement")


def filled(model: nn.Module) -> nn.Module:
    """The model in double precision with random parameters, each drawn once whatever shares its memory."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def layers(**more: nn.Module) -> dict[str, Any]:
    return {"first": nn.Linear(4, 4, dtype=torch.float64), "last": nn.Linear(4, 2, dtype=torch.float64), **more}


def by_torch(model: nn.Module, *, steps: int = 20, **words: float) -> float:
    """The loss that torch.optim.SGD ends with on full batches."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **words)
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(model(X), Y).backward()
        optimizer.step()
    return F.mse_loss(model(X), Y).item()


def by_us(model: nn.Module, **words: float) -> float:
    problem = sgdsde.Problem(model, X, Y, loss=nn.MSELoss())
    sgd = sgdsde.SGD(lr=0.1, batch_size=12, sampling="without_replacement", **words)
    return float(sgdsde.run_ensemble(problem, sgd, 20, 1).train_loss.mean[-1])


# ------------------------------------------------------------------------------------------ shared memory


def transposed(m: Any) -> None:
    m.second = nn.Linear(4, 4, bias=False)
    m.second.weight = nn.Parameter(m.first.weight.t())


def by_data(m: Any) -> None:
    m.second = nn.Linear(4, 4, bias=False, dtype=torch.float64)
    m.second.weight.data = m.first.weight.data


def by_set(m: Any) -> None:
    m.second = nn.Linear(4, 4, bias=False, dtype=torch.float64)
    with torch.no_grad():
        m.second.weight.set_(m.first.weight.detach())


def in_another_order(m: Any) -> None:
    m.second = nn.Linear(4, 4, bias=False, dtype=torch.float64)
    m.second.weight = nn.Parameter(m.first.weight.detach().view(2, 2, 4).permute(2, 0, 1))


def tied(tie: Callable[[Any], None]) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        weight = m.second.weight.reshape(4, 4)
        return m.last(torch.tanh(F.linear(torch.tanh(m.first(x)), weight)))

    model = Wrapped(forward, **layers())
    tie(model)
    return filled(model)


def once(order: Callable[[Tensor], Tensor]) -> nn.Module:
    """The same network with one parameter that forward uses twice."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.last(torch.tanh(F.linear(torch.tanh(m.first(x)), order(m.first.weight))))

    return Wrapped(forward, **layers())


TIES: dict[str, tuple[Callable[[Any], None], Callable[[Tensor], Tensor]]] = {
    "transposed": (transposed, lambda w: w.t()),
    "by data": (by_data, lambda w: w),
    "by set_": (by_set, lambda w: w),
    "in another order": (in_another_order, lambda w: w.view(2, 2, 4).permute(2, 0, 1).reshape(4, 4)),
}


@pytest.mark.parametrize("name", TIES)
def test_parameters_that_share_memory_are_one(name: str) -> None:
    tie, order = TIES[name]
    reference = once(order)
    with torch.no_grad():
        reference.first.load_state_dict(tied(tie).first.state_dict())
        reference.last.load_state_dict(tied(tie).last.state_dict())
    right = sgdsde.empirical_ntk(reference, X)
    torch.testing.assert_close(sgdsde.empirical_ntk(tied(tie), X), right, rtol=1e-12, atol=1e-12)
    problem = sgdsde.Problem(tied(tie), X, Y, loss=nn.MSELoss())
    assert "second.weight" not in problem.params
    torch.testing.assert_close(sgdsde.linearize(problem).kernel, right, rtol=1e-12, atol=1e-12)
    for words in ({}, {"momentum": 0.5}):
        assert by_us(tied(tie), **words) == pytest.approx(by_torch(tied(tie), **words), rel=1e-10)


def test_an_untied_copy_would_be_another_network() -> None:
    # Negative control: what copy.deepcopy alone makes of them.
    untied = tied(transposed)
    untied.second.weight = nn.Parameter(untied.second.weight.detach().clone())
    assert abs(by_torch(untied) / by_torch(tied(transposed)) - 1) > 0.01


def test_memory_that_torch_decays_twice_is_not_decayed_once() -> None:
    problem = sgdsde.Problem(tied(transposed), X, Y, loss=nn.MSELoss())
    for ask in (sgdsde.predict, lambda *args: sgdsde.run_ensemble(*args, 1), sgdsde.diagnose):
        with pytest.raises(ValueError, match=r"'second.weight' and 'first.weight' in one memory, decayed twice"):
            ask(problem, sgdsde.SGD(0.1, 4, weight_decay=0.01), 2)


def test_separate_parts_of_one_memory_are_separate_parameters() -> None:
    flat = torch.randn(4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for parts in ((flat[:, ::2], flat[:, 1::2]), (flat.view(-1)[:8].view(4, 2), flat.view(-1)[8:].view(4, 2))):
        left, right = (nn.Parameter(part.clone()) for part in parts)
        apart = Wrapped(lambda m, x: torch.tanh(x @ m.left) + x @ m.right, left=left, right=right)
        joined = Wrapped(apart._function, left=nn.Parameter(parts[0]), right=nn.Parameter(parts[1]))
        torch.testing.assert_close(sgdsde.empirical_ntk(joined, X), sgdsde.empirical_ntk(apart, X), rtol=0, atol=0)


def overlapping(m: Any) -> None:
    m.first = nn.Linear(4, 4, dtype=torch.float64)
    m.part = nn.Parameter(m.first.weight[:2])


def frozen(m: Any) -> None:
    by_data(m)
    m.second.weight.requires_grad_(False)


MEMORY: dict[str, tuple[Callable[[Any], None], str]] = {
    "a part": (overlapping, "parameters must be all or nothing in common, got 'part' and 'first.weight'"),
    "frozen": (frozen, "got 'first.weight' and 'second.weight', of which SGD moves the first"),
    "a buffer": (lambda m: m.register_buffer("kept", m.first.weight.data), "got 'first.weight' and 'kept'"),
    "an attribute": (lambda m: setattr(m, "kept", m.first.weight.data), "make 'kept' a copy (.clone())"),
    "a list": (lambda m: setattr(m, "kept", [m.first.weight.detach()]), "keeps beside its parameters"),
    "a view": (lambda m: setattr(m, "kept", m.first.weight.t()), "got 'first.weight' and 'kept'"),
    "expanded": (
        lambda m: setattr(m, "wide", nn.Parameter(torch.ones(1, dtype=torch.float64).expand(4))),
        "parameter 'wide' must be one number of memory an entry",
    ),
}


@pytest.mark.parametrize("name", MEMORY)
def test_memory_that_cannot_be_one_parameter_is_refused(name: str) -> None:
    change, message = MEMORY[name]
    model = Wrapped(lambda m, x: m.last(torch.tanh(m.first(x))), **layers())
    change(model)
    with pytest.raises(ValueError, match=re.escape(message)):
        sgdsde.Problem(model, X, Y, loss=nn.MSELoss())
    with pytest.raises(ValueError, match=re.escape(message)):
        sgdsde.empirical_ntk(model, X)


def test_a_dict_with_one_tensor_twice_is_refused() -> None:
    weight = torch.eye(4, dtype=torch.float64)
    with pytest.raises(ValueError, match="got 'a' and 'b' in the same memory; pass it once, and let f use it twice"):
        sgdsde.empirical_ntk((lambda p, x: x @ p["a"] @ p["b"], {"a": weight, "b": weight.t()}), X)


# -------------------------------------------------------------------------------- ways around the private copy

OUTSIDE: dict[str, Any] = {}


def wrapped_forward(m: Any) -> Callable[[Tensor], Tensor]:
    old = m.first.forward
    m.first.forward = lambda x: old(x)
    return lambda x: m.first(x)


def behind_a_zero_layer(m: Any) -> Callable[[Tensor], Tensor]:
    first = m.first
    nn.init.zeros_(m.last.weight)
    return lambda x: first(x)


def in_a_dict(m: Any) -> None:
    m.table = {"first": (m.first.weight,)}


def in_a_namespace(m: Any) -> None:
    m.table = types.SimpleNamespace(weight=m.first.weight)


def in_a_global(m: Any) -> None:
    OUTSIDE["layer"] = m.first


def closures(m: Any) -> list[Callable[[Tensor], Tensor]]:
    first, last = m.first, m.last
    return [lambda x: torch.tanh(first(x)), lambda x: last(x)]


def with_attribute(make: Callable[[Any], Any], forward: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    model = filled(Wrapped(forward, **layers()))
    model.made = make(model)
    return model


def output_hook(m: Any) -> None:
    first = m.first
    m.last.register_forward_hook(lambda layer, given, result: result + first(given[0])[:, :2])


AROUND: dict[str, Callable[[], nn.Module]] = {
    "a wrapped forward": lambda: with_attribute(wrapped_forward, lambda m, x: m.last(torch.tanh(m.first(x)))),
    "lambdas": lambda: with_attribute(closures, lambda m, x: m.made[1](m.made[0](x))),
    "zero gradient": lambda: with_attribute(behind_a_zero_layer, lambda m, x: m.last(m.made(x))),
    "a partial": lambda: with_attribute(
        lambda m: functools.partial(F.linear, weight=m.first.weight), lambda m, x: m.last(m.made(x))
    ),
    "a dict": lambda: with_attribute(in_a_dict, lambda m, x: m.last(x @ m.table["first"][0])),
    "a namespace": lambda: with_attribute(in_a_namespace, lambda m, x: m.last(x @ m.table.weight)),
    "a global": lambda: with_attribute(in_a_global, lambda m, x: m.last(OUTSIDE["layer"](x))),
    "data": lambda: with_attribute(
        lambda m: (lambda first: lambda x: x @ first.weight.data)(m.first), lambda m, x: m.last(m.made(x))
    ),
    "a computed tensor": lambda: with_attribute(lambda m: 2 * m.first.weight, lambda m, x: m.last(x @ m.made)),
    "a forward hook": lambda: with_attribute(output_hook, lambda m, x: m.last(torch.tanh(m.first(x)))),
}


@pytest.mark.parametrize("name", AROUND)
def test_a_forward_that_reaches_past_the_copy_is_refused_by_name(name: str) -> None:
    message = r"uses the tensor 'first.weight' of layer 'first' \(Linear\) past the module.*nn.ParameterDict"
    with pytest.raises(ValueError, match=message):
        sgdsde.Problem(AROUND[name](), X, Y, loss=nn.MSELoss())
    with pytest.raises(ValueError, match=message):
        sgdsde.empirical_ntk(AROUND[name](), X)


def test_a_function_may_center_its_outputs_with_the_initial_weights() -> None:
    weight = torch.eye(4, dtype=torch.float64)
    kernel = sgdsde.empirical_ntk((lambda p, x: x @ p["w"] - x @ weight, {"w": weight}), X)
    torch.testing.assert_close(kernel, sgdsde.empirical_ntk((lambda p, x: x @ p["w"], {"w": weight}), X))


def scaled_beside(scale: Tensor) -> nn.Module:
    return Wrapped(lambda m, x: m.last(torch.tanh(m.first(x))) * scale, **layers())


def test_a_tensor_that_requires_gradients_and_is_no_parameter_is_refused() -> None:
    scale = torch.full((1, 1), 2.0, dtype=torch.float64, requires_grad=True)
    forgotten = nn.Linear(4, 4, dtype=torch.float64)
    message = r"requires gradients and is no parameter of the model; make it one \(nn.Parameter"
    for model in (scaled_beside(scale), Wrapped(lambda m, x: m.last(torch.tanh(forgotten(x))), **layers())):
        with pytest.raises(ValueError, match=message):
            sgdsde.Problem(model, X, Y, loss=nn.MSELoss())
    constant = sgdsde.Problem(scaled_beside(scale.detach()), X, Y, loss=nn.MSELoss())
    assert not sgdsde.linearize(constant).outputs.requires_grad


def test_a_function_may_add_what_requires_gradients_and_not_multiply_by_it() -> None:
    initial = filled(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double())
    params = {name: value.detach().clone() for name, value in initial.named_parameters()}

    def outputs(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(initial, p, (x,))

    centered = sgdsde.linearize(
        sgdsde.Problem((lambda p, x: outputs(p, x) - initial(x), params), X, Y, loss=nn.MSELoss())
    )
    assert not centered.outputs.any()
    assert not centered.outputs.requires_grad
    torch.testing.assert_close(centered.kernel, sgdsde.empirical_ntk((outputs, params), X))
    scale = torch.ones(2, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match=r"a tensor \[2\] that requires gradients.*pass it among the parameters"):
        sgdsde.Problem((lambda p, x: outputs(p, x) * scale, params), X, Y, loss=nn.MSELoss())


def test_a_leaf_that_forward_makes_itself_is_no_captured_tensor() -> None:
    def slope(m: Any, x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            found = torch.autograd.grad(m.first(leaf).tanh().sum(), leaf, create_graph=True)[0]
        return m.last(found)

    model = Wrapped(slope, **layers())
    trained = by_us(model)
    assert trained == pytest.approx(by_torch(model), rel=1e-10)


COPIED: dict[str, Callable[[], nn.Module]] = {
    "bound method": lambda: with_attribute(lambda m: m.first.forward, lambda m, x: m.last(torch.tanh(m.made(x)))),
    "partial of a layer": lambda: with_attribute(
        lambda m: functools.partial(nn.Module.__call__, m.first), lambda m, x: m.last(torch.tanh(m.made(x)))
    ),
    "list of registered layers": lambda: with_attribute(
        lambda m: [m.first, m.last], lambda m, x: m.made[1](torch.tanh(m.made[0](x)))
    ),
}


@pytest.mark.parametrize("name", COPIED)
def test_what_deepcopy_follows_is_supported(name: str) -> None:
    assert by_us(COPIED[name]()) == pytest.approx(by_torch(COPIED[name]()), rel=1e-10)


HOOKS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "parameter": (lambda m: m.first.weight.register_hook(lambda g: 0.1 * g), "parameter 'first.weight' must be"),
    "accumulated": (
        lambda m: m.first.bias.register_post_accumulate_grad_hook(lambda p: None),
        "parameter 'first.bias' must be without gradient hooks",
    ),
    "module": (lambda m: m.first.register_full_backward_hook(lambda *a: None), "layer 'first' (Linear) must be"),
    "before a module": (lambda m: m.register_full_backward_pre_hook(lambda *a: None), "model (Wrapped) must be"),
}


@pytest.mark.parametrize("name", HOOKS)
def test_gradient_hooks_are_refused_by_name(name: str) -> None:
    model = Wrapped(lambda m, x: m.last(torch.tanh(m.first(x))), **layers())
    register, message = HOOKS[name]
    handle = register(model)
    with pytest.raises(ValueError, match=re.escape(message)):
        sgdsde.Problem(model, X, Y, loss=nn.MSELoss())
    handle.remove()
    sgdsde.Problem(model, X, Y, loss=nn.MSELoss())  # what the message asks for helps
