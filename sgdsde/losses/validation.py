"""Validation of a loss: a deterministic mean over examples with finite derivatives."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from sgdsde._checks import complaint
from sgdsde.losses.base import in_dtype
from sgdsde.losses.general import TorchLoss
from sgdsde.losses.smoothness import find_kink

SMOOTH = (
    nn.BCEWithLogitsLoss,
    nn.HuberLoss,
    nn.KLDivLoss,
    nn.MultiLabelSoftMarginLoss,
    nn.NLLLoss,
    nn.PoissonNLLLoss,
    nn.SmoothL1Loss,
    nn.SoftMarginLoss,
)
"""Twice differentiable but on sets that no path stays on; Huber's second derivative jumps and is bounded."""

TARGETS_TRIED = 6
"""Rows of the targets around which kinks are looked for."""

FORM = "a function loss(outputs, targets) to one number"
REMEDY = "pass a function of these two, in float64 too, that returns the mean over the examples"


def examine(loss: TorchLoss, outputs: Tensor, y_train: Tensor, y_test: Tensor | None) -> TorchLoss:
    """The validated loss, with its fingerprint and the state of its second derivative.

    Args:
        outputs: of a few training examples, [., c]; the loss must be defined between them, and is tried around them.
        y_train, y_test: all targets; the mean over examples is checked on every one of them, because a loss may treat
            some by rules of their own (an ignored class, a mask).
    Raises:
        ValueError: it fails, is no single finite number, is random, no mean over examples, cannot be vectorized, has
            no finite gradient, or none at all. TypeError: what it returns is no tensor.
    Cost: some passes over outputs of the size of the targets. Kinks are looked for when a Hessian is asked for.
    """
    for name, targets in (("y_train", y_train), ("y_test", y_test)):
        if targets is not None:
            targets = _double(targets)
            near = _between(outputs, len(targets))
            gradients = [_check_mean(loss, name, near, targets)]
            around = _around(near)
            if _is_defined(loss, around, targets):
                gradients.append(_check_mean(loss, name, around, targets))
            if len(gradients) == 1 or not _is_defined(loss, 2 * near - around, targets):
                loss = replace(loss, has_domain=True)
            if not any(bool(gradient.abs().max() > 1e-14) for gradient in gradients):
                raise ValueError(_constant(loss, outputs.shape[1]))
            if name == "y_train" and len(gradients) == 2 and _same(*gradients):
                loss = replace(loss, is_linear=_is_linear(loss, near, targets))
    if type(loss.loss) not in SMOOTH or getattr(loss.loss, "beta", 1.0) == 0:
        search = partial(find_kink, targets=_distinct(_double(y_train)), n_outputs=outputs.shape[1])
        loss = replace(loss, find_kink=search)
    return replace(loss, find_values=partial(_values, outputs=outputs, targets=y_train))


def _is_linear(loss: TorchLoss, near: Tensor, targets: Tensor) -> bool:
    """Whether the gradient is the same far beyond all targets on both sides; that of |f - y| only seems so near by."""
    size = float(near.abs().max()) + (float(targets.abs().max()) if targets.is_floating_point() else 0.0)
    far = near + 10 * (1 + size)
    if not all(_is_defined(loss, at, targets) for at in (far, -far)):
        return True
    return _same(loss.gradient(far, targets), loss.gradient(-far, targets))


def _same(first: Tensor, second: Tensor) -> bool:
    return float((first - second).abs().max()) <= 1e-12 * float(first.abs().max())


def _constant(loss: TorchLoss, n_outputs: int) -> str:
    remedy = "for two classes and one output use nn.BCEWithLogitsLoss()" if n_outputs == 1 else "check its arguments"
    return complaint("loss", "one that depends on the outputs", f"{loss.name}, of zero gradient everywhere", remedy)


def _check_mean(loss: TorchLoss, name: str, outputs: Tensor, targets: Tensor) -> Tensor:
    """The gradient [n, c] at these outputs; raises ``ValueError`` where the loss is no mean over examples."""
    value = _value(loss, name, outputs, targets)
    if float(_value(loss, name, outputs, targets)) != float(value):
        raise ValueError(complaint("loss", "deterministic", f"{loss.name} with two values on the same outputs"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            each, gradient = loss.per_example(outputs, targets), loss.gradient(outputs, targets)
    except Exception as error:
        remedy = "compute it without branches that depend on the data (torch.where) and without changes in place"
        received = f"{loss.name}, which fails there: {_first_line(error)}"
        raise ValueError(
            complaint("loss", "computable for one example at a time by torch.func.vmap", received, remedy)
        ) from error
    _check_place(loss, name, float(value), each, gradient)
    return gradient


def _check_place(loss: TorchLoss, name: str, value: float, each: Tensor, gradient: Tensor) -> None:
    if not abs(float(each.mean()) - value) <= 1e-9 * max(float(each.abs().mean()), 1e-300):
        received = f"{loss.name}, {value:.6g} on {name} where its examples alone average {float(each.mean()):.6g}"
        remedy = "weights of classes or batches, ignored targets and terms that couple examples are no such mean"
        raise ValueError(complaint("loss", "the mean of its values on the single examples", received, remedy))
    if not torch.isfinite(gradient).all():
        received = f"{loss.name}, not finite at example {int((~torch.isfinite(gradient)).nonzero()[0, 0])} of {name}"
        raise ValueError(complaint("the gradient of the loss", "finite", received))
    if not gradient.any() and float(each.max() - each.min()) > 0:
        remedy = "remove detach(), argmax or rounding from it"
        raise ValueError(complaint("loss", "differentiable in the outputs", f"{loss.name}, of zero gradient", remedy))


def _value(loss: TorchLoss, name: str, outputs: Tensor, targets: Tensor) -> Tensor:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value = loss.mean(outputs, targets)
        except Exception as error:
            received = f"{loss.name}, which fails on outputs {list(outputs.shape)} and {name} "
            received += f"{list(targets.shape)} ({targets.dtype}): {_first_line(error)}"
            raise ValueError(complaint("loss", FORM, received, REMEDY)) from error
    told = [str(warning.message) for warning in caught if "broadcast" in str(warning.message)]
    if told:
        received = f"{list(outputs.shape)} and {list(targets.shape)}"
        raise ValueError(complaint(f"outputs and {name}", "of one shape", received, _first_line(told[0])))
    if not isinstance(value, Tensor):
        raise TypeError(complaint("loss", FORM, f"{type(value).__name__} from {loss.name}", "return a tensor"))
    if value.numel() != 1 or value.is_complex():
        raise ValueError(complaint("loss", FORM, f"a tensor {list(value.shape)} from {loss.name}", "return the mean"))
    if not math.isfinite(float(value)):
        raise ValueError(
            complaint("loss", f"finite at the initial outputs on {name}", f"{float(value)} from {loss.name}")
        )
    return value


def _between(outputs: Tensor, count: int) -> Tensor:
    """Irregular points of the segment between two of the outputs, [count, c]: nowhere is a convex domain left."""
    outputs = outputs.detach().double()
    place = torch.arange(1, count + 1, dtype=torch.float64, device=outputs.device)[:, None] * 0.6180339887498949 % 1
    return torch.lerp(outputs[:1], outputs[-1:], place)


def _around(outputs: Tensor) -> Tensor:
    """Outputs moved apart by draws of their own size and more: those of a fresh network may all be the same."""
    stream = torch.Generator().manual_seed(1)
    draws = torch.randn(outputs.shape, generator=stream, dtype=torch.float64).to(outputs.device)
    return outputs + (1 + outputs.abs().mean()) * draws


def _is_defined(loss: TorchLoss, outputs: Tensor, targets: Tensor) -> bool:
    """Whether the loss is a finite number there: some have a domain, which fresh outputs lie in."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return math.isfinite(float(loss.mean(outputs, targets)))
    except (RuntimeError, ValueError):
        return False


def _values(loss: TorchLoss, outputs: Tensor, targets: Tensor) -> str:
    """The loss on fixed outputs near and far, to six digits."""
    rows = min(len(targets), 64)
    stream = torch.Generator().manual_seed(0)
    draws = torch.randn(rows, outputs.shape[1], generator=stream, dtype=torch.float64).to(outputs.device)
    values = []
    for scale in (0.1, 1.0, 10.0, 100.0):
        try:
            values.append(f"{float(loss.mean(scale * draws, _double(targets[:rows]))):.5e}")
        except Exception:
            values.append("undefined")
    return " ".join(values)


def _distinct(targets: Tensor) -> Tensor:
    if targets.ndim == 1:
        targets = targets.unique()
    return targets[:TARGETS_TRIED]


def _double(targets: Tensor) -> Tensor:
    return in_dtype(targets, torch.float64)


def _first_line(error: object) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
