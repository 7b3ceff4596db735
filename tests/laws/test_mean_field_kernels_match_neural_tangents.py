"""Law: kernels of infinite width equal those of an independent implementation, stored beside their script."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sgdsde import meanfield
from sgdsde.networks import CNN, MLP, ConvResNet, Network, ResNet

STORED = np.load(Path(__file__).parents[1] / "data" / "neural_tangents_kernels.npz")
NAMES = sorted({name.rsplit("/", 1)[0] for name in STORED.files if "/" in name})
SIGMAS = {"sigma_w": 1.3, "sigma_b": 0.2}


def network_named(name: str) -> Network:
    kind, activation, *rest = name.split("/")
    if kind == "MLP":
        return MLP(6, 1, 1, depth=int(rest[0]), activation=activation, **SIGMAS)
    if kind == "ResNet":
        return ResNet(6, 1, 1, depth=4, scaling=rest[0], activation=activation, **SIGMAS)
    family = {"CNN": CNN, "ConvResNet": ConvResNet}[kind]
    return family(2, 5, 1, 1, depth=3, readout=rest[0], activation=activation, **SIGMAS)


@pytest.mark.parametrize("name", NAMES)
def test_both_kernels_agree(name):
    inputs = ("images1", "images2") if "Conv" in name or "CNN" in name else ("x1", "x2")
    x1, x2 = (torch.from_numpy(STORED[key]) for key in inputs)
    kernels = meanfield.analytic_kernels(x1, x2, network_named(name))
    for which in ("nngp", "ntk"):
        stored = STORED[f"{name}/{which}"]
        np.testing.assert_allclose(getattr(kernels, which), stored, rtol=1e-9)


def test_another_sigma_is_told_apart():
    name = "MLP/relu/3"
    other = MLP(6, 1, 1, depth=3, activation="relu", sigma_w=1.3, sigma_b=0.21)
    kernel = meanfield.analytic_ntk(torch.from_numpy(STORED["x1"]), torch.from_numpy(STORED["x2"]), other)
    assert np.abs(kernel.numpy() / STORED[f"{name}/ntk"] - 1).max() > 1e-3
