"""A case as a torch model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.ntk.cases import Case


def torch_case(case: Case, dtype: torch.dtype = torch.float32) -> tuple[nn.Sequential, Tensor]:
    """The model of torch's own modules, and its inputs; shared layers are one module, tied ones share a Parameter."""
    values = {name: torch.from_numpy(value).to(dtype) for name, value in case.weights().items()}
    parameters = {name: nn.Parameter(value) for name, value in values.items()}
    made: dict[tuple[str, str], nn.Module] = {}
    modules: list[nn.Module] = []
    for layer in case.layers:
        if layer.kind == "relu":
            modules.append(nn.ReLU())
        elif layer.kind == "pool":
            modules += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        else:
            key = (layer.weight, layer.bias)
            if key not in made:
                module: nn.Linear | nn.Conv2d
                if layer.kind == "linear":
                    module = nn.Linear(layer.fan_in, layer.fan_out)
                else:
                    module = nn.Conv2d(layer.fan_in, layer.fan_out, 3, padding=1)
                module.weight, module.bias = parameters[layer.weight], parameters[layer.bias]
                made[key] = module
            modules.append(made[key])
    return nn.Sequential(*modules), torch.from_numpy(case.inputs()).to(dtype)
