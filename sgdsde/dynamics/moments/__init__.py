"""Mean and covariance of SGD step by step: the states, the steps, the bound on what a truncated kernel leaves out."""
