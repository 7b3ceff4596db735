"""Networks in the scaling of the theory, with public settings, so that mean-field code can read what it needs."""

from sgdsde.networks.activations import ACTIVATIONS, resolve_activation
from sgdsde.networks.convolutional import CNN, ConvolutionalNetwork, ConvResNet
from sgdsde.networks.dense import MLP, ResNet
from sgdsde.networks.diagonal import DiagonalLinear
from sgdsde.networks.factorization import MatrixFactorization
from sgdsde.networks.network import Network
from sgdsde.networks.rescaled import Rescaled
from sgdsde.networks.shallow import NeuronLaw, ShallowReLU

__all__ = [
    "ACTIVATIONS",
    "CNN",
    "MLP",
    "ConvResNet",
    "ConvolutionalNetwork",
    "DiagonalLinear",
    "MatrixFactorization",
    "Network",
    "NeuronLaw",
    "ResNet",
    "Rescaled",
    "ShallowReLU",
    "resolve_activation",
]
