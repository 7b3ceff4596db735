"""Networks of infinite width: the maps between layers, the edge of chaos, and the kernels, and what depth does.

sigma_w and sigma_b are standard deviations in the parametrization of ``networks``:
y^l = sigma_w / sqrt(fan_in) W phi(y^{l-1}) + sigma_b b with N(0, 1) entries. An activation is a name in
``networks.ACTIVATIONS``, an nn.Module, or any elementwise function that autograd can differentiate; q is the variance
of a layer, c the correlation of two inputs in it. Kernels take inputs x1 and x2 [n, ...] and a network of ``networks``,
for one output of n_outputs. A sequence is a ``DepthSequence``.
"""

from sgdsde.meanfield.activation import Activation
from sgdsde.meanfield.asymptotics import (
    DepthSequence,
    Slope,
    depth_sequence,
    log_slope,
    power_law,
    second_derivative_at_one,
)
from sgdsde.meanfield.edge import (
    EdgeOfChaos,
    EdgeOfChaosCurve,
    UnstableEdgeWarning,
    edge_of_chaos,
    edge_of_chaos_curve,
)
from sgdsde.meanfield.fixed_points import (
    DepthScales,
    depth_scales,
    limit_chi,
    limit_correlation,
    phase,
    phase_diagram,
)
from sgdsde.meanfield.initialization import EdgeInitialization, init_edge_of_chaos_
from sgdsde.meanfield.kernels import Kernels, analytic_kernels, analytic_nngp, analytic_ntk, per_output
from sgdsde.meanfield.maps import (
    chi,
    correlation_gap_map,
    correlation_map,
    correlation_slope,
)
from sgdsde.meanfield.propagation import Propagation, propagate
from sgdsde.meanfield.variance import FixedPoint, limit_variance, variance_fixed_points, variance_map, variance_slope

__all__ = [
    "Activation",
    "DepthScales",
    "DepthSequence",
    "EdgeInitialization",
    "EdgeOfChaos",
    "EdgeOfChaosCurve",
    "FixedPoint",
    "Kernels",
    "Propagation",
    "Slope",
    "UnstableEdgeWarning",
    "analytic_kernels",
    "analytic_nngp",
    "analytic_ntk",
    "chi",
    "correlation_gap_map",
    "correlation_map",
    "correlation_slope",
    "depth_scales",
    "depth_sequence",
    "edge_of_chaos",
    "edge_of_chaos_curve",
    "init_edge_of_chaos_",
    "limit_chi",
    "limit_correlation",
    "limit_variance",
    "log_slope",
    "per_output",
    "phase",
    "phase_diagram",
    "power_law",
    "propagate",
    "second_derivative_at_one",
    "variance_fixed_points",
    "variance_map",
    "variance_slope",
]
