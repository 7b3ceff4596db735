"""Mean losses at many learning rates and batch sizes from real runs at five of them."""

from sgdsde.surface.ensemble_surface import EnsembleSurface, SurfaceWarning

__all__ = ["EnsembleSurface", "SurfaceWarning"]
