"""Covariance of the minibatch gradient seen in the outputs: the formula, and draws of real minibatches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

import sgdsde
from experiments.frame import Progress, Scale, by_scale, main
from experiments.plain_sgd import plain_sgd
from experiments.problems import digits_mlp
from sgdsde.noise import output_noise

SEED = 0
CHUNK = 250
"""Batches whose gradients are held at once."""


@dataclass(frozen=True)
class Case:
    """How a batch is drawn."""

    batch_size: int
    sampling: Literal["with_replacement", "without_replacement"]

    @property
    def name(self) -> str:
        return f"{self.batch_size}_{self.sampling}"


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    n_train = by_scale(scale, smoke=48, laptop=256, paper=512)
    width = by_scale(scale, smoke=128, laptop=512, paper=4096)
    n_draws = by_scale(scale, smoke=1500, laptop=10_000, paper=200_000)
    n_steps = by_scale(scale, smoke=40, laptop=200, paper=400)
    problem = digits_mlp(n_train, 1, width)
    sgd = sgdsde.SGD(lr=0.5 * sgdsde.stability.max_lr(problem, 8), batch_size=8)
    start, trained = plain_sgd(problem, sgd, [0, n_steps], seed=SEED)
    cases = [Case(8, "with_replacement"), Case(n_train // 8, "without_replacement")]
    arrays = {
        "cases": np.array([case.name for case in cases]),
        "n_steps": np.array(n_steps),
        "draws": np.array(n_draws),
    }
    for point, params in (("start", start), ("trained", trained)):
        gradients = Gradients(problem, params)
        arrays[f"{point}_loss"] = gradients.loss
        for case in cases:
            draws = gradients.draw(case, n_draws, progress(f"{point}, {case.name}"))
            found = compare(case, draws, gradients, n_modes=by_scale(scale, smoke=12, laptop=40, paper=80))
            arrays |= {f"{point}_{case.name}_{key}": value for key, value in found.items()}
    return arrays


class Gradients:
    """Minibatch gradients of the network at given weights, by backward passes, pushed forward to its outputs."""

    def __init__(self, problem: sgdsde.Problem, params: dict[str, Tensor]) -> None:
        self.problem, self.params = problem, params
        outputs = functional_call(problem.model, params, (problem.x_train,))
        self.loss = np.array(float(problem.loss(outputs, problem.y_train)))
        self.residual = 2 * (outputs - problem.y_train).double().flatten()
        rows = vmap(grad(self._output), in_dims=(None, 0))(params, problem.x_train)
        self.jacobian = _flat(rows)

    def formula(self, case: Case) -> tuple[np.ndarray, np.ndarray]:
        """The library's covariance of one batch, and what every single example adds to the outputs, [n, n]."""
        kernel = sgdsde.empirical_ntk(self.problem.model, self.problem.x_train, params=self.params)
        second_moment = torch.outer(self.residual, self.residual)
        n = self.problem.n_train
        noise = output_noise(kernel, second_moment, n_train=n, batch_size=case.batch_size, sampling=case.sampling)
        return noise.cpu().numpy(), (kernel * self.residual[:, None]).cpu().numpy()

    def _output(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(self.problem.model, params, (x[None],))[0, 0]

    def _loss(self, params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        loss: Tensor = self.problem.loss(functional_call(self.problem.model, params, (x,)), y)
        return loss

    def draw(self, case: Case, n_draws: int, progress: object) -> np.ndarray:
        """Deviation of minibatch gradients from the full one, in the outputs: [n_draws, n]."""
        sgd = sgdsde.SGD(1.0, case.batch_size, sampling=case.sampling)
        batches = sgdsde.sampling.batch_indices(sgd, self.problem.n_train, n_draws, seed=SEED + 1, run=0)
        x, y = self.problem.x_train, self.problem.y_train
        each = vmap(grad(self._loss), in_dims=(None, 0, 0))
        starts = range(0, n_draws, CHUNK)
        parts = []
        for i in progress(starts):  # type: ignore[operator]
            chosen = batches[i : i + CHUNK].to(x.device)
            parts.append((_flat(each(self.params, x[chosen], y[chosen])) @ self.jacobian.mT).double())
        whole = _flat({k: v[None] for k, v in grad(self._loss)(self.params, x, y).items()}) @ self.jacobian.mT
        return np.asarray((torch.cat(parts) - whole.double()).cpu().numpy())


def compare(case: Case, draws: np.ndarray, gradients: Gradients, *, n_modes: int) -> dict[str, np.ndarray]:
    """The covariance of the draws beside the formula, and coordinates in which the formula says: identity."""
    formula, singles = gradients.formula(case)
    values, vectors = np.linalg.eigh(formula)
    values, vectors = values[::-1], vectors[:, ::-1]
    whitening = vectors[:, :n_modes] / np.sqrt(values[:n_modes])
    white = draws @ whitening
    products = white.T @ white / len(draws)
    errors = np.sqrt(((white**2).T @ white**2 / len(draws) - products**2) / len(draws))
    upper = np.triu_indices(n_modes)
    measured = draws.T @ draws / len(draws)
    found = {
        "formula_values": values,
        "measured_values": np.linalg.eigvalsh(measured)[::-1],
        "sampled_values": sampled_eigenvalues(values, len(draws)),
        "z": ((products - np.eye(n_modes)) / errors)[upper],
        "z_of_doubled_batch": ((products - np.eye(n_modes) / 2) / errors)[upper],
        "kurtosis": excess_kurtosis(white),
        "kurtosis_error": np.sqrt((white**8).mean(0) - (white**4).mean(0) ** 2) / np.sqrt(len(draws)),
        "quantiles": np.quantile(white[:, 0], PROBABILITIES),
        "probabilities": PROBABILITIES,
        "trace_ratio": np.array(np.trace(measured) / np.trace(formula)),
    }
    if case.sampling == "with_replacement":
        # The fourth cumulant of a mean of B independent draws is that of one draw over B^3.
        coordinates = singles @ whitening
        found["kurtosis_exact"] = excess_kurtosis(coordinates - coordinates.mean(0)) / case.batch_size
    return found | entries(draws, formula)


def excess_kurtosis(columns: np.ndarray) -> np.ndarray:
    """Of each centered column; 0 if Gaussian."""
    return np.asarray((columns**4).mean(0) / (columns**2).mean(0) ** 2 - 3)


PROBABILITIES = np.concatenate([[0.001, 0.003], np.linspace(0.01, 0.99, 99), [0.997, 0.999]])


def entries(draws: np.ndarray, formula: np.ndarray, n_entries: int = 200) -> dict[str, np.ndarray]:
    """Some entries of the covariance, drawn at random, in units of the mean variance: formula, measured, its error."""
    rows, columns = np.random.default_rng(SEED).integers(0, len(formula), size=(2, n_entries))
    products = draws[:, rows] * draws[:, columns]
    unit = np.trace(formula) / len(formula)
    return {
        "entries_formula": formula[rows, columns] / unit,
        "entries_measured": products.mean(0) / unit,
        "entries_error": products.std(0, ddof=1) / np.sqrt(len(draws)) / unit,
    }


def sampled_eigenvalues(values: np.ndarray, n_draws: int, repeats: int = 20) -> np.ndarray:
    """Least and largest of each eigenvalue over covariances of as many Gaussian draws from the formula, [2, n]."""
    stream = np.random.default_rng(SEED)
    found = []
    for _ in range(repeats):
        # Wishart by Bartlett: a triangle of normal numbers with chi on the diagonal.
        triangle = np.tril(stream.standard_normal((len(values), len(values))), -1)
        triangle[np.diag_indices(len(values))] = np.sqrt(stream.chisquare(n_draws - np.arange(len(values))))
        factor = np.sqrt(np.maximum(values, 0))[:, None] * triangle
        found.append(np.linalg.eigvalsh(factor @ factor.T / n_draws)[::-1])
    return np.stack([np.min(found, 0), np.max(found, 0)])


def _flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten(1) for value in gradients.values()], 1)


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
