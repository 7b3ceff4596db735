"""The margin to the mean-square limit along a path, and when a prediction warns of what it sees."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde.dynamics.moments.feature_state import Expectations, Features, IndependentFluctuation
from sgdsde.dynamics.moving_kernel import KernelDriftWarning, kernel_refresh
from sgdsde.dynamics.moving_kernel.kernel_refresh import Margin, Refresh, RefreshMonitor
from tests.problems import mlp_problem


def seen_at_start(linearization: sgdsde.Linearization, scale: float = 1.0) -> Expectations:
    """Along all weight directions, of features this much larger than those of the kernel."""
    problem, basis = linearization.problem, linearization.eigenbasis
    train = basis.vectors * basis.values.sqrt() * scale
    sgd = sgdsde.SGD(0.1, 2)
    state = IndependentFluctuation(problem, sgd, sgd.plan(problem.n_train, 1), size=train.shape[1], dtype=train.dtype)
    return state.expectations(Features(train, None), linearization.outputs)


def margins(linearization: sgdsde.Linearization, sgd: sgdsde.SGD, n_steps: int) -> list[float]:
    margin = Margin(sgd, sgd.plan(linearization.problem.n_train, n_steps))
    return [margin.at(k, seen_at_start(linearization)) for k in range(n_steps)]


@pytest.fixture(scope="module")
def network() -> sgdsde.Linearization:
    return sgdsde.linearize(mlp_problem())


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"sampling": "without_replacement"},
        {"sampling": "shuffled"},
        {"momentum": 0.6},
        {"momentum": 0.6, "nesterov": True, "weight_decay": 0.05},
    ],
    ids=str,
)
def test_it_is_the_learning_rate_in_units_of_the_stability_limit(network, words):
    """Of several outputs; shuffled epochs count as fresh batches without repetition."""
    fresh = words | ({"sampling": "without_replacement"} if words.get("sampling") == "shuffled" else {})
    limit = sgdsde.stability.max_lr(network, 3, **fresh)
    for margin, lr in zip(margins(network, sgdsde.SGD(lambda k: 0.01 * (1 + k), 3, **words), 3), (0.01, 0.02, 0.03)):
        assert margin == pytest.approx(lr / limit, rel=0.012)


def test_it_follows_a_schedule_of_batches(network):
    sizes = (1, 5, 3)
    found = margins(network, sgdsde.SGD(0.01, lambda k: sizes[k]), 3)
    for margin, size in zip(found, sizes):
        assert margin == pytest.approx(0.01 / sgdsde.stability.max_lr(network, size), rel=0.012)


def test_without_noise_or_curvature_there_is_none(network):
    whole = sgdsde.SGD(0.01, 7, sampling="without_replacement")
    assert margins(network, whole, 1)[0] != margins(network, whole, 1)[0]
    seen = seen_at_start(network)
    flat = Expectations(seen.features, type(seen.moments)(seen.moments.gradient, 0 * seen.moments.hessian, None))
    margin = Margin(sgdsde.SGD(0.01, 3), sgdsde.SGD(0.01, 3).plan(7, 1)).at(0, flat)
    assert margin != margin


def test_the_limit_is_taken_anew_when_the_kernel_has_changed_by_a_fifth(network, monkeypatch):
    """Up or down, since it was taken last; then it is that of the kernel there."""
    made = []
    original = kernel_refresh.limit_of_map
    monkeypatch.setattr(kernel_refresh, "limit_of_map", lambda *a, **w: made.append(1) or original(*a, **w))
    sgd = sgdsde.SGD(0.01, 3)
    margin = Margin(sgd, sgd.plan(7, 1))
    found = []
    for growth, is_new in ((1.0, True), (1.19, False), (1.21, True), (1.1, False), (1.21 * 0.79, True)):
        count = len(made)
        found.append(margin.at(0, seen_at_start(network, growth**0.5)))
        assert (len(made) > count) is is_new
    first = found[0]
    assert found == pytest.approx([first, first, 1.21 * first, 1.21 * first, 1.21 * 0.79 * first], rel=0.012)


def test_few_directions_with_the_noise_of_all_are_nearly_enough(monkeypatch):
    """Six of twelve of a flat spectrum, at single examples; the noise of the six alone allows far too much."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(40, k, generator=generator, dtype=torch.float64) for k in (12, 1))
    linearization = sgdsde.linearize(sgdsde.Problem(nn.Linear(12, 1, bias=False).double(), x, y, loss=nn.MSELoss()))
    exact = 0.01 / sgdsde.stability.max_lr(linearization, 1)
    assert margins(linearization, sgdsde.SGD(0.01, 1), 1)[0] == pytest.approx(exact, rel=0.012)
    monkeypatch.setattr(kernel_refresh, "MARGIN_MODES", 6)
    assert margins(linearization, sgdsde.SGD(0.01, 1), 1)[0] == pytest.approx(exact, rel=0.15)
    few = sgdsde.stability.max_lr(linearization.truncate(6, tail="frozen"), 1)
    assert 0.01 / few < 0.8 * exact


def test_a_small_curvature_counts_by_its_root():
    """Features of expected Hessians that differ from example to example, as those of cross-entropy do."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (9,), generator=generator)
    model = nn.Linear(4, 3).double()
    with torch.no_grad():
        model.weight.copy_(3 * torch.randn(3, 4, generator=generator, dtype=torch.float64))
    linearization = sgdsde.linearize(sgdsde.Problem(model, x, y, loss=nn.CrossEntropyLoss()))
    limit = sgdsde.stability.max_lr(linearization, 2)
    assert margins(linearization, sgdsde.SGD(0.1, 2), 1)[0] == pytest.approx(0.1 / limit, rel=0.012)


def refresh(step: int, *, interval: int = 5, drift: float = 0.01, margin: float = 0.1) -> Refresh:
    return Refresh(step, interval, drift, drift_from_start=0.1, margin=margin, n_directions=3, seconds=0.1)


def messages(refreshes: list[Refresh], tolerance: float = 0.1) -> list[str]:
    monitor = RefreshMonitor(tolerance, momentum=0.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for one in refreshes:
            monitor.see(one, lr=0.2)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(("interval", "drift", "warns"), [(1, 0.11, True), (1, 0.09, False), (2, 0.3, False)])
def test_a_drift_beyond_the_tolerance_is_told_where_it_is_that_of_one_step(interval, drift, warns):
    found = messages([refresh(7, interval=interval, drift=drift)] * 3)
    assert len(found) == int(warns), "once"
    assert all("in the single step 7" in message for message in found)


@pytest.mark.parametrize(("spacing", "first"), [(1, 20), (1.9, 20), (2.1, None), (5, None)])
def test_twenty_refreshes_at_every_other_step_or_more_do_not_settle(spacing, first):
    steps = [round(spacing * k) for k in range(1, 40)]
    found = [len(messages([refresh(step) for step in steps[:count]])) for count in range(1, 40)]
    assert next((count for count, many in enumerate(found, 1) if many), None) == first
    if first is not None:
        (message,) = messages([refresh(step) for step in steps[:first]])
        assert f"20 refreshes in the first {steps[19]} steps" in message


def test_every_kind_is_told_once():
    found = messages([refresh(k, interval=1, drift=0.5, margin=0.9) for k in range(60)])
    assert len(found) == 3
    assert all(one != other for one, other in itertools.combinations(found, 2))
    assert f"lr=0.2 is 0.90 of the mean-square limit {0.2 / 0.9:.6g}" in " ".join(found)


def test_warnings_are_of_their_kinds():
    monitor = RefreshMonitor(0.1, momentum=0.0)
    with pytest.warns(KernelDriftWarning, match="in the single step"):
        monitor.see(refresh(3, interval=1, drift=0.2), lr=0.1)
