"""Any torch loss that is a mean over examples, with the derivatives that automatic differentiation finds."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vjp, vmap

from sgdsde._checks import complaint, finite_entries
from sgdsde.losses.base import Loss, largest_entries, reshaping

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
PROBABILITIES = (nn.KLDivLoss,)
ZERO_ONE = (nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss)
SIGNS = (nn.SoftMarginLoss,)
ELEMENTWISE = (nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.PoissonNLLLoss, nn.KLDivLoss, nn.SoftMarginLoss)
"""Losses that would broadcast targets of another shape, or warn and do it."""


BOUNDED_BELOW: dict[object, tuple[float, float, str]] = {
    nn.BCEWithLogitsLoss: (0.0, 1.0, "code the classes as 0 and 1, or use nn.SoftMarginLoss() for -1 and 1"),
    nn.functional.binary_cross_entropy_with_logits: (0.0, 1.0, "code the classes as 0 and 1"),
    nn.PoissonNLLLoss: (0.0, torch.inf, "counts are not negative"),
    nn.functional.poisson_nll_loss: (0.0, torch.inf, "counts are not negative"),
}
"""Smallest and largest target for which a loss is bounded below as a function of the outputs, and a remedy."""


@dataclass(frozen=True)
class Axes:
    """Outputs [..., c] as groups of log-probabilities, [..., groups, size] or with the group last."""

    groups: int
    size: int
    last: bool

    @property
    def axis(self) -> int:
        return -1 if self.last else -2

    def of(self, outputs: Tensor) -> Tensor:
        return outputs.unflatten(-1, (self.groups, self.size) if self.last else (self.size, self.groups))

    def normalized(self, outputs: Tensor) -> Tensor:
        """log_softmax of every group."""
        return self.of(outputs).log_softmax(self.axis).flatten(-2)


@dataclass(frozen=True, eq=False)
class TorchLoss(Loss):
    """L = (1/n) sum_i l(f_i, y_i) with l_i = loss(f_i[None], y_i[None]), for any differentiable ``loss``.

    Args:
        loss: a loss module or a function, ``loss(outputs [n, c], targets [n, ...])`` to one number, the mean over the
            examples (``losses.examine`` makes sure of that on the targets themselves).
        name: what messages call it.
        find_kink: says why it has no second derivative, or "" (asked for once, when a Hessian is).
        find_values: says what it returns on fixed outputs and the problem's targets: distinguishes two losses of one
            name.
        is_linear: whether it was found to be linear in the outputs. has_domain: or undefined for some of them.
        axes: where the model's outputs are log-probabilities, along which they are; log_softmax then comes before the
            loss (``losses.normalization``).
    Exactness: to rounding. Where a loss has one-sided derivatives only, torch's choice.
    Cost: value and gradient one pass each, the Hessian c further backward passes, of all examples and runs at once.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    name: str
    find_kink: Callable[[TorchLoss], str] = field(default=lambda loss: "", repr=False)
    find_values: Callable[[TorchLoss], str] = field(default=lambda loss: "", repr=False)
    is_linear: bool = False
    has_domain: bool = False
    axes: Axes | None = None
    _in: dict[torch.dtype, Callable[[Tensor, Tensor], Tensor]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        own = copy.deepcopy(self.loss) if isinstance(self.loss, nn.Module) else self.loss
        copies = dict.fromkeys(DTYPES, own)
        if isinstance(own, nn.Module) and any(value.is_floating_point() for value in own.state_dict().values()):
            copies = {dtype: copy.deepcopy(own).to(dtype) for dtype in DTYPES}
        object.__setattr__(self, "_in", copies)

    @cached_property
    def kink(self) -> str:
        """Why the loss has no second derivative, or "". Cost: under a second."""
        return self.find_kink(self)

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        flat, rows = _flat(outputs, targets)
        values = self._quietly(vmap(self._single), flat, rows)
        return values.view(outputs.shape[:-1])

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        flat, rows = _flat(outputs, targets)
        return self._quietly(self._all_gradients(rows), flat).view(outputs.shape)

    def hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.kink:
            expected = "twice differentiable where its Hessian is needed"
            remedy = "use dynamics.LinearizedSGD() or run_ensemble, which need the gradient only"
            raise ValueError(complaint("loss", expected, f"{self.name}, {self.kink}", remedy))
        flat, rows = _flat(outputs, targets)
        return self._quietly(lambda f: _rows_of_derivative(self._all_gradients(rows), f), flat).view(
            *outputs.shape, outputs.shape[-1]
        )

    def hessian_product(self, outputs: Tensor, vectors: Tensor, targets: Tensor) -> Tensor:
        """G_i v_i for vectors [..., n, c], whatever is known of kinks; one backward pass."""
        flat, rows = _flat(outputs, targets)

        def product(outputs: Tensor) -> Tensor:
            _, pull, *_ = vjp(self._all_gradients(rows), outputs)
            return pull(vectors.reshape(flat.shape))[0]

        return self._quietly(product, flat).view(outputs.shape)

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.ndim == 2:
            return self._quietly(self._value, outputs, targets)
        runs = outputs.reshape(-1, *outputs.shape[-2:])
        return self._quietly(vmap(self._value, in_dims=(0, None)), runs, targets).view(outputs.shape[:-2])

    def check_targets(self, name: str, targets: Tensor, outputs: Tensor) -> Tensor:
        if targets.is_complex():
            raise TypeError(complaint(name, "real", targets.dtype))
        if not targets.is_floating_point():
            if isinstance(self.loss, ZERO_ONE + SIGNS):
                remedy = f"convert it with {name}.to({outputs.dtype})"
                raise TypeError(complaint(name, f"floating-point under {self.name}", targets.dtype, remedy))
            return targets
        if isinstance(self.loss, ELEMENTWISE + ZERO_ONE) and targets.shape[1:] != outputs.shape[1:]:
            expected = f"[{len(targets)}, {outputs.shape[1]}], the shape of the model's outputs"
            raise ValueError(complaint(name, expected, list(targets.shape), reshaping(name, targets, outputs.shape[1])))
        if targets.dtype != outputs.dtype:
            raise TypeError(complaint(name, f"of the model's dtype {outputs.dtype}", targets.dtype))
        self._check_range(name, finite_entries(name, targets))
        return targets

    def _check_range(self, name: str, targets: Tensor) -> None:
        kind = type(self.loss) if isinstance(self.loss, nn.Module) else self.loss
        low, high, remedy = BOUNDED_BELOW.get(kind, (-torch.inf, torch.inf, ""))
        outside = (targets < low) | (targets > high)
        if outside.any():
            expected = f"in [{low:g}, {high:g}] under {self.name}, which is else not bounded below"
            raise ValueError(complaint(name, expected, f"{float(targets[outside][0]):g}", remedy))

    def labels(self, name: str, targets: Tensor, n_outputs: int) -> Tensor:
        if not targets.is_floating_point() and targets.ndim == 1 and n_outputs > 1:
            return targets
        if targets.shape == (len(targets), n_outputs) and targets.is_floating_point():
            if isinstance(self.loss, PROBABILITIES) and n_outputs > 1:
                return largest_entries(name, targets)
            for kinds, words, low in ((ZERO_ONE, "0 and 1", 0.0), (SIGNS, "-1 and 1", -1.0)):
                if isinstance(self.loss, kinds):
                    return _coded_labels(name, targets, low=low, words=words)
        expected = "a loss of classes, whose outputs are right or wrong, where accuracy is asked for"
        raise ValueError(complaint("loss", expected, self.name, 'leave "accuracy" out of observe'))

    @property
    def fingerprint(self) -> str:
        return f"TorchLoss({self.name}, {self.find_values(self)}{'' if self.axes is None else f', {self.axes}'})"

    def _single(self, output: Tensor, target: Tensor) -> Tensor:
        return self._value(output[None], target[None])

    def _value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        normalized = outputs if self.axes is None else self.axes.normalized(outputs)
        return self._in[outputs.dtype](normalized, targets)

    def _all_gradients(self, targets: Tensor) -> Callable[[Tensor], Tensor]:
        """d l_i / d f_i of all rows in one backward pass: each row moves its own term of the mean only."""

        def value(outputs: Tensor) -> Tensor:
            return self._value(outputs, targets)

        return lambda outputs: len(outputs) * grad(value)(outputs)

    def _quietly(self, function: Callable[..., Tensor], *args: Tensor) -> Tensor:
        """The function's value without torch's remarks on its own losses; outputs outside of their domain are named."""
        if torch.compiler.is_compiling():  # which cannot follow what warnings do
            return function(*args)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*batching rule|reduction: 'mean' divides")
            try:
                return function(*args)
            except RuntimeError as error:
                if "should be between 0 and 1" not in str(error):
                    raise
                remedy = "outputs of a linearized model leave it; use nn.BCEWithLogitsLoss on logits"
                raise ValueError(complaint("outputs", f"between 0 and 1 under {self.name}", "others", remedy)) from None


def _flat(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """All runs' examples in one row after the other, with the targets that go with them."""
    copies = outputs[..., 0, 0].numel()
    return outputs.reshape(-1, outputs.shape[-1]), targets.repeat(copies, *[1] * (targets.ndim - 1))


def _rows_of_derivative(function: Callable[[Tensor], Tensor], outputs: Tensor) -> Tensor:
    """d function_ia / d f_ib [n, c, c] of a function that maps each row for itself, by c backward passes."""
    value, pull, *_ = vjp(function, outputs)
    columns = torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device)
    return torch.stack([pull(column.expand_as(value).contiguous())[0] for column in columns], dim=1)


def _coded_labels(name: str, targets: Tensor, *, low: float, words: str) -> Tensor:
    """Labels of targets coded by two numbers: signs for one output, the class of the single upper one for several."""
    if not ((targets == low) | (targets == 1)).all():
        raise ValueError(
            complaint(name, f"{words} where accuracy is asked for", "other numbers", "observe the loss only")
        )
    upper = (targets == 1).to(targets.dtype)
    return 2 * upper[:, 0] - 1 if targets.shape[1] == 1 else largest_entries(name, upper)


def describe(loss: Any) -> str:
    """A loss by name: its class, or the function's own."""
    return getattr(loss, "__name__", type(loss).__name__)
