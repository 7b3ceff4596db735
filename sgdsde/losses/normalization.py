"""Losses that hold for what the last layer of a model guarantees, and mean another loss of what stands before it.

Behind log_softmax a loss may be linear in the outputs (``nn.NLLLoss``, ``nn.KLDivLoss``), because the outputs are known
to be log-probabilities. Those of the linearized model are not: they grow without bound, and such a loss falls with
them. Since log_softmax(log_softmax(z)) = log_softmax(z), the same training is that under

    l(f, y) = loss(log_softmax(f), y),

which has the value and the parameters' gradient of the loss, for every value of the weights, and is bounded below:
cross-entropy of logits in the case of ``nn.NLLLoss``.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from sgdsde._checks import complaint
from sgdsde.losses.general import Axes, TorchLoss


def log_probabilities(outputs: Tensor) -> Axes | None:
    """How outputs [n, c] fall into groups whose exponentials add up to 1; None if they do not.

    Several groups are the flattened outputs of a model with several log_softmax an example, one a token or pixel.
    """
    tolerance = torch.finfo(outputs.dtype).eps ** 0.6 * (1 + float(outputs.abs().max()))
    c = outputs.shape[1]
    for size in range(c, 1, -1):
        if c % size:
            continue
        for axes in (Axes(c // size, size, True), Axes(c // size, size, False)):
            if float(axes.of(outputs).logsumexp(axes.axis).abs().max()) <= tolerance:
                return axes
    return None


def on_the_simplex(loss: TorchLoss, *outputs: Tensor) -> TorchLoss:
    """The loss of logits that the model is trained with, where its outputs are log-probabilities whatever its weights.

    Args:
        outputs: [., c] at several values of the weights.
    """
    found = {log_probabilities(each.detach()) for each in outputs}
    axes = found.pop()
    if found or axes is None:
        return loss
    return replace(loss, axes=axes)


def refuse_unbounded(loss: TorchLoss) -> None:
    """Raises ``ValueError`` for a loss that is linear in the outputs: a linearized model takes it to minus infinity."""
    if not loss.is_linear:
        return
    remedy = "put the last layer's normalization into the loss, loss(normalize(f), y), and end the model before it"
    if isinstance(loss.loss, nn.NLLLoss | nn.KLDivLoss) or loss.loss is nn.functional.nll_loss:
        remedy = "its outputs are no log-probabilities: use nn.CrossEntropyLoss() on logits, or end with log_softmax"
    received = f"{loss.name}, linear in them"
    raise ValueError(complaint("loss", "bounded below as a function of the outputs", received, remedy))


def refuse_domain(loss: TorchLoss) -> None:
    """Raises ``ValueError`` for a loss that is defined only where the model's last layer keeps its outputs.

    Real training never leaves that domain. A linearized model does.
    """
    if not loss.has_domain:
        return
    remedy = "let the model return what its last layer is given, and the loss apply that layer"
    if isinstance(loss.loss, nn.BCELoss) or loss.loss is nn.functional.binary_cross_entropy:
        remedy = "use nn.BCEWithLogitsLoss() and a model without its last sigmoid"
    elif isinstance(loss.loss, nn.PoissonNLLLoss):
        remedy = "use nn.PoissonNLLLoss(log_input=True) and a model of the logarithm"
    received = f"{loss.name}, which holds behind the model's last layer only"
    raise ValueError(complaint("loss", "defined for all outputs where a model is linearized", received, remedy))
