"""Conversion of a torch loss to the library's form."""

from __future__ import annotations

from torch import nn

from sgdsde._checks import complaint
from sgdsde.losses.base import Loss
from sgdsde.losses.cross_entropy import CrossEntropy
from sgdsde.losses.general import TorchLoss, describe
from sgdsde.losses.squared_error import SquaredError

WEIGHTS_REMEDY = "it divides by the weights of each batch, which is no mean over examples"


def as_loss(loss: object, n_outputs: int) -> Loss:
    """The loss in the library's form: in closed form for ``nn.MSELoss`` and ``nn.CrossEntropyLoss``, else general.

    Raises:
        ValueError: a reduction other than "mean", class weights or an ignored index (each divides by something other
            than the number of examples); parameters of the loss that SGD would train.
        TypeError: no module and no function.
    """
    if isinstance(loss, type) or not callable(loss):
        received = repr(loss) if not isinstance(loss, type) else f"the class {loss.__name__}"
        remedy = f"create the module, nn.{loss.__name__}()" if isinstance(loss, type) else "use nn.MSELoss()"
        raise TypeError(complaint("loss", "a loss module or a function loss(outputs, targets)", received, remedy))
    _check_reduction(loss)
    if type(loss) is nn.MSELoss or loss is nn.functional.mse_loss:
        return SquaredError(2.0 / n_outputs)
    if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss):
        if loss.weight is not None:
            raise ValueError(complaint("loss.weight", "None", "class weights", WEIGHTS_REMEDY))
        if loss.ignore_index != -100:
            remedy = "remove these examples from the data"
            raise ValueError(complaint("loss.ignore_index", "unused", loss.ignore_index, remedy))
    if type(loss) is nn.CrossEntropyLoss or loss is nn.functional.cross_entropy:
        if n_outputs == 1:
            received, remedy = "one output, whose softmax is always 1", "use nn.BCEWithLogitsLoss() with targets [n, 1]"
            raise ValueError(complaint("nn.CrossEntropyLoss", "used with two outputs or more", received, remedy))
        return CrossEntropy(getattr(loss, "label_smoothing", 0.0))
    if isinstance(loss, nn.Module):
        trained = [name for name, value in loss.named_parameters() if value.requires_grad]
        if trained:
            remedy = "use requires_grad_(False), or make it part of the model"
            raise ValueError(complaint("loss", "without parameters of its own to train", trained[0], remedy))
    return TorchLoss(loss, describe(loss))


def _check_reduction(loss: object) -> None:
    """``batchmean`` is a mean over examples too; a sum is none, and multiplies every step by the batch size."""
    reduction = getattr(loss, "reduction", "mean")
    if reduction == "mean" or (isinstance(loss, nn.KLDivLoss) and reduction == "batchmean"):
        return
    remedy = "use reduction='mean'"
    if reduction == "sum":
        remedy += " and multiply lr by the batch size"
    raise ValueError(complaint("loss.reduction", "'mean'", repr(reduction), remedy))
