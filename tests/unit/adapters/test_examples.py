"""What a torch script trains on: the examples of its loaders, in order; and what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    SubsetRandomSampler,
    TensorDataset,
)

from sgdsde import Problem
from tests.torch_scripts import N, Stream, data, loader, model


def test_examples_come_in_the_order_of_the_data_set():
    x, y = data().tensors
    problem = Problem.from_loader(model(), loader(), DataLoader(data(5), batch_size=2), loss=nn.MSELoss())
    assert torch.equal(problem.x_train, x)
    assert torch.equal(problem.y_train, y)
    assert problem.n_test == 5
    same = Problem(model(), x, y, loss=nn.MSELoss(), x_test=data(5).tensors[0], y_test=data(5).tensors[1])
    assert problem.digest == same.digest


def test_examples_take_the_dtype_of_the_model_and_labels_become_int64():
    pairs = [(row.numpy(), int(i % 2)) for i, row in enumerate(data().tensors[0])]
    train = DataLoader(pairs, batch_size=3, shuffle=True)
    problem = Problem.from_loader(model(torch.float32), train, loss=nn.CrossEntropyLoss())
    assert (problem.x_train.dtype, problem.y_train.dtype) == (torch.float32, torch.int64)
    narrow = TensorDataset(data().tensors[0], torch.ones(N, dtype=torch.int8))
    assert Problem.from_loader(model(), DataLoader(narrow), loss=nn.CrossEntropyLoss()).y_train.dtype == torch.int64
    function = (lambda params, x: x @ params["w"], {"w": torch.ones(3, 2)})
    assert Problem.from_loader(function, loader(), loss=nn.MSELoss()).y_train.dtype == torch.float32


class Augmented(Dataset):
    """The example of index 7 gets fresh noise at every access."""

    def __init__(self) -> None:
        self.noise = np.random.default_rng(0)

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int):
        x, y = data()[i]
        return (x + float(self.noise.standard_normal()) if i == 7 else x), y


class Dicts(Augmented):
    def __getitem__(self, i: int):
        return {"image": torch.ones(3), "label": i}


class Ragged(Augmented):
    def __getitem__(self, i: int):
        return torch.ones(2 + i // 5), torch.ones(2)


def padded(examples):
    size = max(len(x) for x, _ in examples)
    return torch.stack([nn.functional.pad(x, (0, size - len(x))) for x, _ in examples]), torch.ones(len(examples), 2)


def mixed(examples):
    x = torch.stack([x for x, _ in examples])
    return x + 0.1 * x.mean(0), torch.stack([y for _, y in examples])


def jittered(examples, noise=np.random.default_rng(0)):  # noqa: B008
    x = torch.stack([x for x, _ in examples])
    return x * float(noise.random()), torch.stack([y for _, y in examples])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: DataLoader(Augmented()),
            "must be the same at each access, got another example 7 when fetched a second time",
        ),
        (lambda: DataLoader(Dicts()), "pairs of tensors (x, y), got a dict with keys 'image', 'label'; return pairs"),
        (
            lambda: DataLoader(TensorDataset(torch.ones(4, 3))),
            "must be pairs of tensors (x, y), got 1 items: a tensor [4, 3]",
        ),
        (
            lambda: DataLoader(Stream()),
            "train_loader.dataset must be a data set with a length and an index, got the Iter",
        ),
        (lambda: DataLoader(data(), collate_fn=mixed), "got a batch in which example 0 is not what it is alone"),
        (
            lambda: DataLoader(data(), collate_fn=jittered),
            "collate_fn must be deterministic, got two different batches",
        ),
        (
            lambda: DataLoader(Ragged(), collate_fn=padded),
            "got a batch in which example 0 is not what it is alone; use the",
        ),
        (
            lambda: DataLoader(data(), sampler=SubsetRandomSampler(range(5))),
            "train_loader.sampler must be a RandomSampler",
        ),
        (lambda: data(), "train_loader must be a torch.utils.data.DataLoader, got TensorDataset"),
        (
            lambda: DataLoader(data(), batch_size=None),
            "train_loader.batch_size must be a whole number, got batch_size=None",
        ),
        (lambda: DataLoader([]), "train_loader.dataset must be non-empty, got no examples"),
    ],
)
def test_examples_that_cannot_be_read_are_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        Problem.from_loader(model(), make(), loss=nn.MSELoss())


def test_flat_targets_under_squared_error_are_refused_as_by_problem():
    flat = TensorDataset(data().tensors[0], torch.ones(N, dtype=torch.float64))
    with pytest.raises(ValueError, match=re.escape("use y_train[:, None]")):
        Problem.from_loader(nn.Linear(3, 1).double(), DataLoader(flat), loss=nn.MSELoss())
