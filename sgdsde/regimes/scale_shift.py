"""The regime that SGD ends in: its noise lowers the scale of a diagonal network of depth 2 while it trains."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from sgdsde._checks import complaint, whole_number, word
from sgdsde.dynamics import Dynamics
from sgdsde.linearization import Linearization
from sgdsde.losses import SquaredError
from sgdsde.networks import DiagonalLinear
from sgdsde.prediction import predict
from sgdsde.sgd import SGD

Weighting: TypeAlias = Literal["examples", "mean_field"]
"""Whether each example's predicted residual is weighed with its own features, or their mean with the loss."""

DENSE_STEPS = 1000
"""First steps that are all summed; later ones by the trapezoidal rule on a geometric grid."""


def effective_scale(
    linearization: Linearization,
    sgd: SGD,
    n_steps: int,
    *,
    weighting: Weighting = "examples",
    dynamics: Dynamics | None = None,
) -> Tensor:
    """Scale a_inf whose gradient flow ends where SGD of this diagonal network does, predicted before training, [d].

    Along every path of SGD, exactly and by coordinate, w_+ w_- = a^2 prod (1 - 4 lr^2 G^2), G the minibatch gradient in
    beta, so that

        log(a_inf^2/a^2) = -4 sum lr^2 E G_j^2 + O(lr^4 G^4)
        E G_j^2 = (phi/B)((4/n) sum_i E r_i^2 x_ij^2 - g_j^2) + g_j^2,   g = (2/n) X^T E r
        mean field:  a_inf = a exp(-8 (phi/B) lr diag(X^T X/n) int E L dt)

    with the residuals and the loss that ``predict`` gives. ``interpolant(x, y, scale=a_inf)`` is then the predicted end
    point of SGD.

    Args:
        linearization: of a ``networks.DiagonalLinear`` of depth 2 under ``nn.MSELoss``. sgd: plain, constant, with
            i.i.d. batches. n_steps: until the loss has vanished. weighting: "examples" or "mean_field", which leaves
            the gradient descent's own part g out. dynamics: as in ``predict``.
    Raises:
        ValueError: another network, loss or SGD.
    Exactness: up to 0.7 of ``max_lr`` within 1.3 % of the measured shift at z = max|beta_l2|/a^2 = 1.1, 6 % at z = 3;
        in mean field within 8 and 11 %.
    Cost: one prediction.
    Source: Pesme, Pillaud-Vivien, Flammarion, arXiv:2106.09524 (mean field); docs/regimes.md.
    """
    word("weighting", weighting, ("examples", "mean_field"))
    n_steps = whole_number("n_steps", n_steps, 1)
    problem, model = linearization.problem, linearization.problem.model
    if not isinstance(model, DiagonalLinear) or model.depth != 2:
        received = f"{type(model).__name__}" + (f" of depth {model.depth}" if isinstance(model, DiagonalLinear) else "")
        raise ValueError(complaint("linearization", "of a DiagonalLinear of depth 2", received))
    if not isinstance(problem.criterion, SquaredError) or problem.criterion.curvature != 2:
        raise ValueError(complaint("loss", "nn.MSELoss()", type(problem.loss).__name__))
    if not sgd.is_plain or callable(sgd.lr) or callable(sgd.batch_size) or sgd.sampling == "shuffled":
        raise ValueError(complaint("sgd", "plain, constant and with i.i.d. batches", sgd))
    n, noise = problem.n_train, sgd.plan(problem.n_train, 1).noise_factor(0)
    dense = np.arange(min(n_steps, DENSE_STEPS) + 1)
    later = np.geomspace(dense[-1], n_steps, 300).round().astype(int) if n_steps > dense[-1] else dense
    record = np.unique(np.concatenate([dense, later])).tolist()
    predicted = predict(linearization, sgd, n_steps, dynamics=dynamics, record=record, observe=("loss", "outputs"))
    steps, x = predicted.steps.double(), problem.x_train.double()
    if weighting == "mean_field":
        total = torch.trapezoid(predicted.train_loss.mean, steps)
        exponent = -16 * noise * x.square().mean(0) * total
    else:
        outputs = predicted.train_outputs
        assert outputs is not None
        residual = outputs.mean[..., 0] - problem.y_train.double()[:, 0]
        single = (4 / n) * (residual.square() + outputs.std[..., 0].square()) @ x.square()
        mean = ((2 / n) * residual @ x).square()
        exponent = -4 * torch.trapezoid(noise * (single - mean) + mean, steps, dim=0)
    start = (model.plus * model.minus).detach().double().abs().sqrt()
    return start * torch.exp(sgd.lr_at(0) ** 2 * exponent / 2)


def effective_scale_of(model: DiagonalLinear) -> Tensor:
    """sqrt |w_+ w_-|, [d]: the scale whose gradient flow ends where this trained network of depth 2 is."""
    if not isinstance(model, DiagonalLinear) or model.depth != 2:
        received = type(model).__name__ + (f" of depth {model.depth}" if isinstance(model, DiagonalLinear) else "")
        raise ValueError(complaint("model", "a DiagonalLinear of depth 2, where the product is kept", received))
    return (model.plus * model.minus).detach().double().abs().sqrt()
