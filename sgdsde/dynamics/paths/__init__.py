"""Sampled paths of the stochastic differential equation: what they integrate and how."""
