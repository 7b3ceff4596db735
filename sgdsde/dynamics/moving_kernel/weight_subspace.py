"""Weight directions in which minibatch noise moves a network, and what they do to its outputs.

The deviation of the weights from their mean path is delta = V^T a, with the rows of V [r, p] orthonormal. To first
order the outputs move by J delta = Phi a, Phi = J V^T [rows, r]: nothing of the size of the kernel is ever formed.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sgdsde import _memory
from sgdsde._checks import complaint
from sgdsde._types import Params
from sgdsde.dynamics.moments.feature_state import Features
from sgdsde.kernel.eigenbasis import Eigenbasis
from sgdsde.kernel.jacobian_products import Directional, directional
from sgdsde.linearization import Linearization
from sgdsde.problem import Problem

VECTORS, ROWS = 64, 256
"""Directions and examples of one pass of derivatives."""

FEW = 256
"""Directions of which none is left out."""

KEPT_SHARE, LEAST_KEPT = 3, 2e-4
"""Directions of the fluctuation that J has turned away from: at most a third of those followed, of those that hold more
than this of its variance."""

COPIES = 5
"""Of the directions, while they are turned."""


def _refuse_truncation(basis: Eigenbasis, neglected: float) -> None:
    if basis.tail is None:
        return
    left_out = basis.tail.trace / (basis.tail.trace + float(basis.values.sum()))
    if left_out > neglected:
        received = f"{len(basis.values)} eigenpairs that leave out {left_out:.3g} of its trace"
        remedy = "use linearize(problem) without rank, a larger rank, or a larger neglected"
        raise ValueError(complaint("the truncated kernel", f"within neglected={neglected:g}", received, remedy))


def kernel_distance(features: Features, other: Features) -> float:
    """|Phi Phi^T - Psi Psi^T| / |Psi Psi^T| in Frobenius norm over training outputs, Psi the other's. Cost: 6 d r^2."""
    norm = other.gram.square().sum()
    squared = features.gram.square().sum() + norm - 2 * (other.train.mT @ features.train).square().sum()
    return float((squared.clamp_min(0) / norm).sqrt())


class WeightSubspace:
    """V [r, p] with orthonormal rows, in the model's dtype."""

    def __init__(
        self, problem: Problem, derivatives: Directional, rows: Tensor, dtype: torch.dtype, *, followed: int
    ) -> None:
        self._problem, self._derivatives, self._dtype = problem, derivatives, dtype
        self.rows, self._followed = rows, followed

    @classmethod
    def leading(cls, linearization: Linearization, *, neglected: float) -> WeightSubspace:
        """The right singular vectors of J, the largest first, without those of the last share ``neglected`` of |J|^2.

        Up to ``FEW`` are all kept.

        Raises:
            ValueError: a truncated eigenbasis that leaves out more. MemoryError: the directions do not fit; names the
                bytes.
        """
        problem, basis = linearization.problem, linearization.eigenbasis
        _refuse_truncation(basis, neglected)
        if not basis.values.any():
            received = "zero: the outputs do not depend on the weights at initialization (dead units?)"
            remedy = "initialize the network anew; under the frozen kernel the loss is constant"
            raise ValueError(complaint("the kernel that moves", "different from zero", received, remedy))
        values, vectors = basis.values.flip(0), basis.vectors.flip(1)
        rest = 1 - values.cumsum(0) / values.sum()
        count = min(len(values), max(FEW, int((rest > neglected).sum()) + 1))
        needed = COPIES * problem.functional.n_params * problem.dtype.itemsize
        what = f"one of the {count} weight directions that the noise moves (n_params={problem.functional.n_params})"
        _memory.rows_within(_memory.budget(None, problem.device), needed * count, 1, f"{count} times {what}")
        derivatives = directional(problem.functional, problem.x_train, problem.n_outputs)
        start = cls(problem, derivatives, torch.empty(0), linearization.kernel.dtype, followed=count)
        cotangents = (vectors[:, :count] / values[:count].sqrt()).mT
        return start._spanning(problem.params, cotangents)

    def __len__(self) -> int:
        return len(self.rows)

    def features(self, params: Params) -> Features:
        """J V^T at these parameters."""
        return self.features_along(params, self.rows)

    def features_along(self, params: Params, rows: Tensor) -> Features:
        """J W^T for other directions W [k, p]."""
        problem = self._problem
        train = self._push(params, rows, problem.x_train)
        return Features(train, None if problem.x_test is None else self._push(params, rows, problem.x_test))

    def turned(self, params: Params, features: Features, covariance: Tensor) -> WeightSubspace:
        """The directions after one step of subspace iteration toward the leading ones of J at these parameters.

        (Phi^T Phi)^-1 Phi^T J is V plus what J has outside of its span, so that the turn is the smallest. The leading
        directions of the fluctuation [r, r] that this leaves behind are kept besides.
        """
        inverse = _power(features.gram, -1.0, self._problem.dtype, most=self._followed)
        return self._spanning(params, inverse @ features.train.mT)._keeping(self, covariance)

    def _keeping(self, other: WeightSubspace, covariance: Tensor) -> WeightSubspace:
        """These directions and the leading ones in which the other's fluctuation lies outside of their span."""
        values, vectors = torch.linalg.eigh(covariance)
        root = (vectors * values.clamp_min(0).sqrt()).mT.to(self.rows)
        left = root @ other.rows
        left = left - (left @ self.rows.mT) @ self.rows
        values, vectors = torch.linalg.eigh((left @ left.mT).double())
        count = min(self._followed // KEPT_SHARE, int((values > LEAST_KEPT * float(covariance.trace())).sum()))
        if count == 0:
            return self
        kept = (vectors[:, -count:] / values[-count:].sqrt()).mT.to(left) @ left
        return self._with(torch.cat([self.rows, kept - (kept @ self.rows.mT) @ self.rows]))

    def overlap(self, other: WeightSubspace) -> Tensor:
        """V W^T [r, r'] for the directions W of the other: coordinates there to coordinates here."""
        return (self.rows @ other.rows.mT).to(self._dtype)

    def weights(self, coordinates: Tensor) -> Params:
        """V^T a for a [k, r], by parameter: [k, *shape]."""
        flat = coordinates.to(self.rows) @ self.rows
        shapes = [value.shape for value in self._problem.params.values()]
        parts = flat.split([shape.numel() for shape in shapes], dim=1)
        return {name: part.view(-1, *shape) for name, part, shape in zip(self._problem.params, parts, shapes)}

    def _spanning(self, params: Params, cotangents: Tensor) -> WeightSubspace:
        """Orthonormal directions that span J^T u for the rows u of cotangents [k, n*c]."""
        rows = self._pull(params, cotangents.to(self._problem.dtype))
        for _ in range(2):  # the second pass removes what rounding left of the first
            rows = _power((rows @ rows.mT).double(), -0.5, rows.dtype).to(rows) @ rows
            if not len(rows):
                raise ValueError(
                    "the gradients along the mean path must stay finite and different from zero, got none that are: "
                    "the outputs no longer depend on the weights (dead or saturated units); use a smaller lr"
                )
        return self._with(rows)

    def _with(self, rows: Tensor) -> WeightSubspace:
        return WeightSubspace(self._problem, self._derivatives, rows, self._dtype, followed=self._followed)

    def _at(self, params: Params) -> Directional:
        return type(self._derivatives)(dataclasses.replace(self._problem.functional, params=params))

    def _push(self, params: Params, rows: Tensor, x: Tensor) -> Tensor:
        derivatives, shapes = self._at(params), {name: value.shape for name, value in params.items()}
        slopes = []
        for some in rows.split(VECTORS):
            parts = some.split([shape.numel() for shape in shapes.values()], dim=1)
            directions = {name: part.reshape(-1, *shapes[name]) for name, part in zip(shapes, parts)}
            moved = torch.cat([derivatives.push(piece, directions) for piece in x.split(ROWS)], dim=1)
            slopes.append(moved.flatten(1).to(self._dtype))
        return torch.cat(slopes).mT.contiguous()

    def _pull(self, params: Params, cotangents: Tensor) -> Tensor:
        derivatives, problem = self._at(params), self._problem
        rows = cotangents.new_empty(len(cotangents), problem.functional.n_params)
        for start in range(0, len(cotangents), VECTORS):
            some = cotangents[start : start + VECTORS].view(-1, problem.n_train, problem.n_outputs)
            total = rows[start : start + VECTORS].zero_()
            for first in range(0, problem.n_train, ROWS):
                pulled = derivatives.pull(problem.x_train[first : first + ROWS], some[:, first : first + ROWS])
                total += torch.cat([pulled[name].reshape(len(some), -1) for name in problem.params], dim=1)
        return rows


def _power(gram: Tensor, exponent: float, precision: torch.dtype, *, most: int | None = None) -> Tensor:
    """A power of a symmetric matrix on its range, [k, r]: symmetric itself where the range is everything.

    ``most``: only that many of its eigenvectors, the largest.
    """
    values, vectors = torch.linalg.eigh((gram + gram.mT) / 2)
    kept = values > values[-1] * len(values) * torch.finfo(precision).eps
    if most is not None:
        kept[: max(0, len(kept) - most)] = False
    scaled = (vectors[:, kept] * values[kept] ** exponent).mT
    return vectors @ scaled if kept.all() else scaled
