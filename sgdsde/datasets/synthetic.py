"""Regression problems whose feature covariance, rank, noise and duplicates are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch

from sgdsde import _memory
from sgdsde._checks import complaint, finite_number, nonnegative_number, whole_number, word
from sgdsde._streams import numpy_stream, torch_stream
from sgdsde.datasets.dataset import Dataset, check_dtype
from sgdsde.networks import MLP

Teacher: TypeAlias = Literal["linear", "mlp"]
"""A random linear map, or a random network of one hidden layer: 32 tanh neurons with biases."""


@dataclass(frozen=True)
class PowerLaw:
    """Variances proportional to j^-exponent for direction j = 1, 2, ...; exponent 0 is white."""

    exponent: float = 1.0

    def __post_init__(self) -> None:
        nonnegative_number("exponent", self.exponent, "variances are sorted from large to small")

    def variances(self, n: int, seed: int) -> np.ndarray:
        """[n], descending, not normalized."""
        return np.arange(1, n + 1, dtype=np.float64) ** -finite_number("exponent", self.exponent)


@dataclass(frozen=True)
class LogNormal:
    """Scales exp(log_std Z) with Z standard normal, drawn by the seed; variances are their squares."""

    log_std: float = 1.0

    def __post_init__(self) -> None:
        nonnegative_number("log_std", self.log_std, "0 is white")

    def variances(self, n: int, seed: int) -> np.ndarray:
        """[n], descending, not normalized."""
        log_scales = float(self.log_std) * numpy_stream(seed, "synthetic spectrum", 0).standard_normal(n)
        return np.sort(np.exp(2 * log_scales))[::-1]


Spectrum: TypeAlias = PowerLaw | LogNormal


def synthetic(
    n_train: int,
    n_test: int,
    in_features: int,
    out_features: int = 1,
    *,
    spectrum: Spectrum = PowerLaw(1.0),
    rank: int | None = None,
    n_duplicates: int = 0,
    teacher: Teacher = "linear",
    noise_std: float = 0.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Dataset:
    """Gaussian inputs [n, in_features] of chosen covariance, with targets [n, out_features] of a random teacher.

        x = Q diag(v)^(1/2) z,   y = teacher(x) / s + noise_std e,   z and e standard normal

    where Q has orthonormal columns in random directions, the variances v are those of ``spectrum`` scaled to sum to
    in_features (so the expected squared feature is 1), and s is the root mean square of the teacher's training outputs.

    Args:
        n_train, n_test: examples; a smaller training set of the same seed has the inputs of a larger one's first part.
        spectrum: ``PowerLaw(exponent)`` or ``LogNormal(log_std)``.
        rank: directions with a variance above zero, at most in_features; None means all. The rank of the training
            inputs is then min(rank, n_train - n_duplicates).
        n_duplicates: the last so many training examples repeat the first ones, target and noise included; at most
            half of the training examples.
        teacher: ``"linear"`` or ``"mlp"``.
        noise_std: standard deviation of the noise on training and test targets, where the clean training targets
            have a mean square of 1.
        seed: decides everything; each purpose has its own stream, so noise_std does not change the inputs.
    Raises:
        ValueError, TypeError: an argument outside its range.
    Cost: a QR factorization of [in_features, rank] in float64.
    """
    n_train, n_test = whole_number("n_train", n_train, 1), whole_number("n_test", n_test, 1)
    d, c = whole_number("in_features", in_features, 1), whole_number("out_features", out_features, 1)
    for name, count in (("n_train", n_train), ("n_test", n_test), ("in_features", d)):
        _memory.check_count(name, count, 3 * 8 * d, "rows of in_features numbers, in float64 and thrice,")
    r, seed = d if rank is None else whole_number("rank", rank, 1), whole_number("seed", seed)
    n_duplicates, noise_std = whole_number("n_duplicates", n_duplicates), nonnegative_number("noise_std", noise_std)
    word("teacher", teacher, ("linear", "mlp"))
    check_dtype(dtype)
    if not isinstance(spectrum, PowerLaw | LogNormal):
        raise TypeError(complaint("spectrum", "PowerLaw(...) or LogNormal(...)", repr(spectrum)))
    if r > d:
        raise ValueError(complaint("rank", f"at most in_features={d}", rank))
    if 2 * n_duplicates > n_train:
        raise ValueError(complaint("n_duplicates", f"at most half of n_train={n_train}", n_duplicates))

    directions = np.linalg.qr(numpy_stream(seed, "synthetic directions", 0).standard_normal((d, r)))[0]
    variances = spectrum.variances(r, seed)
    root = directions * np.sqrt(variances * d / variances.sum())
    inputs = repeat_first(draw_normal(n_train, r, "inputs, train", seed) @ root.T, n_duplicates)
    test_inputs = draw_normal(n_test, r, "inputs, test", seed) @ root.T
    targets, test_targets = teach(teacher, (inputs, test_inputs), c, seed)
    noise = repeat_first(draw_normal(n_train, c, "noise, train", seed), n_duplicates)
    targets = repeat_first(targets, n_duplicates) + noise_std * noise  # a product may round equal rows otherwise
    test_targets = test_targets + noise_std * draw_normal(n_test, c, "noise, test", seed)
    tensors = [torch.as_tensor(each).to(dtype) for each in (inputs, targets, test_inputs, test_targets)]
    return Dataset("synthetic", *tensors)


def draw_normal(n: int, columns: int, purpose: str, seed: int) -> np.ndarray:
    """[n, columns] standard normal numbers; fewer rows are the first of more rows."""
    return numpy_stream(seed, f"synthetic {purpose}", 0).standard_normal((n, columns))


def repeat_first(rows: np.ndarray, n_duplicates: int) -> np.ndarray:
    """The rows with the last ``n_duplicates`` of them replaced by the first ones."""
    return np.concatenate([rows[: len(rows) - n_duplicates], rows[:n_duplicates]])


def teach(teacher: Teacher, inputs: tuple[np.ndarray, np.ndarray], out_features: int, seed: int) -> list[np.ndarray]:
    """The teacher's outputs on the training and the test inputs, over the root mean square of the first."""
    in_features = inputs[0].shape[1]
    if teacher == "linear":
        weights = numpy_stream(seed, "synthetic teacher", 0).standard_normal((in_features, out_features))
        outputs = [x @ weights for x in inputs]
    else:
        cpu = torch.device("cpu")
        draws = torch_stream(seed, "synthetic teacher", 0, cpu)
        sizes = (in_features, 32, out_features)
        network = MLP(*sizes, activation="tanh", sigma_b=0.5, dtype=torch.float64, device=cpu, generator=draws)
        with torch.no_grad():
            outputs = [network(torch.as_tensor(x)).numpy() for x in inputs]
    scale = float(np.sqrt(np.mean(outputs[0] ** 2)))
    return [each / scale for each in outputs]
