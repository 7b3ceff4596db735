"""What a step reads is found, and so is every way in which the host waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional

from sgdsde.ensemble.inspection import inspected

X = torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4)
PLACES = torch.tensor([2, 0, 2])
AWAY = torch.ones(3, 4, device="meta", dtype=torch.float64)


def addresses(found: list[object]) -> set[int]:
    return {each.data_ptr() for each in found if isinstance(each, torch.UntypedStorage)}


WAITS: dict[str, Callable[[], Any]] = {
    "item": lambda: X.sum().item(),
    "float": lambda: float(X[0, 0]),
    "bool": lambda: bool(X.sum() > 0),
    "index": lambda: [0, 1, 2][PLACES[1]],
    "nonzero": lambda: X.nonzero(),
    "mask": lambda: X[X > 0],
    "mask, written": lambda: X.clone().index_put_((X > 0,), X[0, :1].expand(6)),
    "unique": lambda: PLACES.unique(),
    "equal": lambda: torch.equal(X, X.clone()),
    "repeats": lambda: PLACES.repeat_interleave(PLACES),
    "from the host": lambda: X.to("meta"),
    "written from the host": lambda: AWAY.clone().copy_(X),
    "one number from the host": lambda: torch.tensor(2.0).to("meta"),
    "places on the host": lambda: AWAY[PLACES],
    "in a derivative": lambda: grad(lambda x: x.square().sum() * x.detach().sum().item())(X),
    "in a backward pass": lambda: X.clone().requires_grad_().square().sum().backward(torch.tensor(X.sum().item())),
}
GOES_ON: dict[str, Callable[[], Any]] = {
    "products": lambda: X @ X.mT,
    "places": lambda: X[PLACES].index_select(0, PLACES),
    "written at places": lambda: X.clone().index_put_((PLACES,), X[:3]),
    "bag": lambda: torch.embedding_bag(X, PLACES, PLACES[1:2], False, 0, False, X[0, :3])[0],
    "where": lambda: torch.where(X > 0, X, 0.0).masked_fill(X < 0, 1.0),
    "a number of the host": lambda: AWAY * torch.tensor(2.0, dtype=torch.float64),
    "made there": lambda: AWAY + torch.arange(4, device="meta"),
    "derivatives of many": lambda: vmap(grad(lambda x: functional.silu(x).sum()))(X),
}


@pytest.mark.parametrize("name", WAITS)
def test_where_the_host_waits_is_named(name: str) -> None:
    with pytest.raises(RuntimeError, match=r"the host waits for the device in aten\.\w+"):
        inspected(WAITS[name])


@pytest.mark.parametrize("name", GOES_ON)
def test_where_it_goes_on_nothing_is_found_fault_with(name: str) -> None:
    inspected(GOES_ON[name])


def test_what_was_there_before_is_found_by_its_memory_and_what_is_made_is_not() -> None:
    kept, unread, made = X.clone(), X.clone(), list[Tensor]()
    leaf = X.clone().requires_grad_()

    def step() -> None:
        mask = kept[1:].mT[2]  # a view
        made.append((leaf[0, :2] * mask).exp())
        torch.autograd.grad(made[0].sum(), leaf)

    found = addresses(inspected(step))
    assert {kept.untyped_storage().data_ptr(), leaf.untyped_storage().data_ptr()} == found
    assert unread.untyped_storage().data_ptr() not in found


def test_what_is_found_outlives_its_owner() -> None:
    """A mask that a model replaces keeps its memory as long as what was found is held."""
    cache = {"mask": torch.full((3, 4), 2.0, dtype=torch.float64)}
    held = inspected(lambda: X * cache["mask"])
    address = cache["mask"].untyped_storage().data_ptr()
    cache["mask"] = torch.zeros(3, 4, dtype=torch.float64)
    storage = next(each for each in held if isinstance(each, torch.UntypedStorage) and each.data_ptr() == address)
    assert torch.equal(torch.empty(0, dtype=torch.float64).set_(storage), torch.full((12,), 2.0, dtype=torch.float64))


def test_sparse_constants_are_held_themselves() -> None:
    matrix = X.to_sparse()
    assert any(each is matrix for each in inspected(lambda: torch.sparse.mm(matrix, X.mT)))
