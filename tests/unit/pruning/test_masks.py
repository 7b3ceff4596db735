"""Masks are a frozen mapping; applied, they are a network and a problem without the removed weights."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

import sgdsde
from sgdsde import networks, pruning
from tests.pruning_problems import classification, dense, digits_classes

pytestmark = pytest.mark.filterwarnings("ignore::sgdsde.pruning.PruningWarning")  # small networks lose paths by chance


def random_masks(model: nn.Module, density: float, seed: int = 7) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    named = [(name, value) for name, value in model.named_parameters() if value.ndim > 1]
    return {name: torch.rand(value.shape, generator=generator) < density for name, value in named}


class Mask(nn.Module):
    """A parametrization that holds entries at zero."""

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.mask


def by_parametrization(model: nn.Module, masks: dict[str, torch.Tensor]) -> nn.Module:
    pruned = copy.deepcopy(model)
    for name, mask in masks.items():
        layer, _, local = name.rpartition(".")
        parametrize.register_parametrization(pruned.get_submodule(layer), local, Mask(mask))
    return pruned


def by_torch(model: nn.Module, masks: dict[str, torch.Tensor]) -> nn.Module:
    pruned = copy.deepcopy(model)
    for name, mask in masks.items():
        layer, _, local = name.rpartition(".")
        torch_prune.custom_from_mask(pruned.get_submodule(layer), local, mask.double())
    return pruned


def test_a_mask_cannot_be_changed() -> None:
    given = {"a.weight": torch.tensor([[True, False]])}
    masks = pruning.Masks(given)
    given["a.weight"][0, 0] = False
    masks["a.weight"][0, 0] = False
    assert masks["a.weight"].tolist() == [[True, False]]
    with pytest.raises(TypeError):
        masks["a.weight"] = torch.tensor([[True, True]])  # type: ignore[index]


def test_densities_are_counts() -> None:
    masks = pruning.Masks({"a": torch.tensor([[True, False, False, False]]), "b": torch.zeros(4, 3, dtype=torch.bool)})
    assert masks.density == 1 / 16
    assert masks.sparsity == 15 / 16
    assert masks.layer_densities == {"a": 0.25, "b": 0.0}
    assert masks.empty_layers == ("b",)
    assert masks.live_density is None


def test_the_kernel_of_every_form_is_that_of_the_kept_weights() -> None:
    model = networks.MLP(5, 16, 2, depth=2, sigma_b=0.3, dtype=torch.float64)
    x = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    masks = random_masks(model, 0.4)
    pruned = pruning.Masks(masks).apply(model)
    rows = []
    for output in pruned(x).flatten():
        slopes = torch.autograd.grad(output, list(pruned.parameters()), retain_graph=True)
        rows.append(torch.cat([slope.flatten() for slope in slopes]))
    jacobian = torch.stack(rows)
    # Dense Jacobian at the sparse point, columns of removed weights dropped.
    sparse = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in masks.items():
            sparse.get_parameter(name).mul_(mask)
    columns = torch.cat(
        [masks.get(name, torch.ones_like(v, dtype=torch.bool)).flatten() for name, v in sparse.named_parameters()]
    )
    all_rows = []
    for output in sparse(x).flatten():
        slopes = torch.autograd.grad(output, list(sparse.parameters()), retain_graph=True)
        all_rows.append(torch.cat([slope.flatten() for slope in slopes]))
    kept = torch.stack(all_rows)[:, columns]
    expected = kept @ kept.T
    assert (jacobian[:, ~columns] == 0).all()
    for form in (pruned, by_parametrization(model, masks), by_torch(model, masks)):
        kernel = sgdsde.empirical_ntk(form, x)
        assert (kernel - expected).abs().max() < 2e-14 * expected.abs().max()


@pytest.mark.parametrize("form", [by_parametrization, by_torch])
def test_masks_of_other_tools_are_read_and_kept(form) -> None:
    model = dense((6, 8, 3), 0)
    masks = random_masks(model, 0.5)
    other = form(model, masks)
    read = pruning.Masks.of(other)
    assert [mask.tolist() for mask in read.values()] == [mask.tolist() for mask in masks.values()]
    further = pruning.prune(other, pruning.Magnitude(), 0.7)
    assert further.n_kept == round(0.3 * further.n_weights)
    assert all(bool((~mask | before).all()) for mask, before in zip(further.values(), masks.values()))
    twin = pruning.Masks(dict(zip(masks, further.values()))).apply(model)
    x = torch.randn(4, 6, dtype=torch.float64)
    assert torch.allclose(further.apply(other)(x), twin(x), rtol=1e-14)


def test_a_parametrization_that_is_no_mask_is_refused() -> None:
    model = dense((6, 8, 3), 0)
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(ValueError, match=r"layer '0' must be of plain weights"):
        pruning.prune(model, pruning.Magnitude(), 0.5)


def test_pruning_a_pruned_network_goes_on_from_there() -> None:
    model = dense((6, 8, 3), 0)
    half = pruning.prune(model, pruning.Random(), 0.5, seed=1)
    quarter = pruning.prune(half.apply(model), pruning.Random(), 0.75, seed=2)
    assert quarter.n_kept == round(0.25 * quarter.n_weights)
    assert all(bool((~quarter[name] | half[name]).all()) for name in half)
    problem = classification(model, 8, in_features=6, classes=3)
    assert pruning.Masks.of(half.apply(problem)) == half
    again = pruning.prune(half.apply(problem), pruning.SNIP(), 0.75)
    assert all(bool((~again[name] | half[name]).all()) for name in half)


def test_applying_leaves_the_model_alone_and_stores_zeros() -> None:
    model = dense((6, 8, 3), 0)
    before = copy.deepcopy(model.state_dict())
    masks = pruning.prune(model, pruning.Magnitude(), 0.5)
    pruned = masks.apply(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    stored = dict(pruned.network.named_parameters())
    assert all((stored[name][~mask] == 0).all() for name, mask in masks.items())


def test_momentum_and_decay_leave_removed_weights_at_zero() -> None:
    model = dense((6, 8, 3), 0, sigma_b=0.1)
    masks = pruning.prune(model, pruning.Magnitude(), 0.5)
    pruned = masks.apply(model)
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    x = torch.randn(4, 6, dtype=torch.float64)
    for _ in range(3):
        optimizer.zero_grad()
        pruned(x).square().mean().backward()
        optimizer.step()
    stored = dict(pruned.network.named_parameters())
    assert all((stored[name][~mask] == 0).all() for name, mask in masks.items())
    assert all((stored[name][mask] != 0).all() for name, mask in masks.items())


def test_a_pruned_problem_is_another_problem_and_trains_like_torch() -> None:
    model = dense((64, 20, 10), 0)
    problem = digits_classes(model, 32, 8)
    pruned = pruning.prune(problem, pruning.SNIP(), 0.8).apply(problem)
    assert pruned.digest != problem.digest
    assert pruned.n_test == 8
    sgd = sgdsde.SGD(0.1, 4)
    measured = sgdsde.run_ensemble(pruned, sgd, 5, 1, seed=3)
    network = copy.deepcopy(pruned.model)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for batch in sgdsde.sampling.batch_indices(sgd, 32, 5, seed=3, run=0):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(pruned.x_train[batch]), pruned.y_train[batch]).backward()
        optimizer.step()
    loss = nn.functional.cross_entropy(network(pruned.x_train), pruned.y_train)
    assert float(measured.train_loss.mean[-1]) == pytest.approx(loss.item(), rel=1e-12)


def test_saved_masks_are_read_back(tmp_path: Path) -> None:
    model = networks.CNN(1, 8, 4, 3, depth=2, dtype=torch.float64)
    masks = pruning.prune(model, pruning.SynFlow(), 0.7)
    masks.save(tmp_path / "masks.npz")
    read = pruning.Masks.load(tmp_path / "masks.npz")
    assert read == masks
    assert (read.n_live, read.disconnected_outputs) == (masks.n_live, masks.disconnected_outputs)
    assert list(read) == list(masks)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "masks.npz"
    pruning.Masks({"a": torch.ones(3, 3, dtype=torch.bool)}).save(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="a complete file written by"):
        pruning.Masks.load(path)
    np.savez(path, header=np.frombuffer(b'{"format_version": 99}', dtype=np.uint8))
    with pytest.raises(ValueError, match="format version 99; update sgdsde"):
        pruning.Masks.load(path)


def test_masks_of_another_model_are_refused() -> None:
    masks = pruning.prune(dense((6, 8, 3), 0), pruning.Random(), 0.5)
    with pytest.raises(ValueError, match=r"of shape \[8, 5\], as this model's, got \[8, 6\]"):
        masks.apply(dense((5, 8, 3), 0))
    with pytest.raises(ValueError, match=r"those of this model, of weights hidden.0.weight, read_out.weight, got"):
        masks.apply(networks.MLP(6, 8, 3))


def test_masks_must_be_bool() -> None:
    with pytest.raises(TypeError, match="a bool tensor, True = kept"):
        pruning.Masks({"a": torch.ones(2, 2)})
    with pytest.raises(ValueError, match="a mask of at least one weight"):
        pruning.Masks({})


def test_tied_weights_have_one_mask() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False)).double()
    model[2].weight = model[0].weight
    masks = pruning.prune(model, pruning.Magnitude(), 0.5)
    assert list(masks) == ["0.weight"]
    pruned, x = masks.apply(model), torch.randn(3, 4, dtype=torch.float64)
    weight = model[0].weight.detach() * masks["0.weight"]
    assert torch.allclose(pruned(x), torch.tanh(x @ weight.T) @ weight.T, rtol=1e-13)


def test_a_layer_called_twice_is_pruned_in_both_calls_every_time() -> None:
    shared = nn.Linear(4, 4, bias=False).double()
    model = nn.Sequential(shared, nn.Tanh(), shared)
    masks = pruning.prune(model, pruning.Magnitude(), 0.5)
    pruned, x = masks.apply(model), torch.randn(3, 4, dtype=torch.float64)
    weight = shared.weight.detach() * masks["0.weight"]
    for _ in range(2):
        assert torch.allclose(pruned(x), torch.tanh(x @ weight.T) @ weight.T, rtol=1e-13)
    assert isinstance(pruned.network[0].weight, nn.Parameter)


def test_frozen_weights_are_not_pruned() -> None:
    model = dense((6, 8, 3), 0)
    model[0].weight.requires_grad_(False)
    assert list(pruning.prune(model, pruning.Random(), 0.5)) == ["2.weight"]
    problem = classification(model, 8, in_features=6, classes=3)
    masks = pruning.prune(problem, pruning.Random(), 0.5)
    assert list(masks) == ["2.weight"]
    assert list(masks.apply(problem).params) == ["network.2.weight"]


def test_where_chooses_weights_and_counts_only_them() -> None:
    model = dense((6, 8, 3), 0)
    masks = pruning.prune(model, pruning.Random(), 0.5, where=lambda name: name.startswith("2"))
    assert masks.n_kept == 12
    assert masks.n_weights == 24
    pruned = masks.apply(model)
    assert torch.equal(dict(pruned.network.named_parameters())["0.weight"], model[0].weight)


def test_outputs_that_no_path_reaches_are_told() -> None:
    model = dense((4, 5, 3), 0)
    masks = {"0.weight": torch.ones(5, 4, dtype=torch.bool), "2.weight": torch.ones(3, 5, dtype=torch.bool)}
    masks["2.weight"][1] = False
    masks["0.weight"][:4] = False  # one hidden unit is left
    known = pruning.Masks(masks).with_paths_of(model)
    assert known.disconnected_outputs == (1,)
    assert known.n_live == 4 + 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pruning.Masks(masks).disconnected_outputs is None
