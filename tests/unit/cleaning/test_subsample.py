"""Sharpness and limits from a few examples: exact at m = n, honest standard errors, any loss and several outputs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import sgdsde
from sgdsde.cleaning import Lawley, LedoitWolf, UncleanedWarning, sharpness_from_subsample
from sgdsde.cleaning.subsample import own_curvatures, two_phase
from sgdsde.stability import max_lr_from_subsample, subsample
from tests.problems import classification_problem, digits_problem, linear_problem, mlp_problem


@pytest.fixture(scope="module")
def digits() -> sgdsde.Problem:
    return digits_problem(400, width=64)


@pytest.fixture(scope="module")
def linearized(digits: sgdsde.Problem) -> sgdsde.Linearization:
    return sgdsde.linearize(digits)


@pytest.mark.parametrize("make", [mlp_problem, classification_problem], ids=["squared error", "cross-entropy"])
def test_all_examples_give_the_exact_numbers(make: object) -> None:
    problem = make()
    n = problem.n_train
    found = sharpness_from_subsample(problem, n)
    assert found.value == pytest.approx(2 / sgdsde.stability.max_lr_full_batch(problem), rel=1e-10)
    assert found.standard_error == 0
    for batch_size, options in (
        (2, {}),
        (3, {"sampling": "without_replacement"}),
        (2, {"momentum": 0.5, "dampening": 0.2}),
    ):
        limit = max_lr_from_subsample(problem, batch_size, n, **options)
        assert limit.value == pytest.approx(sgdsde.stability.max_lr(problem, batch_size, **options), rel=1e-5)
        assert limit.standard_error == 0


def test_own_curvatures_are_the_kernel_s_diagonal(digits: sgdsde.Problem, linearized: sgdsde.Linearization) -> None:
    rows = np.array([5, 0, 77, *range(100, 140)])
    s = digits.criterion.curvature
    wanted = s * linearized.dense_kernel.diagonal().numpy()[rows]
    assert np.allclose(own_curvatures(digits, rows), wanted, rtol=1e-12)


def test_two_phase_estimates_have_their_standard_error() -> None:
    """A population of 3000 with a known mean; rms z of 400 draws is 1 within 15 % (4 standard deviations of it)."""
    rng = np.random.default_rng(0)
    own = rng.gamma(4, size=3000)
    values = own * (1 + 0.3 * rng.standard_normal(3000))
    z, plain, errors = [], [], []
    for _ in range(400):
        drawn = rng.permutation(3000)[:1000]
        v = values[drawn[:50]]
        factor, error = two_phase(v, own[drawn[:50]], own[drawn], 3000)
        z.append((v.mean() * factor - values.mean()) / error)
        plain.append(v.mean() - values.mean())
        errors.append(error)
    assert np.sqrt(np.mean(np.square(z))) == pytest.approx(1, abs=0.15)
    assert abs(np.mean(z)) < 4 / 400**0.5
    assert np.std(plain) > 1.4 * np.mean(errors)  # what the second phase gains


@pytest.mark.parametrize(("m", "n_auxiliary"), [(35, None), (50, None), (50, 50)])
def test_sharpness_of_digits_is_honest(
    digits: sgdsde.Problem, linearized: sgdsde.Linearization, m: int, n_auxiliary: int | None
) -> None:
    """25 draws: mean within 3 of its standard errors plus 1 % (second order), rms z in [0.6, 1.5]."""
    full = 2 / sgdsde.stability.max_lr_full_batch(linearized)
    found = [sharpness_from_subsample(digits, m, seed=seed, n_auxiliary=n_auxiliary) for seed in range(25)]
    error = np.array([each.value for each in found]) / full - 1
    z = error * full / np.array([each.standard_error for each in found])
    raw = np.array([each.raw for each in found]) / full - 1
    assert abs(error.mean()) < 0.01 + 3 * error.std() / 25**0.5
    assert 0.6 < np.sqrt((z**2).mean()) < 1.5
    assert raw.mean() > max(0.01, 2 * abs(error.mean()))
    assert found[0].n_auxiliary == (50 if n_auxiliary else 400)


@pytest.mark.parametrize(("batch_size", "too_low"), [(32, 0.0), (1, 0.12)])
def test_limits_of_digits_are_honest_or_too_low(
    digits: sgdsde.Problem, linearized: sgdsde.Linearization, batch_size: int, too_low: float
) -> None:
    """8 draws of 50: at B = 32 the mean is within 3 of its standard errors plus 1 %, and rms z in [0.5, 1.7].

    At B = 1, where a few large examples decide, it is up to 12 % too low and not too high.
    """
    full = sgdsde.stability.max_lr(linearized, batch_size)
    found = [max_lr_from_subsample(digits, batch_size, 50, seed=seed) for seed in range(8)]
    error = np.array([each.value for each in found]) / full - 1
    slack = 0.01 + 3 * error.std(ddof=1) / 8**0.5
    assert -too_low - slack < error.mean() < slack
    if not too_low:
        z = error * full / np.array([each.standard_error for each in found])
        assert 0.5 < np.sqrt((z**2).mean()) < 1.7


def test_outputs_that_share_a_kernel_are_estimated_as_one() -> None:
    """K = K_0 (x) I_3 and s = 2/3 in place of 2: a third of the sharpness, three times the limit, same errors."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((200, 12)) * np.r_[4.0, np.ones(11)])
    one, three = (
        sgdsde.Problem(nn.Linear(12, c, bias=False).double(), x, torch.zeros(200, c).double(), loss=nn.MSELoss())
        for c in (1, 3)
    )
    single, shared = (sharpness_from_subsample(problem, 40, seed=1) for problem in (one, three))
    assert shared.value == pytest.approx(single.value / 3, rel=1e-10)
    assert shared.standard_error == pytest.approx(single.standard_error / 3, rel=1e-6)
    assert sharpness_from_subsample(one, 40, seed=1, n_auxiliary=40).value < single.raw * 0.99  # and not just raw
    single, shared = (max_lr_from_subsample(problem, 4, 40, seed=1) for problem in (one, three))
    assert shared.value == pytest.approx(3 * single.value, rel=1e-5)
    assert shared.standard_error == pytest.approx(3 * single.standard_error, rel=1e-3)


def test_a_top_that_is_not_separated_is_left_raw_and_errs_on_the_safe_side() -> None:
    rng = np.random.default_rng(0)
    problem = linear_problem(rng.standard_normal((300, 1, 40)), rng.standard_normal((300, 1)), np.zeros(40))
    full = 2 / sgdsde.stability.max_lr_full_batch(problem)
    with pytest.warns(UncleanedWarning):
        found = sharpness_from_subsample(problem, 20)
    assert found.raw > full
    assert found.value > full
    # A flat spectrum is what shrinkage is for.
    shrunk = [sharpness_from_subsample(problem, 20, method=LedoitWolf(), seed=seed).value for seed in range(10)]
    raw = [sharpness_from_subsample(problem, 20, method=LedoitWolf(), seed=seed).raw for seed in range(10)]
    assert abs(np.mean(shrunk) - full) < abs(np.mean(raw) - full) / 3


def test_it_says_what_it_found(digits: sgdsde.Problem) -> None:
    found = sharpness_from_subsample(digits, 30, seed=1)
    assert found.max_lr_full_batch == 2 / found.value
    assert "from 30 of 400 examples" in str(found)
    assert str(Lawley()) in str(found)
    again = sharpness_from_subsample(digits, 30, seed=1)
    assert dataclasses.asdict(again) == dataclasses.asdict(found)
    assert "from 30 of 400" in str(max_lr_from_subsample(digits, 4, 30))


def test_bad_input_gets_one_clear_error(digits: sgdsde.Problem, linearized: sgdsde.Linearization) -> None:
    for call in (sharpness_from_subsample, lambda problem, m, **k: max_lr_from_subsample(problem, 4, m, **k)):
        with pytest.raises(ValueError, match="m must be at most n_train = 400"):
            call(digits, 401)
        with pytest.raises(ValueError, match="m must be at least"):
            call(digits, 1)
        with pytest.raises(TypeError, match="problem must be a Problem, got Linearization"):
            call(linearized, 10)
        with pytest.raises(ValueError, match="n_auxiliary must be at least"):
            call(digits, 30, n_auxiliary=10)
    with pytest.raises(ValueError, match="method must be Lawley"):
        sharpness_from_subsample(digits, 30, method=LedoitWolf())
    flat = nn.Linear(2, 1)
    nn.init.zeros_(flat.weight)
    nn.init.zeros_(flat.bias)
    concave = sgdsde.Problem(
        flat,
        torch.ones(3, 2),
        torch.zeros(3, 1),
        loss=lambda f, y: (1 - torch.exp(-((f - y - 1) ** 2))).mean(),
    )
    with pytest.raises(ValueError, match="loss must be of positive curvature"):
        sharpness_from_subsample(concave, 3)


@pytest.mark.slow
def test_sharpness_of_ten_thousand_images_from_a_hundred() -> None:
    """MNIST, 20 draws: each within 5 % of the whole kernel's top eigenvalue, rms z in [0.6, 1.4], mean within 1.5 %."""
    from scipy.sparse.linalg import eigsh

    try:
        data = sgdsde.datasets.mnist(10_000, 1, flatten=True)
    except (OSError, ImportError, RuntimeError) as error:
        pytest.skip(str(error))
    model = sgdsde.networks.MLP(784, 512, 1, generator=torch.Generator().manual_seed(0))
    tensors = data.tensors()
    problem = sgdsde.Problem(model, tensors["x_train"], tensors["y_train"], loss=nn.MSELoss())
    kernel = sgdsde.empirical_ntk(model, tensors["x_train"], dtype=torch.float32).numpy()
    full = 2 * float(eigsh(kernel, k=1, which="LA")[0][0]) / 10_000
    found = [sharpness_from_subsample(problem, 100, seed=seed) for seed in range(20)]
    error = np.array([each.value for each in found]) / full - 1
    z = error * full / np.array([each.standard_error for each in found])
    assert np.abs(error).max() < 0.05
    assert abs(error.mean()) < 0.015
    assert 0.6 < np.sqrt((z**2).mean()) < 1.4


@pytest.mark.parametrize("n_auxiliary", [20, 50])
def test_the_error_of_a_limit_is_that_of_a_two_phase_ratio(n_auxiliary: int) -> None:
    """Written out: value^2 sqrt(m (1/m - 1/m') V(ratio) + m (1/m' - 1/n) V(plain)), V by leaving groups out."""
    problem, m = digits_problem(60, width=16), 20
    found = max_lr_from_subsample(problem, 4, m, seed=3, n_auxiliary=n_auxiliary)
    n, noise, sgd = problem.n_train, 1 / 4, sgdsde.SGD(1.0, 1)
    drawn, kernel, s = subsample.subsample_kernel(problem, m, seed=3)
    own = s * kernel.diagonal().numpy()
    every = np.concatenate([own, own_curvatures(problem, drawn[m:n_auxiliary])])
    plain, ratio = [], []
    for i in range(m):  # twenty groups of one
        kept = [j for j in range(m) if j != i]
        plain.append(subsample._inverse_limit(kernel[kept][:, kept], 1, s, noise, sgd))
        ratio.append(plain[-1] / own[kept].mean() * every.mean())
    variance = [(m - 1) * np.var(values) for values in (ratio, plain)]
    expected = m * ((1 / m - 1 / n_auxiliary) * variance[0] + (1 / n_auxiliary - 1 / n) * variance[1])
    assert found.standard_error == pytest.approx(found.value**2 * expected**0.5, rel=1e-6)


@pytest.mark.parametrize(("m", "c", "groups"), [(5, 1, 5), (31, 2, 20), (86, 3, 10), (128, 2, 20), (129, 2, 10)])
def test_groups_of_examples_with_all_of_their_outputs_are_left_out(
    m: int, c: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty groups, ten beyond 256 outputs, never more than examples; with half the trace in place of the limit."""
    rng = np.random.default_rng(2)
    features = rng.normal(size=(150, c, 7)) * rng.lognormal(size=(150, 1, 1))
    problem = linear_problem(features, np.zeros((150, c)), np.ones(7))
    sizes: list[int] = []

    def half_the_trace(kernel: torch.Tensor, outputs: int, s: float, *rest: object, **words: object) -> float:
        sizes.append(len(kernel))
        return s * float(kernel.trace()) / 2 / (len(kernel) / outputs)

    monkeypatch.setattr(subsample, "_inverse_limit", half_the_trace)
    found = max_lr_from_subsample(problem, 4, m, seed=1, n_auxiliary=140)
    drawn = subsample.subsample_kernel(problem, m, seed=1)[0]
    own = 2 / c * (features**2).sum((1, 2))
    level, left = own[drawn[:140]].mean(), np.array_split(np.arange(m), groups)
    assert sizes == [m * c, *(c * (m - len(group)) for group in left)]
    assert found.value == pytest.approx(2 / level), "where the ratio is the same whoever is drawn"
    plain = np.array([np.delete(own[drawn[:m]], group).mean() / 2 for group in left])
    variance = (groups - 1) * plain.var()
    assert found.standard_error == pytest.approx(found.value**2 * (m * (1 / 140 - 1 / 150) * variance) ** 0.5)
    assert (found.n_used, found.n_auxiliary, found.n_train) == (m, 140, 150)
