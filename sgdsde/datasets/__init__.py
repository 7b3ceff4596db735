"""Data for figures and tests: real images in the standard files, and synthetic regression. No global seed.

n_train and n_test examples are drawn by the seed; target, center and flatten say how they are prepared (``digits``).
"""

from sgdsde.datasets.dataset import Dataset
from sgdsde.datasets.images import cifar10, digits, mnist
from sgdsde.datasets.synthetic import LogNormal, PowerLaw, synthetic

__all__ = ["Dataset", "LogNormal", "PowerLaw", "cifar10", "digits", "mnist", "synthetic"]
