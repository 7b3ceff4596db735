"""Objects of the library from the options of the command line."""

from __future__ import annotations

import ast
import math
from typing import Any

import torch
from torch import nn

import sgdsde
from sgdsde import datasets, dynamics, networks, stability
from sgdsde._checks import complaint, positive_number
from sgdsde.cli.options import ComputeOptions, DataOptions, NetworkOptions, TrainingOptions
from sgdsde.sweeps import LimitFraction

LOSSES = {"mse": nn.MSELoss, "ce": nn.CrossEntropyLoss, "logistic": nn.SoftMarginLoss, "huber": nn.HuberLoss}
TARGETS = {"mse": ("sign", "onehot"), "ce": ("class",), "logistic": ("sign",), "huber": ("sign", "onehot")}
"""Targets that fit a loss; auto is the first."""


def build_problem(data: DataOptions, network: NetworkOptions, compute: ComputeOptions, loss: str) -> sgdsde.Problem:
    """The data, the initialized network and the loss."""
    if not 0 <= compute.seed < 2**63:
        raise ValueError(complaint("--seed", "between 0 and 2^63 - 1", compute.seed))
    device = _device(compute.device)
    examples = build_dataset(data, compute, loss, flatten=network.network != "cnn").to(device=device)
    model = build_network(network, examples, compute, device)
    return sgdsde.Problem(model, **examples.tensors(), loss=LOSSES[loss]())


def build_dataset(data: DataOptions, compute: ComputeOptions, loss: str, *, flatten: bool) -> datasets.Dataset:
    target = data.target if data.target != "auto" else TARGETS[loss][0]
    if target not in TARGETS[loss]:
        remedy = f"use {' or '.join(TARGETS[loss])}, or another loss"
        raise ValueError(complaint("--target", f"one that fits --loss {loss}", target, remedy))
    words: dict[str, Any] = {"dtype": getattr(torch, compute.dtype), "seed": compute.seed}
    if data.data == "synthetic":
        if not flatten:
            raise ValueError(complaint("--network", "mlp or resnet for synthetic data", "cnn", "use images"))
        if loss not in ("mse", "huber") or data.target not in ("auto", "sign"):
            expected = "mse or huber for synthetic data"
            raise ValueError(complaint("--loss", expected, f"--loss {loss} --target {target}"))
        return datasets.synthetic(data.n_train, data.n_test, data.in_features, **words)
    words |= {"target": target, "flatten": flatten, "image_size": data.image_size or None}
    source = {"digits": datasets.digits, "mnist": datasets.mnist, "cifar10": datasets.cifar10}[data.data]
    return source(data.n_train, data.n_test, **words)


def build_network(
    options: NetworkOptions, examples: datasets.Dataset, compute: ComputeOptions, device: torch.device
) -> networks.Network:
    if options.width >= 2**31:
        raise ValueError(complaint("--width", "below 2^31", options.width))
    words: dict[str, Any] = {
        "depth": options.depth,
        "activation": options.activation,
        "parametrization": options.parametrization,
        "sigma_w": options.sigma_w,
        "sigma_b": options.sigma_b,
        "dtype": getattr(torch, compute.dtype),
        "device": device,
        "generator": torch.Generator().manual_seed(compute.seed),
    }
    if options.network == "cnn":
        channels, size = examples.x_train.shape[1:3]
        return networks.CNN(channels, size, options.width, examples.out_features, **words)
    kind = networks.MLP if options.network == "mlp" else networks.ResNet
    return kind(examples.in_features, options.width, examples.out_features, **words)


def build_sgd(options: TrainingOptions, lr: float = 1.0) -> sgdsde.SGD:
    """The SGD; without ``lr`` to have every other word checked before anything is computed."""
    return sgdsde.SGD(
        lr,
        options.batch_size,
        momentum=options.momentum,
        dampening=options.dampening,
        nesterov=options.nesterov,
        weight_decay=options.weight_decay,
        sampling=options.sampling,
        drop_last=options.drop_last,
        label_noise_std=options.label_noise_std,
    )


def parse_lr(options: TrainingOptions, option: str = "--lr") -> float | LimitFraction:
    """Learning rate of ``--lr``: a number, or "half" and "0.8x" as parts of the mean-square limit."""
    text = options.lr.strip().lower()
    part = "0.5" if text == "half" else text[:-1] if text.endswith("x") else None
    remedy = "write 0.1, half or 0.8x"
    try:
        number = positive_number(option, float(text if part is None else part), remedy)
    except ValueError:
        raise ValueError(complaint(option, "a positive number, or a part of the limit", options.lr, remedy)) from None
    return number if part is None else LimitFraction(number)


def resolve_lr(
    rate: float | LimitFraction, options: TrainingOptions, linearization: sgdsde.Linearization
) -> tuple[float, str]:
    """The learning rate as a number and in words."""
    if not isinstance(rate, LimitFraction):
        return rate, f"lr = {rate:.6g}"
    limit = stability.max_lr_of(linearization, build_sgd(options))
    of = " of batches drawn without replacement" if options.sampling == "shuffled" else ""
    of += "" if options.loss == "mse" else " of the quadratic at the initial outputs"
    if limit == math.inf:
        received = f"{options.lr}, a part of an infinite limit: the kernel is zero, and no learning rate is too large"
        raise ValueError(complaint("--lr", "a number", received, "write 0.1"))
    lr = rate.fraction * limit
    return lr, f"lr = {lr:.6g}, {rate.fraction:g} of the mean-square limit {limit:.6g}{of}"


def build_dynamics(text: str) -> dynamics.Dynamics | None:
    """The dynamics that a name or a call such as ``MomentEquations(order=1)`` means; None for auto."""
    if text == "auto":
        return None
    known = {name: getattr(dynamics, name) for name in dynamics.__all__ if name not in ("Dynamics", "OutputLaw")}
    choices = {name: kind for name, kind in known.items() if _is_dynamics(kind)}
    expected = f"one of {', '.join(choices)}, perhaps with arguments"

    def built(node: ast.expr) -> Any:
        if isinstance(node, ast.Name) and node.id in known:
            return known[node.id]()
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in known:
            words = {word.arg: built(word.value) for word in node.keywords if word.arg}
            return known[node.func.id](*map(built, node.args), **words)
        return ast.literal_eval(node)

    try:
        result = built(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        # Python's own words about the expression help nobody; those of a constructor do.
        own = isinstance(error, ValueError | TypeError) and " must be " in str(error)
        said = f"{text!r}, of which {error}" if own else repr(text)
        raise ValueError(complaint("--dynamics", expected, said)) from None
    if not isinstance(result, dynamics.Dynamics):
        raise ValueError(complaint("--dynamics", expected, repr(text)))
    return result


def _is_dynamics(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, dynamics.Dynamics)


def _device(name: str) -> torch.device:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        received = f"{name} ({str(error).splitlines()[0]})"
        raise ValueError(complaint("--device", "a device that torch can use here", received, "use cpu")) from None
    return torch.device(name)
