"""Contestants of the benchmark of ensembles."""
