"""Data for figures and tests: real images in the standard files, and synthetic regression. No global seed."""

from sgdsde.datasets.dataset import Dataset
from sgdsde.datasets.images import cifar10, digits, mnist
from sgdsde.datasets.synthetic import LogNormal, PowerLaw, synthetic

__all__ = ["Dataset", "LogNormal", "PowerLaw", "cifar10", "digits", "mnist", "synthetic"]
