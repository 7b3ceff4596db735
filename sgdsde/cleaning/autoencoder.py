"""An autoencoder from sample eigenvalues to true ones, trained on correlation matrices of a stated law."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sgdsde._checks import complaint, whole_number, word
from sgdsde._files import replacing
from sgdsde._progress import ticker
from sgdsde._streams import numpy_stream, torch_stream
from sgdsde._types import Progress
from sgdsde.cleaning.priors import Prior, oracle_values, sample_correlation
from sgdsde.cleaning.spectrum import Cleaner, Target

FORMAT_VERSION = 1
HIDDEN = (64, 8, 64)
"""Neurons of the hidden layers; the middle one is the code."""

SHIFT = 0.05
"""Added to eigenvalues below the logarithm, so that the zeros of a small sample are finite."""

RATIOS = (1 / 2, 2 / 3, 1, 3 / 2, 2, 3)
"""m/p to train for where nothing else is asked."""

BATCH, LR = 256, 2e-3
"""Of Adam, with a cosine schedule to 0."""


@dataclass(frozen=True, eq=False, repr=False)
class EigenvalueAutoencoder(Cleaner):
    """True eigenvalues of a correlation matrix from those of a sample's, for matrices like those of its prior.

        lhat = p softmax(log(l + 0.05) + net(log(l + 0.05), log q)),   net: p+1 -> 64 -> 8 -> 64 -> p, SiLU

    positive and of trace p; the last layer starts at zero, so that training starts from the sample. Eigenvectors never
    enter. The idea of learning the map is arXiv:1708.02985; network, loss and prior are this package's own.

    Attributes:
        weights: of the four layers, in order, matrix and bias. p: dimension. ratios: smallest and largest p/m trained.
        prior: repr of the law. target: what it was trained to give.
    """

    weights: tuple[Tensor, ...]
    p: int
    ratios: tuple[float, float]
    prior: str
    target: Target

    def __repr__(self) -> str:
        low, high = self.ratios
        return f"EigenvalueAutoencoder(p={self.p}, p/m in [{low:.3g}, {high:.3g}], {self.prior}, {self.target!r})"

    @classmethod
    def train(
        cls,
        prior: Prior,
        p: int,
        n_samples: int | Sequence[int] | None = None,
        *,
        target: Target = "true",
        seed: int = 0,
        n_pairs: int = 36_000,
        n_steps: int = 5000,
        progress: Progress = None,
    ) -> EigenvalueAutoencoder:
        """Train on pairs (spectrum of a sample, spectrum of its law).

        Args:
            p: dimension. n_samples: the m to train for, one or several; default p/2, 2p/3, p, 3p/2, 2p and 3p.
            target: ``"true"`` eigenvalues or ``"oracle"`` values. seed: of pairs, weights and batches.
        Cost: at p = 30 some 10 s on one core.
        Loss: sum (lh - l)^2 / sum l^2 + 0.1 mean (log(lh + 0.01) - log(l + 0.01))^2.
        """
        p = whole_number("p", p, 2)
        word("target", target, ("true", "oracle"))
        if n_samples is None:
            n_samples = [max(2, round(p * part)) for part in RATIOS]
        asked = n_samples if isinstance(n_samples, Sequence) else [n_samples]
        sizes = [whole_number("n_samples", m, 2) for m in asked]
        if not isinstance(prior, Prior):
            raise TypeError(complaint("prior", "a Prior", type(prior).__name__, "use cleaning.FactorPrior()"))
        rng = numpy_stream(seed, "eigenvalue autoencoder: pairs and batches", 0)
        sample, wanted, log_ratio = _pairs(prior, p, sizes, target, n_pairs, rng)
        weights = _initial_weights(p, seed)
        optimizer = torch.optim.Adam(weights, lr=LR)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
        ticks = ticker(progress, n_steps, "eigenvalue autoencoder")
        for _ in range(n_steps):
            chosen = torch.from_numpy(rng.integers(len(sample), size=BATCH))
            optimizer.zero_grad()
            with torch.enable_grad():
                loss = _loss(_forward(weights, sample[chosen], log_ratio[chosen]), wanted[chosen])
            loss.backward()
            optimizer.step()
            schedule.step()
            ticks.update(1)
        ticks.close()
        ratios = (p / max(sizes), p / min(sizes))
        return cls(tuple(w.detach() for w in weights), p, ratios, repr(prior), target)

    def estimate(self, eigenvalues: np.ndarray, n_samples: int) -> np.ndarray:
        return self.estimate_many(eigenvalues[None], n_samples)[0]

    def estimate_many(self, eigenvalues: np.ndarray, n_samples: int) -> np.ndarray:
        """``estimate`` of many spectra at once, [n, p], ascending, to [n, p]."""
        n, p = eigenvalues.shape
        if p != self.p:
            remedy = "train another: EigenvalueAutoencoder.train(prior, p)"
            raise ValueError(complaint("eigenvalues", f"the {self.p} that it was trained for", p, remedy))
        low, high = self.ratios
        if not low * (1 - 1e-9) <= p / n_samples <= high * (1 + 1e-9):
            expected = f"in {math.ceil(p / high - 1e-9)} ... {math.floor(p / low + 1e-9)}, as in training"
            raise ValueError(complaint("n_samples", expected, n_samples, "train another with this n_samples"))
        sums = eigenvalues.sum(1)
        if np.abs(sums - p).max() > 1e-6 * p:
            received = f"of sum {sums[np.abs(sums - p).argmax()]:.6g}"
            remedy = "rescale to unit variances: sample_spectrum(x, correlation=True)"
            raise ValueError(complaint("eigenvalues", f"of a correlation matrix, of sum p = {p}", received, remedy))
        sample = torch.from_numpy(eigenvalues).to(self.weights[0])
        log_ratio = torch.full((n,), math.log(p / n_samples), dtype=sample.dtype)
        cleaned = _forward(self.weights, sample, log_ratio).double().numpy()
        if self.target == "true":  # in the order of the sample; oracle values belong to eigenvectors and have none
            cleaned = np.sort(cleaned, axis=1)
        return cleaned * (p / cleaned.sum(1, keepdims=True))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one ``.npz`` with weights, prior, p and range of p/m; no pickle; all or nothing."""
        header = {"format_version": FORMAT_VERSION, "p": self.p, "ratios": self.ratios, "prior": self.prior}
        described = json.dumps(header | {"target": self.target}).encode()
        arrays = {f"weight_{i}": weight.numpy() for i, weight in enumerate(self.weights)}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **{"header": np.frombuffer(described, dtype=np.uint8), **arrays})  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> EigenvalueAutoencoder:
        """The autoencoder that ``save`` wrote.

        Raises:
            FileNotFoundError: no such file. ValueError: a damaged or foreign file, or one of a newer format.
        """
        try:
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                header: dict[str, Any] = json.loads(file["header"].tobytes())
                weights = tuple(torch.from_numpy(file[f"weight_{i}"]) for i in range(2 * (len(HIDDEN) + 1)))
            version, p = header.pop("format_version"), int(header["p"])
            shapes = [tuple(weight.shape) for weight in weights]
            if version == FORMAT_VERSION and shapes == [tuple(w.shape) for w in _initial_weights(p, 0)]:
                word("target", header["target"], ("true", "oracle"))
                return cls(weights, p, (header["ratios"][0], header["ratios"][1]), header["prior"], header["target"])
        except (FileNotFoundError, IsADirectoryError, PermissionError):
            raise
        except Exception as error:  # a damaged archive fails in a dozen ways
            expected, received = "written by EigenvalueAutoencoder.save", f"{type(error).__name__}: {error}"
            raise ValueError(complaint(str(path), expected, received, "train and save again")) from error
        expected = f"of format version {FORMAT_VERSION} with layers {HIDDEN}"
        raise ValueError(complaint(str(path), expected, f"version {version}, layers {shapes}", "update sgdsde"))


def _pairs(
    prior: Prior, p: int, sizes: list[int], target: Target, n_pairs: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    samples, wanted, ratios = [], [], []
    for m in sizes:
        for start in range(0, -(-n_pairs // len(sizes)), 1000):
            true = prior.draw(min(1000, -(-n_pairs // len(sizes)) - start), p, rng)
            found = sample_correlation(true, m, rng)
            if target == "oracle":
                values, vectors = np.linalg.eigh(found)
                wanted.append(oracle_values(true, vectors))
            else:
                values = np.linalg.eigvalsh(found)
                wanted.append(np.linalg.eigvalsh(true))
            samples.append(np.maximum(values, 0))
            ratios.append(np.full(len(true), math.log(p / m)))
    sample, aim, ratio = (torch.from_numpy(np.concatenate(each)).float() for each in (samples, wanted, ratios))
    return sample, aim, ratio


def _initial_weights(p: int, seed: int) -> list[Tensor]:
    """Uniform +-fan_in^-1/2 as in ``nn.Linear``, zero in the last layer."""
    generator = torch_stream(seed, "eigenvalue autoencoder: weights", 0, torch.device("cpu"))
    sizes, weights = [p + 1, *HIDDEN, p], []
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        bound = 0.0 if i == len(HIDDEN) else fan_in**-0.5
        for shape in ((fan_out, fan_in), (fan_out,)):
            weights.append((bound * (2 * torch.rand(shape, generator=generator) - 1)).requires_grad_())
    return weights


def _forward(weights: Sequence[Tensor], eigenvalues: Tensor, log_ratio: Tensor) -> Tensor:
    start = torch.log(eigenvalues + SHIFT)
    h = torch.cat([start, log_ratio[:, None]], 1)
    for i in range(0, len(weights), 2):
        h = functional.linear(functional.silu(h) if i else h, weights[i], weights[i + 1])
    return eigenvalues.shape[1] * torch.softmax(start + h, 1)


def _loss(found: Tensor, wanted: Tensor) -> Tensor:
    square = (found - wanted).square().sum(1) / wanted.square().sum(1)
    return square.mean() + 0.1 * (torch.log(found + 0.01) - torch.log(wanted + 0.01)).square().mean()
