"""Kernels on disk, tile by tile: files, their manifest, how they are made and resumed, and the operator they are."""
