"""Small problems, one catalogue for all laws.

``LINEAR`` holds models linear in their weights, where the theory is exact: one, two and three outputs, kernels of full
rank, kernels with a null space, and an input that is there twice. ``AFFINE`` adds a part that no weight moves, so that
J theta_0 is not f_0. Below them nonlinear networks. All in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import sgdsde


def linear_outputs(params: dict[str, Tensor], x: Tensor) -> Tensor:
    """f(theta, x) = x theta for x [n, c, p]: every kernel [n*c, n*c] can be had this way."""
    return x @ params["theta"]


def affine_outputs(params: dict[str, Tensor], x: Tensor) -> Tensor:
    """x theta and a constant part, different for every example and output."""
    return x @ params["theta"] + torch.cos(3 * x.sum(-1))


@dataclass(frozen=True)
class Case:
    """A linear problem and what is known of it: the number of weights p, and the rank of its kernel."""

    name: str
    n_train: int
    n_outputs: int
    n_weights: int
    duplicated: bool = False
    n_test: int = 3
    affine: bool = False

    @property
    def rank(self) -> int:
        """Of the kernel, for the generic features that are drawn."""
        distinct = self.n_train - int(self.duplicated)
        return min(distinct * self.n_outputs, self.n_weights)

    def problem(self) -> sgdsde.Problem:
        rng = np.random.default_rng([self.n_train, self.n_outputs, self.n_weights, int(self.duplicated)])
        c, p = self.n_outputs, self.n_weights
        features = rng.normal(size=(self.n_train + self.n_test, c, p)) * rng.lognormal(sigma=0.4, size=p) / p**0.5
        if self.duplicated:
            features[1] = features[0]
        targets = rng.normal(size=(self.n_train + self.n_test, c))
        model = affine_outputs if self.affine else linear_outputs
        return linear_problem(features, targets, rng.normal(size=p), n_train=self.n_train, model=model)


def linear_problem(
    features: np.ndarray | list,
    targets: np.ndarray | list,
    start: np.ndarray | list,
    *,
    n_train: int | None = None,
    model: Callable[[dict[str, Tensor], Tensor], Tensor] = linear_outputs,
) -> sgdsde.Problem:
    """Features [n + m, c, p], targets [n + m, c], initial weights [p]; the first n rows are the training set."""
    x, y, theta = (torch.as_tensor(np.array(value, dtype=np.float64)) for value in (features, targets, start))
    n = len(x) if n_train is None else n_train
    test = {"x_test": x[n:], "y_test": y[n:]} if n < len(x) else {}
    return sgdsde.Problem((model, {"theta": theta}), x[:n], y[:n], loss=nn.MSELoss(), **test)


LINEAR = (
    Case("one output", 4, 1, 6),
    Case("one output, duplicated input", 4, 1, 6, duplicated=True),
    Case("one output, null space", 4, 1, 2),
    Case("two outputs", 4, 2, 9),
    Case("two outputs, null space", 4, 2, 5),
    Case("two outputs, duplicated input", 4, 2, 9, duplicated=True),
    Case("three outputs, null space", 4, 3, 7),
)
"""Four examples each: every batch, and every sequence of three batches, can be enumerated."""

AFFINE = (
    Case("one output, constant part, null space", 4, 1, 2, affine=True),
    Case("two outputs, constant part", 4, 2, 9, affine=True),
    Case("two outputs, constant part, null space", 4, 2, 5, affine=True),
)

BY_NAME = {case.name: case for case in LINEAR + AFFINE}

LARGER = Case("24 examples, two outputs, null space", 24, 2, 30, n_test=8)
"""For statistics over thousands of runs."""


def seeded_module(build: type[nn.Module] | object, seed: int) -> nn.Module:
    """A module built by a callable under a seed of its own; torch's global stream is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return build().double()  # type: ignore[operator]


def on(device: str, problem: sgdsde.Problem) -> sgdsde.Problem:
    """The problem on a device."""
    model = problem.model
    if isinstance(model, nn.Module):
        model = copy.deepcopy(model).to(device)
    else:
        model = (model[0], {name: value.to(device) for name, value in model[1].items()})
    names = ("x_train", "y_train", "x_test", "y_test")
    data = {name: value.to(device) for name in names if (value := getattr(problem, name)) is not None}
    return sgdsde.Problem(model, **data, loss=problem.loss)


def mlp_problem(*, dtype: torch.dtype = torch.float64, n_train: int = 7, n_outputs: int = 2) -> sgdsde.Problem:
    """A tanh network with biases, squared error, a test set."""
    model = seeded_module(
        lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.GELU(), nn.Linear(4, n_outputs)), 1
    )
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.normal(size=(n_train + 4, 3))).to(dtype)
    y = torch.from_numpy(rng.normal(size=(n_train + 4, n_outputs))).to(dtype)
    n = n_train
    return sgdsde.Problem(model.to(dtype), x[:n], y[:n], loss=nn.MSELoss(), x_test=x[n:], y_test=y[n:])


def conv_problem(*, dtype: torch.dtype = torch.float64) -> sgdsde.Problem:
    """A convolution with padding, a pooling, a dense read-out; squared error."""
    model = seeded_module(
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 2, bias=False)
        ),
        2,
    )
    rng = np.random.default_rng(2)
    x = torch.from_numpy(rng.normal(size=(9, 2, 4, 4))).to(dtype)
    y = torch.from_numpy(rng.normal(size=(9, 2))).to(dtype)
    return sgdsde.Problem(model.to(dtype), x[:7], y[:7], loss=nn.MSELoss(), x_test=x[7:], y_test=y[7:])


def classification_problem(*, dtype: torch.dtype = torch.float64, label_smoothing: float = 0.0) -> sgdsde.Problem:
    """Three classes under cross-entropy."""
    model = seeded_module(lambda: nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 3)), 3)
    rng = np.random.default_rng(3)
    x = torch.from_numpy(rng.normal(size=(10, 3))).to(dtype)
    y = torch.from_numpy(rng.integers(0, 3, size=10))
    loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
    return sgdsde.Problem(model.to(dtype), x[:7], y[:7], loss=loss, x_test=x[7:], y_test=y[7:])


def digits_problem(n_train: int = 48, *, width: int = 128, n_test: int = 0) -> sgdsde.Problem:
    """Digits, centered per pixel, target +-1 (digit < 5), a ReLU network in NTK parametrization, in float64."""
    data = sgdsde.datasets.digits()
    x = (data.x_train - data.x_train.mean(0)).double().flatten(1)
    label = data.y_train.argmax(1) if data.y_train.ndim == 2 else data.y_train
    y = torch.where(label < 5, 1.0, -1.0).double()[:, None]
    generator = torch.Generator().manual_seed(0)
    model = sgdsde.networks.MLP(x.shape[1], width, 1, dtype=torch.float64, generator=generator)
    n, stop = n_train, n_train + n_test
    test = {"x_test": x[n:stop], "y_test": y[n:stop]} if n_test else {}
    return sgdsde.Problem(model, x[:n], y[:n], loss=nn.MSELoss(), **test)
