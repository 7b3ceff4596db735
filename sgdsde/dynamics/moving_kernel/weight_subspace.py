"""Weight directions in which minibatch noise moves a network, and what they do to its outputs.

The deviation of the weights from their mean path is delta = V^T a, with the rows of V [r, p] orthonormal. To first
order the outputs move by J delta = Phi a, Phi = J V^T [rows, r]: nothing of the size of the kernel is ever formed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sgdsde import _memory
from sgdsde._checks import complaint
from sgdsde._types import Params
from sgdsde.dynamics.moments.feature_state import Features
from sgdsde.dynamics.moving_kernel.initial_directions import InitialDirections
from sgdsde.kernel.layer_products import JacobianProducts, NetworkJacobian
from sgdsde.linearization import Linearization
from sgdsde.problem import Problem

WELL_CONDITIONED = 100.0
"""Ratio of the largest to the smallest eigenvalue of a Gram matrix whose inverse root is right to rounding."""

COPIES = 5
"""Of the directions, while they are turned."""


def kernel_distance(features: Features, other: Features) -> float:
    """|Phi Phi^T - Psi Psi^T| / |Psi Psi^T| in Frobenius norm over training outputs, Psi the other's. Cost: 6 d r^2."""
    norm = other.gram.square().sum()
    squared = features.gram.square().sum() + norm - 2 * (other.train.mT @ features.train).square().sum()
    return float((squared.clamp_min(0) / norm).sqrt())


class WeightSubspace:
    """V [r, p] with orthonormal rows, in the model's dtype."""

    def __init__(
        self,
        problem: Problem,
        jacobian: NetworkJacobian,
        rows: Tensor,
        dtype: torch.dtype,
        *,
        known: tuple[Params, JacobianProducts] | None = None,
    ) -> None:
        self._problem, self._jacobian, self._dtype = problem, jacobian, dtype
        self.rows, self._known = rows, known

    @classmethod
    def leading(cls, linearization: Linearization, found: InitialDirections, *, rank: int) -> WeightSubspace:
        """The ``rank`` leading ones of the directions at initialization.

        Raises:
            MemoryError: the directions do not fit; names the bytes.
        """
        problem = linearization.problem
        count = min(len(found.values), rank)
        needed = COPIES * problem.functional.n_params * problem.dtype.itemsize
        what = f"one of the {count} weight directions that the noise moves (n_params={problem.functional.n_params})"
        _memory.rows_within(_memory.budget(None, problem.device), needed * count, 1, f"{count} times {what}")
        jacobian = NetworkJacobian.of(problem.functional, problem.x_train, problem.n_outputs)
        start = cls(problem, jacobian, torch.empty(0), linearization.kernel.dtype)
        return start._spanning(problem.params, found.dual[:, :count].mT)

    def __len__(self) -> int:
        return len(self.rows)

    def features(self, params: Params, *, with_test: bool = True) -> Features:
        """J V^T at these parameters."""
        return self.features_along(params, self.rows, with_test=with_test)

    def features_along(self, params: Params, rows: Tensor, *, with_test: bool = True) -> Features:
        """J W^T for other directions W [k, p]."""
        x_test = self._problem.x_test if with_test else None
        train = self._products(params).push(rows).to(self._dtype).contiguous()
        return Features(train, None if x_test is None else self._push(params, rows, x_test))

    def test_features(self, params: Params) -> Tensor | None:
        """J V^T of the test outputs, [m*c, r], or None without any."""
        x_test = self._problem.x_test
        return None if x_test is None else self._push(params, self.rows, x_test)

    def turned(self, params: Params, features: Features) -> WeightSubspace:
        """The directions after one step of subspace iteration toward the leading ones of J at these parameters.

        (Phi^T Phi)^-1 Phi^T J is V plus what J has outside of its span, so that the turn is the smallest.

        Raises:
            ValueError: J is zero there.
        """
        inverse = _power(features.gram, -1.0, self._problem.dtype)
        return self._spanning(params, inverse @ features.train.mT)

    def trace(self, params: Params) -> float | None:
        """Of the kernel of the training set at these parameters, or None where it is not known."""
        return self._products(params).trace()

    def overlap(self, other: WeightSubspace) -> Tensor:
        """V W^T [r, r'] for the directions W of the other: coordinates there to coordinates here."""
        return (self.rows @ other.rows.mT).to(self._dtype)

    def outside(self, params: Params, cotangents: Tensor) -> Tensor:
        """J^T u without its part along these directions, [k, p], for the rows u of cotangents [k, n*c]."""
        rows = self._products(params).pull(cotangents.to(self._problem.dtype))
        return self.without(rows)

    def without(self, rows: Tensor) -> Tensor:
        """Weights [k, p] less their part along these directions."""
        return rows - (rows @ self.rows.mT) @ self.rows

    def rows_of(self, coordinates: Tensor) -> Tensor:
        """V^T a for a [k, r], [k, p]."""
        return coordinates.to(self.rows) @ self.rows

    def by_parameter(self, flat: Tensor) -> Params:
        """Weights [k, p] as [k, *shape] by parameter."""
        shapes = [value.shape for value in self._problem.params.values()]
        parts = flat.split([shape.numel() for shape in shapes], dim=1)
        return {name: part.view(-1, *shape) for name, part, shape in zip(self._problem.params, parts, shapes)}

    def _spanning(self, params: Params, cotangents: Tensor) -> WeightSubspace:
        """Orthonormal directions that span J^T u for the rows u of cotangents [k, n*c]."""
        products = self._products(params)
        rows = products.pull(cotangents.to(self._problem.dtype))
        condition = math.inf
        while condition > WELL_CONDITIONED:  # a further pass removes what rounding left of the first
            if not len(rows):
                raise ValueError(
                    "the gradients along the mean path must stay finite and different from zero, got none that are: "
                    "the outputs no longer depend on the weights (dead or saturated units); use a smaller lr"
                )
            gram = (rows @ rows.mT).double()
            diagonal = torch.linalg.eigvalsh(gram)
            condition = float(diagonal[-1] / diagonal[0].clamp_min(0)) if diagonal[0] > 0 else math.inf
            rows = _power(gram, -0.5, rows.dtype).to(rows) @ rows
        self._known = params, products
        return self._with(rows)

    def _with(self, rows: Tensor) -> WeightSubspace:
        return WeightSubspace(self._problem, self._jacobian, rows, self._dtype, known=self._known)

    def _products(self, params: Params) -> JacobianProducts:
        """With J of the training set, not made anew where it was made last."""
        if self._known is not None and self._known[0] is params:
            return self._known[1]
        return self._jacobian.at(params, self._problem.x_train)

    def _push(self, params: Params, rows: Tensor, x: Tensor) -> Tensor:
        return self._jacobian.at(params, x).push(rows).to(self._dtype).contiguous()


def _power(gram: Tensor, exponent: float, precision: torch.dtype) -> Tensor:
    """A power of a symmetric matrix on its range, [k, r]: symmetric itself where the range is everything."""
    values, vectors = torch.linalg.eigh((gram + gram.mT) / 2)
    kept = values > values[-1] * len(values) * torch.finfo(precision).eps
    if not kept.any():
        received = "zero: the network dies on the way, its outputs no longer depend on the weights (dead units?)"
        remedy = "use a smaller lr, or measure with run_ensemble"
        raise ValueError(complaint("the kernel that moves", "different from zero along the path", received, remedy))
    scaled = (vectors[:, kept] * values[kept] ** exponent).mT
    return vectors @ scaled if kept.all() else scaled
