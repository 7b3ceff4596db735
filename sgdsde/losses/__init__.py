"""Losses as the theory needs them: a mean over examples, its value and its first two derivatives at the outputs.

L = (1/n) sum_i l(f_i, y_i), in the normalization of the torch module that the user passed:

    nn.MSELoss()            l = |f - y|^2 / c,        gradient s (f - y) with s = 2/c,           Hessian s I
    nn.CrossEntropyLoss()   l = -log softmax(f)[y],   gradient softmax(f) - onehot(y),           Hessian diag p - p p^T
    any other               l_i = loss(f_i, y_i),     gradient and Hessian by automatic differentiation

Behind a log_softmax any other loss is that of the logits, loss(log_softmax(f), y): ``normalization``.
"""

from sgdsde.losses.base import Loss, in_dtype, is_right
from sgdsde.losses.conversion import as_loss
from sgdsde.losses.cross_entropy import CrossEntropy
from sgdsde.losses.general import TorchLoss
from sgdsde.losses.normalization import on_the_simplex, refuse_domain, refuse_unbounded
from sgdsde.losses.squared_error import SquaredError
from sgdsde.losses.validation import examine

__all__ = [
    "CrossEntropy",
    "Loss",
    "SquaredError",
    "TorchLoss",
    "as_loss",
    "examine",
    "in_dtype",
    "is_right",
    "on_the_simplex",
    "refuse_domain",
    "refuse_unbounded",
]
