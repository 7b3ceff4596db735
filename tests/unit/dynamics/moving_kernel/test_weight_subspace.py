"""The directions of the weights that a moving kernel follows, where there are none left."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sgdsde


@pytest.mark.parametrize("lr", [0.05, 0.2, 1.0])
@pytest.mark.filterwarnings("ignore:at step 0 lr=1 is 1", "ignore:the kernel moves by")
def test_a_network_that_dies_on_the_way_is_refused_by_name(lr):
    """One unit whose targets lie below zero: descent pushes it to where its gradient is zero on every example."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU()).double()
    with torch.no_grad():
        model[0].weight.fill_(0.5)
        model[0].bias.fill_(0.5)
    x = torch.linspace(0.5, 1, 4, dtype=torch.float64)[:, None]
    problem = sgdsde.Problem(model, x, -x, loss=nn.MSELoss())
    measured = sgdsde.run_ensemble(problem, sgdsde.SGD(lr, 2), 60, 2, observe=("loss", "outputs"))
    assert measured.train_outputs.mean[-1].abs().max() == 0, "the control: real runs die"
    for range_check in (True, False):
        moving = sgdsde.dynamics.MovingKernel(range_check=range_check)
        with pytest.raises(ValueError, match="the network dies on the way"):
            sgdsde.predict(problem, sgdsde.SGD(lr, 2), 60, dynamics=moving)
