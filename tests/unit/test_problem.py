"""Bad problems are refused once, clearly, and good ones leave the user's model, data and random state alone."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from torch import nn

import sgdsde

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :2].tanh()
LABELS = torch.tensor([0, 1, 1, 0, 1, 0])
SHARES = torch.tensor([[0.25, 0.75]] * 6)


def mlp(dtype: torch.dtype = torch.float32) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.to(dtype)


def problem(model: object = None, x: object = X, y: object = Y, **words: object) -> sgdsde.Problem:
    return sgdsde.Problem(mlp() if model is None else model, x, y, **({"loss": nn.MSELoss()} | words))


def with_entry(tensor: torch.Tensor, value: float) -> torch.Tensor:
    changed = tensor.clone()
    changed[4, 1] = value
    return changed


# --------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"x": with_entry(X, float("nan"))}, ValueError, "x_train must be finite everywhere, got 1 NaN or infinite"),
        ({"x": with_entry(X, float("inf"))}, ValueError, "the first at index [4, 1]; remove or repair these examples"),
        ({"y": with_entry(Y, float("-inf"))}, ValueError, "y_train must be finite everywhere"),
        (
            {"x": X[:0], "y": Y[:0]},
            ValueError,
            "x_train must be non-empty, got shape [0, 4]; pass at least one example",
        ),
        ({"y": Y[:0]}, ValueError, "y_train must be non-empty"),
        ({"y": Y[:5]}, ValueError, "y_train must be as long as x_train, 6 rows, got 5 rows"),
        (
            {"x": X[:, :3]},
            ValueError,
            "x_train must be a batch that the model accepts, got shape [2, 3] of torch.float32",
        ),
        ({"x": X[:, :3]}, ValueError, "layer '0' (Linear) raised RuntimeError"),
        ({"x": X[0]}, ValueError, "as long as x_train, 4 rows"),
        ({"x": torch.tensor(1.0)}, ValueError, "x_train must be a tensor with one row an example, got a single number"),
        ({"y": Y[:, :1]}, ValueError, "y_train must be [6, 2], the shape of the model's outputs, got [6, 1]"),
        (
            {"y": Y[:, 0]},
            ValueError,
            "got [6]; let the model's last layer give 1 outputs, or pass 2 targets an example",
        ),
        ({"model": nn.Linear(4, 1), "y": Y[:, 0]}, ValueError, "got [6]; use y_train[:, None]"),
        ({"y": LABELS}, TypeError, "got torch.int64; for class labels use nn.CrossEntropyLoss()"),
        ({"y": Y.round().int()}, TypeError, "y_train must be floating-point under nn.MSELoss(), got torch.int32"),
        ({"y": Y.round().int()}, TypeError, "convert it with y_train.to(torch.float32)"),
        ({"y": Y.double()}, TypeError, "y_train must be of the model's dtype torch.float32, got torch.float64"),
        ({"x": X.double()}, TypeError, "use x_train.to(torch.float32) or model.to(torch.float64)"),
        ({"x": X.to(torch.complex64)}, TypeError, "x_train must be real, got torch.complex64"),
        ({"y": Y.to(torch.complex64)}, TypeError, "y_train must be real, got torch.complex64"),
        ({"x": X.to("meta")}, ValueError, "x_train must be on the model's device cpu, got meta; use x_train.to('cpu')"),
        ({"y": Y.to("meta")}, ValueError, "y_train must be on the model's device cpu, got meta"),
        ({"x": X.numpy()}, TypeError, "x_train must be a torch.Tensor, got ndarray; use torch.as_tensor(...)"),
        ({"x": X.tolist()}, TypeError, "x_train must be a torch.Tensor, got list"),
        ({"x_test": X}, ValueError, "y_test must be given together with x_test, got None; pass both or neither"),
        ({"y_test": Y}, ValueError, "x_test must be given together with y_test"),
        ({"x_test": X[:0], "y_test": Y[:0]}, ValueError, "x_test must be non-empty"),
        ({"x_test": X[:, :3], "y_test": Y}, ValueError, "x_test must be examples of shape [4] like x_train, got [3]"),
        ({"x_test": X, "y_test": with_entry(Y, float("nan"))}, ValueError, "y_test must be finite everywhere"),
        ({"x_test": X, "y_test": Y[:, 0]}, ValueError, "y_test must be [6, 2], the shape of the model's outputs"),
    ],
)
def test_bad_data_are_refused_by_name(words, error, message):
    with pytest.raises(error, match=re.escape(message)):
        problem(**words)


@pytest.mark.parametrize(
    ("loss", "y", "error", "message"),
    [
        (nn.MSELoss(reduction="sum"), Y, ValueError, "loss.reduction must be 'mean', got 'sum'; use reduction='mean'"),
        (nn.MSELoss(reduction="none"), Y, ValueError, "got 'none'"),
        (nn.CrossEntropyLoss(reduction="sum"), LABELS, ValueError, "multiply lr by the batch size"),
        (nn.CrossEntropyLoss(weight=torch.ones(2)), LABELS, ValueError, "loss.weight must be None, got class weights"),
        (nn.CrossEntropyLoss(ignore_index=1), LABELS, ValueError, "loss.ignore_index must be unused, got 1; remove"),
        (nn.MSELoss, Y, TypeError, "create the module, nn.MSELoss()"),
        (
            "mse",
            Y,
            TypeError,
            "loss must be a loss module or a function loss(outputs, targets), got 'mse'; use nn.MSELoss",
        ),
        (nn.CrossEntropyLoss(), LABELS[:, None], ValueError, "y_train must be class indices [n], got [6, 1]"),
        (nn.CrossEntropyLoss(), LABELS + 1, ValueError, "class indices in [0, 2), got values in [1, 2]"),
        (nn.CrossEntropyLoss(), LABELS - 1, ValueError, "class indices in [0, 2), got values in [-1, 0]"),
        (nn.CrossEntropyLoss(), LABELS.float(), ValueError, "got [6]; for class indices use .long()"),
        (nn.CrossEntropyLoss(), LABELS.bool(), TypeError, "int64 class indices or probabilities, got torch.bool"),
        (nn.CrossEntropyLoss(), Y, ValueError, "probabilities that add up to 1"),
        (nn.CrossEntropyLoss(), with_entry(SHARES, 0.3), ValueError, "probabilities that add up to 1"),
        (nn.CrossEntropyLoss(), 4 * SHARES - 1.5, ValueError, "probabilities that add up to 1"),
        (nn.CrossEntropyLoss(), SHARES[:, :1], ValueError, "class probabilities [n, 2], got [6, 1]"),
        (nn.CrossEntropyLoss(), SHARES[:, None], ValueError, "class probabilities [n, 2], got [6, 1, 2]"),
    ],
)
def test_bad_losses_and_targets_are_refused(loss, y, error, message):
    with pytest.raises(error, match=re.escape(message)):
        problem(y=y, loss=loss)


# -------------------------------------------------------------------------------------------------- effects


def everything(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_nothing_of_the_user_is_touched():
    model = nn.Sequential(mlp(), nn.BatchNorm1d(2), nn.Dropout(0.5)).eval()
    model[0].train()
    model[0][0].bias.requires_grad_(False)
    x, y = X.clone(), Y.clone()
    before, training = everything(model), [layer.training for layer in model.modules()]
    trainable = [value.requires_grad for value in model.parameters()]
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    made = problem(model, x, y, x_test=x[:2], y_test=y[:2])
    sgd = sgdsde.SGD(lr=0.01, batch_size=2, momentum=0.5)
    sgdsde.predict(made, sgd, 3)
    sgdsde.run_ensemble(made, sgd, 3, 2)
    sgdsde.empirical_ntk(model, x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert training == [layer.training for layer in model.modules()]
    assert trainable == [value.requires_grad for value in model.parameters()]
    assert all(value.grad is None for value in model.parameters())
    assert torch.equal(x, X)
    assert torch.equal(y, Y)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002


def test_a_problem_keeps_the_weights_it_was_made_with():
    model = mlp()
    made = problem(model)
    digest, outputs = made.digest, made.forward(made.params, X)
    with torch.no_grad():
        model[0].weight.zero_()
    assert torch.equal(made.forward(made.params, X), outputs)
    assert problem(copy.deepcopy(mlp())).digest == digest
    assert problem(model).digest != digest


def test_the_digest_knows_data_targets_loss_and_weights():
    made = problem()
    frozen = mlp()
    frozen[0].bias.requires_grad_(False)
    others = [
        problem(x=with_entry(X, 0.5)),
        problem(y=with_entry(Y, 0.5)),
        problem(x_test=X, y_test=Y),
        problem(x=X.double(), y=Y.double(), model=mlp(torch.float64)),
        problem(frozen),
        problem(y=LABELS, loss=nn.CrossEntropyLoss()),
        problem(y=LABELS, loss=nn.CrossEntropyLoss(label_smoothing=0.1)),
    ]
    digests = {made.digest, *(other.digest for other in others)}
    assert len(digests) == 1 + len(others)
    assert made.digest == problem().digest


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_digest_does_not_depend_on_the_layout_in_memory(dtype):
    x, y = X.to(dtype), Y.to(dtype)
    made = problem(mlp(dtype), x, y)
    assert problem(mlp(dtype), x.T.contiguous().T, y.T.contiguous().T).digest == made.digest
    column = nn.Linear(4, 1).to(dtype)
    assert problem(column, x, y[:, :1]).digest == problem(column, x, y[:, :1].clone()).digest


def test_a_problem_says_what_it_is():
    made = problem(x_test=X[:3], y_test=Y[:3])
    assert (made.n_train, made.n_test, made.n_outputs, made.dtype) == (6, 3, 2, torch.float32)
    assert "n_train=6, n_test=3, n_outputs=2, n_params=37, loss=MSELoss" in repr(made)
    with pytest.raises(AttributeError):
        made.x_train = X  # type: ignore[misc]


def test_a_single_example_is_a_problem():
    made = problem(x=X[:1], y=Y[:1])
    assert sgdsde.predict(made, sgdsde.SGD(0.01, 1), 2).train_loss.mean.shape == (3,)


def test_targets_that_need_gradients_are_data():
    x = X.clone().requires_grad_()
    made = problem(x=x, y=Y.clone().requires_grad_())
    trajectory = sgdsde.run_ensemble(made, sgdsde.SGD(0.01, 2), 2, 2)
    assert not trajectory.train_loss.mean.requires_grad
    assert not sgdsde.predict(made, sgdsde.SGD(0.01, 2), 2).train_loss.mean.requires_grad
    assert x.grad is None
