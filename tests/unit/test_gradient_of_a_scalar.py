"""The gradient of a scalar function of parameters, those without influence included."""

import torch

from sgdsde._functional import value_and_gradient


def test_a_parameter_without_influence_has_a_gradient_of_zero():
    params = {"used": torch.tensor([3.0]), "idle": torch.ones(2)}
    value, gradient = value_and_gradient(lambda params: (2 * params["used"] ** 2).sum(), params)
    assert float(value) == 18.0
    assert gradient["used"].tolist() == [12.0]
    assert gradient["idle"].tolist() == [0.0, 0.0]
