"""A network as the linear map that is left of it without activations and biases: sums over paths in one pass.

    f_p(x) = prod_l |W_l|^p x   over all paths, p = 1 or 2

Every linear operation enters by the p-th power of its entries' absolute values, constants included: weights are put in
as |w|^p, a factor s becomes |s|^p, a mean over k entries divides by k^p, a normalization in eval mode multiplies by
(|gamma| / sqrt(var + eps))^p. Activations are left out, dropout in eval mode is the identity, and max-pooling passes
the largest entry on, as in the published codes. Anything else has no linear pass and is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Number
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from sgdsde._checks import complaint
from sgdsde._probe import layer_of
from sgdsde._types import Params
from sgdsde.networks import ConvolutionalNetwork
from sgdsde.networks.layers import Dense
from sgdsde.pruning.streamed_weights import FlowWeights
from sgdsde.pruning.weights import Subject

AfterWeights: TypeAlias = "Callable[[Tensor], Tensor] | None"

MODULES = (torch, torch.Tensor, functional)


def _named(*names: str) -> frozenset[Any]:
    """The functions that torch, its tensors or torch.nn.functional know by these names."""
    return frozenset(getattr(module, name) for name in names for module in MODULES if hasattr(module, name))


ACTIVATIONS = _named(
    *("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "prelu", "rrelu", "threshold", "tanh", "tanh_", "sigmoid"),
    *("sigmoid_", "logsigmoid", "hardtanh", "hardtanh_", "hardsigmoid", "hardswish", "elu", "elu_", "selu", "celu"),
    *("gelu", "silu", "mish", "softplus", "softsign", "tanhshrink", "hardshrink", "softshrink", "erf", "sin", "cos"),
    *("abs", "clamp", "clip", "clamp_min", "clamp_max"),
)
IDENTITIES = _named(
    *(
        "neg",
        "negative",
        "__neg__",
        "dropout",
        "dropout1d",
        "dropout2d",
        "dropout3d",
        "alpha_dropout",
        "feature_alpha_dropout",
    )
)
WEIGHTED = _named(
    *("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), "bilinear"
)
SCALINGS = _named("mul", "mul_", "__mul__", "__rmul__", "__imul__", "multiply", "div", "__truediv__", "div_", "divide")
MEANS = _named("mean")
MAX_POOLS = {getattr(functional, f"max_pool{d}d"): getattr(functional, f"avg_pool{d}d") for d in (1, 2, 3)}
POOLS = _named("avg_pool1d", "avg_pool2d", "avg_pool3d") | _named(
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
)
SUMS = _named("add", "add_", "__add__", "__radd__", "__iadd__", "sub", "sub_", "__sub__", "__rsub__", "__isub__")
IN_PLACE = _named("add_", "sub_", "__iadd__", "__isub__")
OTHERS = "use SNIP, GraSP, Magnitude or Random, which need no linear pass"
REFUSED = _named(
    *("layer_norm", "group_norm", "instance_norm", "rms_norm", "local_response_norm", "normalize", "softmax"),
    *("log_softmax", "scaled_dot_product_attention", "multi_head_attention_forward", "bmm", "baddbmm", "exp", "log"),
    *("pow", "__pow__", "square", "sqrt", "embedding", "glu", "einsum"),
)


class LinearPass(TorchFunctionMode):
    """While active, torch's functions are the linear maps of the module's text.

    Args:
        power: p. after_weights: applied to the result of every linear or convolution call, such as a rescaling.
        sums_pools: max-pooling becomes average pooling, so that no path is hidden behind a larger one.
    Attributes:
        stand_ins: by the ``id`` of a tensor, what makes the one that takes its place in every call.
    """

    def __init__(self, power: int = 1, after_weights: AfterWeights = None, *, sums_pools: bool = False) -> None:
        super().__init__()
        self.power, self.after_weights, self.sums_pools = power, after_weights, sums_pools
        self.stand_ins: dict[int, Callable[[], Tensor]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.stand_ins and func.__name__ != "__get__":  # shapes and dtypes are those of the model
            args, kwargs = self._stood_in(args), self._stood_in(kwargs)
        if func in REFUSED:
            raise NotLinear(func.__name__)
        if func in ACTIVATIONS or func in IDENTITIES:
            return args[0] if args else kwargs["input"]
        if func in WEIGHTED:
            result = func(*args, **kwargs)
            return result if self.after_weights is None else self.after_weights(result)
        if self.sums_pools and func in MAX_POOLS:
            return self._summed_pool(func, args, kwargs)
        if func is functional.batch_norm:
            return self._batch_norm(*args, **kwargs)
        if func in SCALINGS and len(args) == 2 and any(isinstance(value, Number) for value in args):
            return func(*(abs(value) ** self.power if isinstance(value, Number) else value for value in args), **kwargs)  # type: ignore[arg-type]
        if func in SUMS and len(args) >= 2:
            return self._sum(func, args, kwargs)
        result = func(*args, **kwargs)
        if self.power != 1 and (func in MEANS or func in POOLS) and isinstance(result, Tensor):
            return result / self._averaged(func, args, kwargs, result) ** (self.power - 1)
        return result

    def _stood_in(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            maker = self.stand_ins.get(id(value))
            return value if maker is None else maker()
        if type(value) in (tuple, list):
            return type(value)(self._stood_in(item) for item in value)
        return {key: self._stood_in(item) for key, item in value.items()} if type(value) is dict else value

    @staticmethod
    def _summed_pool(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
        words = dict(zip(names, args)) | kwargs
        if words.pop("dilation", 1) not in (1, (1,), (1, 1), (1, 1, 1)):
            raise NotLinear("max-pooling with dilation")
        words.pop("return_indices", None)
        return MAX_POOLS[func](**words)

    def _batch_norm(
        self, x: Tensor, mean: Tensor, var: Tensor, weight: Any = None, bias: Any = None, *rest: Any, **words: Any
    ) -> Tensor:
        eps = words.get("eps", rest[2] if len(rest) > 2 else 1e-5)
        scale = (var + eps).rsqrt() ** self.power if weight is None else weight * (var + eps).rsqrt() ** self.power
        return x * scale.view(1, -1, *[1] * (x.ndim - 2))

    def _sum(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Constants are shifts and are left out; differences count as sums, all signs being positive."""
        tensors = [value for value in args[:2] if isinstance(value, Tensor)]
        if len(tensors) == 1:
            return tensors[0]
        factor = abs(kwargs.pop("alpha", 1)) ** self.power
        added = tensors[1] if factor == 1 else factor * tensors[1]
        return tensors[0].add_(added) if func in IN_PLACE else tensors[0] + added

    @staticmethod
    def _averaged(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> float:
        """Entries that one entry of the result is the mean of."""
        x = args[0] if args else kwargs["input"]
        if func in MEANS or "adaptive" in func.__name__:
            return x.numel() / result.numel()
        size = args[1] if len(args) > 1 else kwargs["kernel_size"]
        dims = int(func.__name__[-2])
        return float(size**dims if isinstance(size, int) else math.prod(size * dims if len(size) == 1 else size))


class NotLinear(Exception):  # noqa: N818
    """A call that has no linear pass; becomes a ValueError that names the layer."""


class Rescaling:
    """Powers of two that bring the largest entry after every layer to the order of one, the same in every later pass.

    In a network whose layers follow each other they change all outputs, and all scores, by one factor.
    """

    def __init__(self) -> None:
        self._scales: list[Tensor] = []
        self._call = 0

    def restart(self) -> None:
        """The next pass starts again at the first layer."""
        self._call = 0

    def __call__(self, y: Tensor) -> Tensor:
        if self._call == len(self._scales):
            largest = y.detach().abs().max()
            exponent = torch.where(largest > 0, largest, 1.0).log2().round()
            self._scales.append(torch.exp2(-exponent))
        self._call += 1
        return y * self._scales[self._call - 1]


def linear_outputs(
    subject: Subject,
    weights: Mapping[str, Tensor],
    x: Tensor,
    mode: LinearPass,
) -> Tensor:
    """f_p(x) [n, c] with ``weights`` (already |w|^p, by name) in place of the prunable ones.

    A mapping that makes them when they are asked for is asked at every call, so that not all are there at a time.

    Raises:
        ValueError: a layer without a linear pass, by name; an input that the model does not take.
    """
    rest = background(subject, mode.power)
    mode.stand_ins = {id(subject.parameter(name)): partial(weights.__getitem__, name) for name in subject.weights}
    try:
        with mode:
            return subject.forward(rest, x)
    except NotLinear as error:
        layer = layer_of(error.__traceback__, subject.module)
        received = f"{layer}, which calls {error}"
        raise ValueError(complaint("model", "made of layers with a linear pass", received, OTHERS)) from None
    except RuntimeError as error:
        received = f"shape {list(x.shape)}: {error}"
        remedy = "pass a Problem, or an example of the right shape"
        raise ValueError(complaint("example", "an input that the model takes", received, remedy)) from error


def check_linear(subject: Subject, x: Tensor) -> None:
    """Raises ``ValueError`` where the pass is not homogeneous: outputs must double with the input."""
    weights, rescaling = FlowWeights(subject, {}, 1), Rescaling()
    with torch.no_grad():
        once = linear_outputs(subject, weights, x, LinearPass(1, rescaling))
        rescaling.restart()
        twice = linear_outputs(subject, weights, 2 * x, LinearPass(1, rescaling))
    if not torch.allclose(2 * once, twice, rtol=1e-9, atol=0):
        received = f"{type(subject.module).__name__}, whose outputs do not double with its input"
        raise ValueError(complaint("model", "linear without its activations and biases", received, OTHERS))


def check_used_once(subject: Subject, x: Tensor) -> None:
    """Raises ``ValueError`` where a path meets a weight twice (a layer called again): sums over paths need degree one.

    Cost: a backward pass, and a forward pass for every weight tensor.
    """
    leaves = {name: subject.values(name).abs().requires_grad_() for name in subject.weights}
    total = linear_outputs(subject, leaves, x, LinearPass()).sum()
    slopes = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
    values = {name: leaf.detach() for name, leaf in leaves.items()}
    for (name, value), slope in zip(values.items(), slopes):
        with torch.no_grad():
            doubled = linear_outputs(subject, values | {name: 2 * value}, x, LinearPass()).sum()
        share, gain = float((value * slope).sum()), float(doubled - total.detach())
        if abs(gain - share) > 1e-9 * max(abs(gain), abs(float(total.detach()))):
            remedy = "give each call weights of its own"
            raise ValueError(complaint(f"weight {name!r}", "met once on every path", "a layer called again", remedy))


def background(subject: Subject, power: int) -> Params:
    """Everything but the prunable weights: shifts are zero, scales |gamma|^p, other layers' weights |w|^p."""
    tensors = {}
    for name, value in subject.rest().items():
        kind = name.rpartition(".")[2]
        if not value.is_floating_point() or kind in ("running_var", "weight_mask"):
            tensors[name] = value
        elif kind == "running_mean" or kind.endswith("bias"):
            tensors[name] = torch.zeros_like(value)
        else:
            tensors[name] = value.abs() ** power
    return tensors


def ones_input(subject: Subject, example: Tensor | None = None) -> Tensor:
    """An input of ones [1, ...] of the shape that the model takes, float64.

    Raises:
        ValueError: nothing says which shape that is.
    """
    device = subject.values(next(iter(subject.weights))).device
    if example is not None:
        return torch.ones_like(example, dtype=torch.float64, device=device)
    if subject.problem is not None:
        return torch.ones_like(subject.problem.x_train[:1], dtype=torch.float64)
    module = subject.module
    shape: tuple[int, ...] | None = None
    first = module.get_submodule(next(iter(subject.weights.values())).layer)
    if isinstance(module, ConvolutionalNetwork):
        shape = (module.in_channels, module.image_size, module.image_size)
    elif isinstance(first, nn.Linear):
        shape = (first.in_features,)
    elif isinstance(first, Dense):
        shape = (first.weight.shape[1],)
    if shape is None:
        remedy = "pass a Problem, or example=torch.ones(1, channels, height, width)"
        raise ValueError(complaint("model", "one that tells the shape of its inputs", type(module).__name__, remedy))
    return torch.ones(1, *shape, dtype=torch.float64, device=device)
