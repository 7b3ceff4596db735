"""Networks to prune, written out, and slow twins of what pruning computes in one pass."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import sgdsde
from sgdsde import networks


class RowByRow(nn.Linear):
    """A linear layer that rounds the same whatever the batch: in chaos depth 40 makes a large number of a last bit."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.unsqueeze(-2) * self.weight).sum(-1) + (0 if self.bias is None else self.bias)


def dense(
    sizes: Sequence[int],
    seed: int,
    *,
    activation: str = "relu",
    sigma_w: float = 2**0.5,
    sigma_b: float = 0.0,
    kind: type[nn.Linear] = nn.Linear,
) -> nn.Sequential:
    """Linear layers of these sizes with one activation between them, weights N(0, sigma_w^2 / fan_in), float64."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(itertools.pairwise(sizes)):
        layer = kind(before, after, bias=sigma_b > 0, dtype=torch.float64)
        with torch.no_grad():
            entries = torch.randn(after, before, dtype=torch.float64, generator=generator)
            layer.weight.copy_(sigma_w / math.sqrt(before) * entries)
            if sigma_b > 0:
                layer.bias.copy_(sigma_b * torch.randn(after, dtype=torch.float64, generator=generator))
        layers += [layer] if index == 0 else [nn.ReLU() if activation == "relu" else nn.Tanh(), layer]
    return nn.Sequential(*layers)


def weights_of(model: nn.Module) -> list[Tensor]:
    """The matrices of a network of linear layers, detached."""
    return [value.detach() for value in model.parameters() if value.ndim == 2]


def classification(model: nn.Module, n: int, *, in_features: int, classes: int, seed: int = 0) -> sgdsde.Problem:
    """Random examples with random classes under cross-entropy, float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, in_features, dtype=torch.float64, generator=generator)
    y = torch.randint(classes, (n,), generator=generator)
    return sgdsde.Problem(model, x, y, loss=nn.CrossEntropyLoss())


def digits_classes(model: nn.Module, n_train: int = 256, n_test: int = 64, *, scale: float = 1.0) -> sgdsde.Problem:
    """The digits, scaled, with their classes under cross-entropy, in the model's dtype."""
    dtype = next(model.parameters()).dtype
    tensors = sgdsde.datasets.digits(n_train, n_test, target="class", dtype=dtype).tensors()
    tensors |= {name: scale * tensors[name] for name in ("x_train", "x_test")}
    return sgdsde.Problem(model, **tensors, loss=nn.CrossEntropyLoss())


def standard_mlp(sizes: Sequence[int], seed: int, **words: object) -> networks.MLP:
    """An ``MLP`` of one width in standard parametrization, float64."""
    generator = torch.Generator().manual_seed(seed)
    return networks.MLP(
        sizes[0],
        sizes[1],
        sizes[-1],
        depth=len(sizes) - 2,
        parametrization="standard",
        dtype=torch.float64,
        generator=generator,
        **words,  # type: ignore[arg-type]
    )


def paths_by_enumeration(weights: Sequence[Tensor]) -> list[tuple[float, tuple[tuple[int, int, int], ...]]]:
    """Value and edges (layer, out, in) of every path through a network of matrices [out, in]."""
    sizes = [weights[0].shape[1], *(w.shape[0] for w in weights)]
    found = []
    for units in itertools.product(*map(range, sizes)):
        edges = tuple((layer, units[layer + 1], units[layer]) for layer in range(len(weights)))
        value = math.prod(float(weights[layer][i, j]) for layer, i, j in edges)
        found.append((value, edges))
    return found
