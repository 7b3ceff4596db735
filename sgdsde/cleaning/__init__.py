"""Covariances estimated from few samples, their eigenvalues cleaned; and sharpness from a few dozen examples.

Two targets, kept apart: the ``"true"`` eigenvalues l_i(C), which a sharpness needs, and the ``"oracle"`` values
u_i^T C u_i in the sample's eigenvectors, the best in Frobenius norm for a matrix. Linear functionals of a covariance
(its trace, the loss that noise adds in a step) are unbiased raw: cleaning can only spoil them.
"""

from sgdsde.cleaning.autoencoder import EigenvalueAutoencoder
from sgdsde.cleaning.lawley import Lawley, UncleanedWarning
from sgdsde.cleaning.linear_shrinkage import OAS, LedoitWolf
from sgdsde.cleaning.nonlinear_shrinkage import AnalyticalNonlinear
from sgdsde.cleaning.priors import FactorPrior, MixedPrior, Prior
from sgdsde.cleaning.rotation_invariant import RIE
from sgdsde.cleaning.spectrum import CleanedSpectrum, Cleaner, clean, sample_spectrum
from sgdsde.cleaning.subsample import SubsampledSharpness, sharpness_from_subsample

__all__ = [
    "OAS",
    "RIE",
    "AnalyticalNonlinear",
    "CleanedSpectrum",
    "Cleaner",
    "EigenvalueAutoencoder",
    "FactorPrior",
    "Lawley",
    "LedoitWolf",
    "MixedPrior",
    "Prior",
    "SubsampledSharpness",
    "UncleanedWarning",
    "clean",
    "sample_spectrum",
    "sharpness_from_subsample",
]
