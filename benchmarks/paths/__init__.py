"""Contestants of the benchmark of sample paths."""
