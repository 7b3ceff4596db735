"""The engine of ``ReducedMoments``: symmetric matrices, resolvents of the second-moment map, its projection."""
