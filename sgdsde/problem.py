"""Training problem: a model, data and a loss, validated once."""

from __future__ import annotations

import hashlib
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sgdsde._checks import complaint, dense_tensor, finite_entries, nonempty
from sgdsde._fidelity import check_derivative
from sgdsde._functional import FunctionalModel, as_functional
from sgdsde._probe import probe
from sgdsde._types import Params
from sgdsde.adapters import examples_of_loaders
from sgdsde.losses import Loss, TorchLoss, as_loss, examine, on_the_simplex, refuse_unbounded
from sgdsde.sgd import SGD


@dataclass(frozen=True, eq=False, repr=False)
class Problem:
    """A model with its initial weights, a training set, perhaps a test set, and a loss.

    Args:
        model: an ``nn.Module``, copied and never mutated, or a pair ``(f, params)`` with ``f(params, x)``. Its outputs
            are [n, c]. Parameters with ``requires_grad=False`` are constants.
        x_train: [n, ...]. y_train: [n, c] for ``nn.MSELoss``, class indices [n] for ``nn.CrossEntropyLoss``,
            what the loss takes for others.
        loss: a torch loss module, or a function loss(outputs, targets), that is a mean over examples; every loss
            reported is what it returns on the whole set. ``nn.MSELoss`` and ``nn.CrossEntropyLoss`` are handled in
            closed form, others by automatic differentiation. Behind a log_softmax ``nn.NLLLoss``, ``nn.KLDivLoss`` and
            others are taken as the losses of logits that they are, with the same values.
        x_test, y_test: the same for m test examples; both or neither.

    Attributes:
        functional: the model as a function of its parameters. criterion: the loss with its derivative.
        n_train, n_test, n_outputs: n, m (0 without a test set), c.

    Raises:
        ValueError, TypeError: data that are not finite, empty, complex, or of shapes, dtypes or devices that do not
            fit; a model that is random, couples examples, changes its buffers or parameters, branches on data, reads
            its weights past the module, or whose backward pass is no derivative (named by layer); a loss that is no
            mean over examples, constant, or without a lower bound.
    Cost: one pass over the data, and fewer than fifty training steps on a few examples (docs/benchmarks.md).
    """

    model: Any
    x_train: Tensor
    y_train: Tensor
    _: KW_ONLY
    loss: Any
    x_test: Tensor | None = None
    y_test: Tensor | None = None
    functional: FunctionalModel = field(init=False)
    criterion: Loss = field(init=False)
    n_outputs: int = field(init=False)

    def __post_init__(self) -> None:
        functional = as_functional(self.model)
        for name in ("x_train", "y_train", "x_test", "y_test"):
            if isinstance(getattr(self, name), Tensor):
                object.__setattr__(self, name, getattr(self, name).detach())
        _check_pair("x_train", self.x_train, "y_train", self.y_train, functional)
        if (self.x_test is None) != (self.y_test is None):
            given, missing = ("x_test", "y_test") if self.y_test is None else ("y_test", "x_test")
            raise ValueError(complaint(missing, f"given together with {given}", "None", "pass both or neither"))
        functional, outputs = probe(functional, self.x_train, "x_train")
        near = check_derivative(functional, self.x_train)
        criterion = as_loss(self.loss, outputs.shape[1])
        derived: dict[str, Any] = {"functional": functional, "criterion": criterion, "n_outputs": outputs.shape[1]}
        derived["y_train"] = criterion.check_targets("y_train", self.y_train, outputs)
        if self.x_test is not None and self.y_test is not None:
            _check_pair("x_test", self.x_test, "y_test", self.y_test, functional)
            if self.x_test.shape[1:] != self.x_train.shape[1:]:
                expected = f"examples of shape {list(self.x_train.shape[1:])} like x_train"
                raise ValueError(complaint("x_test", expected, list(self.x_test.shape[1:])))
            derived["y_test"] = criterion.check_targets("y_test", self.y_test, outputs)
        if isinstance(criterion, TorchLoss):
            criterion = on_the_simplex(criterion, outputs, near)
            derived["criterion"] = examine(criterion, outputs, derived["y_train"], derived.get("y_test"))
            refuse_unbounded(derived["criterion"])
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_loader(
        cls, model: Any, train_loader: DataLoader, test_loader: DataLoader | None = None, loss: Any = None
    ) -> Problem:
        """The problem of a training script: all examples of the loaders' data sets, in the data sets' order.

        Collated by the loader's own ``collate_fn``, moved to the model's device, floating-point arrays in its dtype and
        integer targets as int64.

        Raises:
            ValueError: a data set that returns an example differently the second time (augmentation), or without
                a length; a sampler that leaves examples out or weighs them; a collate function that mixes examples.
            TypeError: batches that are no pairs of tensors; and all that ``Problem`` refuses.
        Cost: every example is fetched twice, in this process, and held in memory.
        """
        return cls(model, **examples_of_loaders(model, train_loader, test_loader), loss=loss)

    def __repr__(self) -> str:
        loss = type(self.loss).__name__
        if isinstance(self.criterion, TorchLoss) and self.criterion.axes is not None:
            loss += " of log-probabilities, as the loss of logits that it is"
        return (
            f"Problem(n_train={self.n_train}, n_test={self.n_test}, n_outputs={self.n_outputs}, "
            f"n_params={self.functional.n_params}, loss={loss}, {self.dtype}, {self.device})"
        )

    @property
    def n_train(self) -> int:
        """Number of training examples."""
        return len(self.x_train)

    @property
    def n_test(self) -> int:
        """Number of test examples, 0 without a test set."""
        return 0 if self.x_test is None else len(self.x_test)

    @property
    def params(self) -> Params:
        """Initial values of the trainable parameters by name."""
        return self.functional.params

    @property
    def dtype(self) -> torch.dtype:
        """That of the model's parameters."""
        return self.functional.dtype

    @property
    def device(self) -> torch.device:
        """That of the model's parameters."""
        return self.functional.device

    def forward(self, params: Params, x: Tensor) -> Tensor:
        """Outputs [n, c] of the model with other parameters than its own."""
        return self.functional.forward(params, x)

    @cached_property
    def digest(self) -> str:
        """A hash of data, targets, loss and initial weights: results of different problems never meet."""
        hasher = hashlib.sha256()
        named = {f"param {name}": value for name, value in self.params.items()}
        named |= {f"constant {name}": value for name, value in self.functional.constants.items()}
        named |= {"x_train": self.x_train, "y_train": self.y_train}
        if self.x_test is not None and self.y_test is not None:
            named |= {"x_test": self.x_test, "y_test": self.y_test}
        for name, value in sorted(named.items()):
            hasher.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            hasher.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        hasher.update(self.criterion.fingerprint.encode())
        return hasher.hexdigest()[:32]


def check_training(problem: Problem, sgd: SGD) -> None:
    """Raises ``ValueError`` where torch's loop with this SGD would not train what the problem says.

    The optimizer that the SGD was read from must hold the problem's trainable parameters, and no others. Memory that
    two parameters share is decayed once for each of them by torch, and once here.
    """
    shared = problem.functional.shared
    if sgd.weight_decay and shared:
        name = next(iter(shared))
        received = (
            f"{sgd.weight_decay:g} with {name!r} and {shared[name].source!r} in one memory, decayed twice by torch"
        )
        remedy = "tie the layers by one and the same parameter (b.weight = a.weight), or use weight_decay=0"
        raise ValueError(complaint("weight_decay", "0 where parameters share memory", received, remedy))
    if sgd.trained is None:
        return
    model, names = problem.model, {*problem.params, *shared}
    named = dict(model.named_parameters()) if isinstance(model, nn.Module) else model[1]
    sgd.trained.check({name: value for name, value in named.items() if name in names})


def _check_pair(x_name: str, x: Any, y_name: str, y: Any, functional: FunctionalModel) -> None:
    for name, value in ((x_name, x), (y_name, y)):
        dense_tensor(name, value)
        if value.is_complex():
            raise TypeError(complaint(name, "real", value.dtype, "complex numbers are not supported"))
        if value.ndim == 0:
            raise ValueError(complaint(name, "a tensor with one row an example", "a single number"))
        nonempty(name, value)
        if value.device != functional.device:
            remedy = f"use {name}.to({str(functional.device)!r})"
            raise ValueError(complaint(name, f"on the model's device {functional.device}", value.device, remedy))
        if value.is_floating_point():
            finite_entries(name, value)
    if x.is_floating_point() and x.dtype != functional.dtype:
        remedy = f"use {x_name}.to({functional.dtype}) or model.to({x.dtype})"
        raise TypeError(complaint(x_name, f"of the model's dtype {functional.dtype}", x.dtype, remedy))
    if len(x) != len(y):
        raise ValueError(complaint(y_name, f"as long as {x_name}, {len(x)} rows", f"{len(y)} rows"))
