"""Networks that are stacks of known layers, found in their module exactly: by type, and with nothing attached to them.

What is not known for certain to be such a stack is None, and ``torch.func.vmap`` takes it.
"""

from __future__ import annotations

from torch import Tensor, nn

from sgdsde._functional import FunctionalModel
from sgdsde.ensemble import layers
from sgdsde.ensemble.layers import Layer
from sgdsde.networks import CNN, MLP
from sgdsde.networks import layers as own_layers
from sgdsde.networks.activations import resolve_activation
from sgdsde.networks.network import Network

BY_TYPE: dict[type[nn.Module], Layer] = {nn.ReLU: layers.RELU, nn.Tanh: layers.TANH, nn.Sigmoid: layers.SIGMOID}
BY_NAME: dict[str, Layer] = {"relu": layers.RELU, "tanh": layers.TANH, "sigmoid": layers.SIGMOID}


def chain_of(functional: FunctionalModel) -> list[Layer] | None:
    """The layers of a model one after the other, each parameter used once, or None."""
    if functional.module is None or functional.shared:
        return None
    found = _layers(functional.module, "")
    if found is None:
        return None
    used = [name for layer in found for name in layer.names]
    return found if sorted(used) == sorted(functional.params) else None


def _layers(module: nn.Module, prefix: str) -> list[Layer] | None:
    if _is_altered(module):
        return None
    kind = type(module)
    if kind is nn.Sequential:
        parts = [_layers(child, f"{prefix}{name}.") for name, child in module.named_children()]
        # One module at two places has a single name here, and Sequential calls it twice.
        if len(parts) != len(module) or any(part is None for part in parts):  # type: ignore[arg-type]
            return None
        return [layer for part in parts if part is not None for layer in part]
    if isinstance(module, MLP | CNN):
        return _of_network(module, prefix) if kind in (MLP, CNN) else None
    if kind is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
        return [layers.Flatten()]
    affine = _affine(module, prefix)
    if affine is not None:
        return [affine]
    if kind in BY_TYPE:
        return [BY_TYPE[kind]]
    has_tensors = any(True for _ in module.parameters()) or any(True for _ in module.buffers())
    return None if has_tensors else [layers.PerExample(module)]


def _affine(module: nn.Module, prefix: str) -> Layer | None:
    kind, bias = type(module), f"{prefix}bias" if getattr(module, "bias", None) is not None else None
    if kind is nn.Linear:
        return layers.Affine(f"{prefix}weight", bias)
    if isinstance(module, own_layers.Layer):
        factors = (module.weight_multiplier, module.bias_multiplier)
        if kind is own_layers.Dense:
            return layers.Affine(f"{prefix}weight", bias, *factors)
        if kind is own_layers.Convolution:
            return layers.Convolution(f"{prefix}weight", bias, *factors, padding=(module.padding,) * 2)  # type: ignore[arg-type]
    is_plain = isinstance(module, nn.Conv2d) and kind is nn.Conv2d and module.padding_mode == "zeros"
    if is_plain and not isinstance(module.padding, str):
        places = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
        return layers.Convolution(f"{prefix}weight", bias, groups=module.groups, **places)  # type: ignore[arg-type]
    return None


def _of_network(network: MLP | CNN, prefix: str) -> list[Layer] | None:
    activation = _activation(network)
    found: list[Layer] = [layers.Flatten()] if isinstance(network, MLP) else []
    for name, module in (
        *((f"hidden.{i}", module) for i, module in enumerate(network.hidden)),
        ("read_out", network.read_out),
    ):
        layer = None if _is_altered(module) else _affine(module, f"{prefix}{name}.")
        if layer is None or activation is None:
            return None
        if name == "read_out" and isinstance(network, CNN):
            found.append(layers.Flatten() if network.readout == "flatten" else layers.PerExample(_positions_averaged))
        found += [layer] if name == "read_out" else [layer, activation]
    return found


def _activation(network: Network) -> Layer | None:
    activation = network.activation
    if isinstance(activation, str):
        return BY_NAME.get(activation) or layers.PerExample(resolve_activation(activation))
    if isinstance(activation, nn.Module):
        found = _layers(activation, "")
        return found[0] if found is not None and len(found) == 1 and not found[0].names else None
    return layers.PerExample(activation)


def _positions_averaged(images: Tensor) -> Tensor:
    return images.mean((-2, -1))


def _is_altered(module: nn.Module) -> bool:
    """Whether something beside its class acts when the module is called: hooks, or a forward of its own."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)
