"""What networks show of their settings, and what they refuse."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn

from sgdsde import networks
from sgdsde.networks import CNN, MLP, ConvResNet, ResNet

KINDS = ["MLP", "ResNet", "CNN", "ConvResNet"]


def build(kind: str, **words) -> nn.Module:
    """One small network of each kind, all of them for images of 2 channels and size 4."""
    sizes = (32, 6, 2) if kind in ("MLP", "ResNet") else (2, 4, 6, 2)
    return getattr(networks, kind)(*sizes, **({"depth": 3} | words))


def test_settings_are_public():
    mlp = MLP(3, 4, 2, depth=2, activation="erf", parametrization="standard", sigma_w=1.5, sigma_b=0.1)
    assert (mlp.in_features, mlp.width, mlp.out_features, mlp.depth) == (3, 4, 2, 2)
    assert (mlp.activation, mlp.parametrization, mlp.sigma_w, mlp.sigma_b) == ("erf", "standard", 1.5, 0.1)
    cnn = CNN(1, 8, 4, 2, readout="pool", activation=torch.sin)
    assert (cnn.in_channels, cnn.image_size, cnn.kernel_size, cnn.readout) == (1, 8, 3, "pool")
    assert (cnn.depth, cnn.sigma_w, cnn.sigma_b, cnn.activation) == (1, 2**0.5, 0.0, torch.sin)
    resnet = ConvResNet(1, 8, 4, 2, depth=3, scaling="decreasing")
    assert resnet.scaling == "decreasing"
    assert resnet.block_scales == pytest.approx([2**-0.5, 3**-0.5])
    assert "kernel_size=3" in repr(resnet)
    assert "scaling='decreasing'" in repr(resnet)


def test_only_sizes_are_positional():
    with pytest.raises(TypeError, match="positional"):
        MLP(3, 4, 1, 2)
    with pytest.raises(TypeError, match="depth"):
        ResNet(3, 4, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"depth": 0}, ValueError, "depth must be at least 1, got 0; depth counts hidden layers"),
        ({"depth": 1.5}, ValueError, "depth must be a whole number, got 1.5"),
        ({"sigma_w": -1.0}, ValueError, "sigma_w must be positive, got -1.0; it is a standard deviation"),
        ({"sigma_w": 0.0}, ValueError, "sigma_w must be positive, got 0.0"),
        ({"sigma_b": -0.1}, ValueError, "sigma_b must be zero or positive, got -0.1"),
        ({"sigma_b": math.nan}, ValueError, "sigma_b must be finite, got nan"),
        ({"parametrization": "mup"}, ValueError, "parametrization must be one of 'ntk', 'standard', got 'mup'"),
        ({"activation": "swish"}, ValueError, "got 'swish'; pass any elementwise callable or nn.Module for another"),
        ({"activation": nn.ReLU}, TypeError, "pass an instance: ReLU()"),
        ({"activation": nn.ReLU(inplace=True)}, ValueError, "construct it with inplace=False"),
        ({"activation": 3}, TypeError, "activation must be a callable, an nn.Module or one of 'relu'"),
        ({"dtype": torch.int64}, TypeError, "dtype must be a real floating-point torch.dtype, got torch.int64"),
        ({"dtype": torch.complex128}, TypeError, "dtype must be a real floating-point torch.dtype"),
        ({"generator": 0}, TypeError, "generator must be a torch.Generator or None, got 0"),
    ],
)
def test_bad_words_are_refused_by_name(kind, words, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build(kind, **words)


@pytest.mark.parametrize(
    ("construct", "message"),
    [
        (lambda: MLP(0, 4, 1), "in_features must be at least 1, got 0"),
        (lambda: MLP(3, 0, 1), "width must be at least 1, got 0"),
        (lambda: MLP(3, 4, 0), "out_features must be at least 1, got 0"),
        (lambda: CNN(0, 8, 4, 1), "in_channels must be at least 1, got 0"),
        (lambda: CNN(1, 0, 4, 1), "image_size must be at least 1, got 0"),
        (lambda: CNN(1, 8, 4, 1, kernel_size=4), "kernel_size must be odd, got 4"),
        (lambda: CNN(1, 8, 4, 1, readout="max"), "readout must be one of 'flatten', 'pool', got 'max'"),
        (lambda: ResNet(3, 4, 1, depth=1, scaling="big"), "scaling must be one of 'none', 'decreasing', 'stable'"),
    ],
)
def test_bad_sizes_are_refused_by_name(construct, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        construct()


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        ("MLP", (3, 31), "x must be [n, 32], or [n, ...] with 32 entries per example, got shape [3, 31]"),
        ("ResNet", (32,), "got shape [32]; add a batch dimension with x[None]"),
        ("CNN", (3, 2, 4, 5), "x must be [n, 2, 4, 4], got shape [3, 2, 4, 5]"),
        ("ConvResNet", (3, 32), "got shape [3, 32]; if each row is such an image, use x.reshape(-1, 2, 4, 4)"),
        ("CNN", (2, 4, 4), "x must be [n, 2, 4, 4], got shape [2, 4, 4]"),
    ],
)
def test_inputs_of_another_size_are_refused(kind, shape, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build(kind)(torch.zeros(shape))
