"""Networks in the scaling of the theory, with public settings, so that mean-field code can read what it needs."""

from sgdsde.networks.activations import ACTIVATIONS, resolve_activation
from sgdsde.networks.convolutional import CNN, ConvolutionalNetwork, ConvResNet
from sgdsde.networks.dense import MLP, ResNet
from sgdsde.networks.network import Network

__all__ = [
    "ACTIVATIONS",
    "CNN",
    "MLP",
    "ConvResNet",
    "ConvolutionalNetwork",
    "Network",
    "ResNet",
    "resolve_activation",
]
