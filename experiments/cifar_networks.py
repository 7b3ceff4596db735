"""VGG-16 and ResNet-20 on CIFAR-10, pruned at initialization and trained as the papers do; for paper scale."""

from __future__ import annotations

import copy
import itertools
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import sgdsde
from experiments.frame import Progress, device
from experiments.pruned_networks import masks_of, right_answers
from sgdsde import datasets, pruning
from sgdsde.datasets.files import find_file
from sgdsde.datasets.images import CIFAR_TEST_FILE, CIFAR_TRAIN_FILES

VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
"""Channels of the convolutions; 0 is a max-pooling."""

CRITERIA: dict[str, pruning.Criterion] = {
    "random": pruning.Random(),
    "magnitude": pruning.Magnitude(),
    "snip": pruning.SNIP(),
    "grasp": pruning.GraSP(temperature=200.0),
    "synflow": pruning.SynFlow(n_rounds=100),
}
SPARSITIES = (0.9, 0.968, 0.99, 0.9968, 0.999)


def cifar_is_there() -> bool:
    """Whether $SGDSDE_DATA holds all of CIFAR-10's files."""
    folder = Path(os.environ.get("SGDSDE_DATA") or "/nowhere").expanduser() / "cifar-10-batches-bin"
    return all(find_file(folder, name) for name in (*CIFAR_TRAIN_FILES, CIFAR_TEST_FILE))


def vgg16() -> nn.Sequential:
    """Thirteen convolutions with batch normalization, and a linear read-out."""
    layers: list[nn.Module] = []
    channels = 3
    for width in VGG16:
        if width:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


class Block(nn.Module):
    """Two convolutions beside a skip connection that pads and strides."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(after), nn.BatchNorm2d(after)])
        self.stride, self.extra = stride, after - before

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[1](self.second(torch.relu(self.norms[0](self.first(x)))))
        skip = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
        return torch.relu(y + skip)


def resnet20() -> nn.Sequential:
    """Nine blocks of 16, 32 and 64 channels."""
    widths = (16, 16, 16, 16, 32, 32, 32, 64, 64, 64)
    blocks = [Block(a, b, 1 if a == b else 2) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    )


def cifar_accuracies(
    progress: Progress,
    *,
    n_steps: int = 62_500,
    n_seeds: int = 3,
    n_train: int = 50_000,
    n_test: int = 10_000,
    sparsities: tuple[float, ...] = SPARSITIES,
) -> dict[str, np.ndarray]:
    """Test accuracy [seed, criterion, sparsity] of each network after SGD with momentum .9, decay 5e-4, cosine rate."""
    data = datasets.cifar10(n_train, n_test, target="class", flatten=False).to(device=device())
    arrays = {"cifar_criteria": np.array(list(CRITERIA)), "cifar_sparsities": np.array(sparsities)}
    for name, build in {"vgg16": vgg16, "resnet20": resnet20}.items():
        found = np.zeros((n_seeds, len(CRITERIA), len(sparsities)))
        cells = [(s, c, k) for s in range(n_seeds) for c in range(len(CRITERIA)) for k in range(len(sparsities))]
        for seed, place, column in progress(name)(cells):
            with torch.random.fork_rng():
                torch.random.default_generator.manual_seed(seed)
                model = build().to(device()).eval()
            problem = sgdsde.Problem(model, **data.tensors(), loss=nn.CrossEntropyLoss())
            criterion = list(CRITERIA.values())[place]
            masks = masks_of(problem, criterion, sparsities[column], min(1000, n_train), seed=seed)
            found[seed, place, column] = trained(masks.apply(model), data, n_steps, seed)
        arrays[f"cifar_{name}"] = found
    return arrays


def trained(model: pruning.PrunedNetwork, data: datasets.Dataset, n_steps: int, seed: int) -> float:
    """Accuracy after training with crops and flips, batches of 128."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n_steps):
        batch = torch.randint(data.n_train, (128,), generator=generator)
        x = augmented(data.x_train[batch.to(data.x_train.device)], generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), data.y_train[batch.to(data.y_train.device)]).backward()
        optimizer.step()
        scheduler.step()
    return right_answers(model.eval(), data.x_test, data.y_test)


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shifted by up to four pixels and flipped at random, one draw a batch."""
    right, down, flip = (int(torch.randint(high, (1,), generator=generator)) for high in (9, 9, 2))
    shifted = nn.functional.pad(x, (4, 4, 4, 4))[..., down : down + x.shape[-2], right : right + x.shape[-1]]
    return shifted.flip(-1) if flip else shifted


if __name__ == "__main__":
    print(
        {
            k: v.tolist()
            for k, v in cifar_accuracies(
                Progress("CIFAR-10"), n_steps=2, n_seeds=1, n_train=256, n_test=64, sparsities=(0.9,)
            ).items()
        }
    )
