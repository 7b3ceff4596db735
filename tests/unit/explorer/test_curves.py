"""The curves of the explorer are predictions of the settings that they are drawn for."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

import sgdsde
from sgdsde.explorer import Curves, predicted_curves
from sgdsde.explorer.curves import PAST_LIMIT, strides

N_STEPS = 30
SIZES, MOMENTA, SAMPLINGS = (1, 2, 4, 8), (0.0, 0.5), ("with_replacement", "without_replacement", "shuffled")


@pytest.fixture(scope="module")
def linearization() -> sgdsde.Linearization:
    data = sgdsde.datasets.synthetic(8, 5, 3)
    model = sgdsde.networks.MLP(3, 16, 1, generator=torch.Generator().manual_seed(0))
    return sgdsde.linearize(sgdsde.Problem(model, **data.tensors(), loss=nn.MSELoss()))


@pytest.fixture(scope="module")
def curves(linearization: sgdsde.Linearization) -> Curves:
    sgd = sgdsde.SGD(0.1, 2, label_noise_std=0.1)
    words = {"batch_sizes": SIZES, "momenta": MOMENTA, "samplings": SAMPLINGS, "n_rates": 9}
    return predicted_curves(linearization, sgd, N_STEPS, **words)


def test_every_curve_is_the_prediction_of_its_setting(curves: Curves, linearization: sgdsde.Linearization) -> None:
    assert curves.losses.shape == (len(curves.sgds), 2, 3, len(curves.steps))
    for sgd, losses in itertools.islice(zip(curves.sgds, curves.losses), 0, None, 5):
        expected = sgdsde.predict(linearization, sgd, N_STEPS, dynamics=sgdsde.dynamics.MomentRecursion())
        for side, band in enumerate(expected.losses.values()):
            assert losses[side, 0] == pytest.approx(band.mean.numpy(), rel=2e-3)
            assert losses[side, 1] == pytest.approx(band.quantile(0.1).numpy(), rel=0.02, abs=1e-6)
            assert losses[side, 2] == pytest.approx(band.quantile(0.9).numpy(), rel=0.02)
        assert sgd.label_noise_std == 0.1


def test_what_is_shown_is_the_setting_or_the_nearest_one_and_nothing_past_the_limit(curves: Curves) -> None:
    places = list(np.ndindex(curves.nearest.shape))
    assert len(places) == 2 * 3 * 4 * 9
    for m, s, b, k in places:
        row, lr = curves.nearest[m, s, b, k], curves.rates[k]
        if lr >= curves.limits[m, s, b]:
            assert row == PAST_LIMIT
            continue
        sgd = curves.sgds[row]
        assert (sgd.momentum, sgd.sampling) == (curves.momenta[m], curves.samplings[s])
        if strides(sgd.momentum, sgd.sampling, 9) == (1, 1):
            assert (sgd.lr, sgd.batch_size) == (lr, curves.batch_sizes[b])
            continue
        near = [other for other in curves.sgds if (other.momentum, other.sampling) == (sgd.momentum, sgd.sampling)]
        sizes = {other.batch_size for other in near}
        off = abs(math.log2(sgd.batch_size / curves.batch_sizes[b]))
        assert off == min(abs(math.log2(size / curves.batch_sizes[b])) for size in sizes)
        rates = [other.lr for other in near if other.batch_size == sgd.batch_size]
        assert abs(math.log(sgd.lr / lr)) == pytest.approx(min(abs(math.log(rate / lr)) for rate in rates))


def test_limits_are_those_of_the_library(curves: Curves, linearization: sgdsde.Linearization) -> None:
    limit = sgdsde.stability.max_lr(linearization, 4, momentum=0.5)
    assert curves.limits[1, 0, 2] == pytest.approx(limit, rel=1e-6)
    assert np.array_equal(curves.limits[:, 1], curves.limits[:, 2])
    assert curves.rates[0] == pytest.approx(0.05 * curves.limits.min())
    assert curves.rates[-1] == pytest.approx(1.5 * curves.limits.max())


@pytest.mark.filterwarnings("ignore:the kernel is zero:UserWarning")
def test_only_squared_errors_and_kernels_that_train_are_taken() -> None:
    data = sgdsde.datasets.synthetic(8, 5, 3)
    for model, loss, message in (
        (nn.Linear(3, 1), nn.HuberLoss(), "loss must be a squared error for the explorer, got HuberLoss"),
        (Still(), nn.MSELoss(), "the kernel must be one that trains"),
    ):
        problem = sgdsde.Problem(model, **data.tensors(), loss=loss)
        with pytest.raises(ValueError, match=message):
            predicted_curves(sgdsde.linearize(problem), sgdsde.SGD(0.1, 2), 3, batch_sizes=[2])


class Still(nn.Module):
    """Outputs that no weight moves."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1] + 0 * self.weight


def test_sizes_beyond_the_examples_and_empty_grids_are_refused(linearization: sgdsde.Linearization) -> None:
    sgd = sgdsde.SGD(0.1, 2)
    with pytest.raises(ValueError, match="batch_size must be at most n_train"):
        predicted_curves(linearization, sgd, 3, batch_sizes=[9], samplings=["without_replacement"])
    with pytest.raises(ValueError, match="batch_sizes, momenta and samplings must be one value at least each"):
        predicted_curves(linearization, sgd, 3, batch_sizes=[])
