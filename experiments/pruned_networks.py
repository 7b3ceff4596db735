"""Networks on digits, MNIST and CIFAR-10 that several figures prune, and their training by torch."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, nn

import sgdsde
from experiments.frame import device
from sgdsde import datasets, networks, pruning

EDGE = {"relu": (2**0.5, 0.0), "tanh": (1.304146, 0.2)}
"""(sigma_w, sigma_b) on the edge of chaos."""

INPUT_SCALE = {"relu": 1.0, "tanh": 0.512079**0.5}
"""What makes the variance of the first layer that of the edge, for inputs of mean square one."""


def network(
    activation: str, depth: int, width: int, seed: int, *, in_features: int, residual: str | None = None
) -> networks.Network:
    """Ten outputs, standard parametrization, on the edge of chaos; a residual network if its scaling is given."""
    sigma_w, sigma_b = EDGE[activation]
    words = {
        "depth": depth,
        "activation": activation,
        "sigma_w": sigma_w,
        "sigma_b": sigma_b,
        "parametrization": "standard",
        "device": device(),
        "generator": torch.Generator().manual_seed(seed),
    }
    if residual is not None:
        return networks.ResNet(in_features, width, 10, scaling=residual, **words)  # type: ignore[arg-type]
    return networks.MLP(in_features, width, 10, **words)  # type: ignore[arg-type]


def problem_of(model: nn.Module, data: datasets.Dataset, scale: float = 1.0) -> sgdsde.Problem:
    """The examples, scaled, with their classes under cross-entropy."""
    tensors = data.to(device=device()).tensors()
    tensors |= {name: scale * tensors[name] for name in ("x_train", "x_test")}
    return sgdsde.Problem(model, **tensors, loss=nn.CrossEntropyLoss())


def masks_of(
    problem: sgdsde.Problem, criterion: pruning.Criterion, sparsity: float, n_examples: int, **words: object
) -> pruning.Masks:
    """Masks, without the warnings: collapse is what the figures show."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pruning.PruningWarning)
        return pruning.prune(problem, criterion, sparsity, n_examples=n_examples, **words)  # type: ignore[arg-type]


def rescaled(pruned: sgdsde.Problem, how: str) -> sgdsde.Problem:
    """The pruned problem itself for ``"none"``."""
    return pruned if how == "none" else pruning.rescale_to_edge_of_chaos(pruned, normalizer=how)  # type: ignore[call-overload]


def accuracy_after(
    problem: sgdsde.Problem, optimizer: str, lr: float, n_steps: int, *, batch_size: int = 64, seed: int = 7
) -> float:
    """Share of right answers on the test set after training by ``torch.optim.Adam`` or SGD with momentum .9."""
    model = copy.deepcopy(problem.model)
    kinds = {"adam": lambda p: torch.optim.Adam(p, lr=lr), "sgd": lambda p: torch.optim.SGD(p, lr=lr, momentum=0.9)}
    stepper = kinds[optimizer]([value for value in model.parameters() if value.requires_grad])
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n_steps):
        batch = torch.randint(problem.n_train, (batch_size,), generator=generator).to(problem.device)
        stepper.zero_grad()
        nn.functional.cross_entropy(model(problem.x_train[batch]), problem.y_train[batch]).backward()
        stepper.step()
    assert problem.x_test is not None
    assert problem.y_test is not None
    return right_answers(model, problem.x_test, problem.y_test)


def right_answers(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of the examples whose largest output is that of the class; 0 for outputs that are not finite."""
    with torch.no_grad():
        outputs = torch.cat([model(block) for block in x.split(512)])
    return float((outputs.argmax(1) == y).double().mean()) if bool(torch.isfinite(outputs).all()) else 0.0
