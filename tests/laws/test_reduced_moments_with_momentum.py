"""With momentum the reduced model is the plain recursion, to the error that it reports; its parts are what they say."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import sgdsde
from sgdsde.dynamics import MomentRecursion, ReducedMoments
from sgdsde.dynamics.moments.modes import Modes
from sgdsde.dynamics.moments.reduced import momentum_system
from sgdsde.dynamics.moments.reduced.momentum_pairs import EE, EV, VV, MomentumSpace, MomentumStep
from sgdsde.dynamics.moments.reduced.pairs import PairSpace
from sgdsde.stability.second_moments import squared_response
from sgdsde.step import Step
from tests.problems import AFFINE, LINEAR, digits_problem

DOWN_TO = 1e-4
ROUNDING = 1e-12


@pytest.fixture(scope="module")
def digits() -> sgdsde.Linearization:
    return sgdsde.linearize(digits_problem(32, n_test=16))


def at_share(linearization: sgdsde.Linearization, share: float, batch_size: int, **words) -> sgdsde.SGD:
    """A setting at this share of its mean-square limit."""
    unstable = {k: v for k, v in words.items() if k != "label_noise_std"}
    top = sgdsde.stability.max_lr(linearization, batch_size, **unstable)
    return sgdsde.SGD(share * top, batch_size, **words)


def both(linearization, sgd, record, **words):
    reduced = sgdsde.predict(linearization, sgd, record[-1], dynamics=ReducedMoments(**words), record=record)
    plain = sgdsde.predict(linearization, sgd, record[-1], dynamics=MomentRecursion(), record=record)
    return reduced, plain


def errors(reduced, plain):
    ours, theirs = reduced.train_loss.mean, plain.train_loss.mean
    relevant = theirs > DOWN_TO * theirs[0]
    return ((ours - theirs).abs() / theirs)[relevant], relevant


SETTINGS = {
    "0.5": (0.5, 4, {"momentum": 0.5}),
    "0.9": (0.3, 4, {"momentum": 0.9}),
    "0.9, near the limit": (0.9, 2, {"momentum": 0.9}),
    "0.9, small steps": (0.1, 4, {"momentum": 0.9}),
    "0.97": (0.02, 4, {"momentum": 0.97}),
    "Nesterov": (0.2, 4, {"momentum": 0.9, "nesterov": True}),
    "dampening": (0.3, 4, {"momentum": 0.8, "dampening": 0.3}),
    "without replacement": (0.1, 8, {"momentum": 0.9, "sampling": "without_replacement"}),
    "label noise": (0.2, 8, {"momentum": 0.9, "label_noise_std": 0.3}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_error_is_below_the_tolerance_and_below_its_estimate(digits, name):
    share, batch_size, words = SETTINGS[name]
    sgd = at_share(digits, share, batch_size, **words)
    start = round(17 / (1 - sgd.momentum))
    record = [0, 1, start // 2, *(start + k for k in (1, 3, 6, 10, 20, 60, 1000))]
    reduced, plain = both(digits, sgd, record)
    error, relevant = errors(reduced, plain)
    assert reduced.dynamics.startswith("ReducedMoments")
    assert relevant.sum() >= 6
    assert error.max() < 1e-4
    assert (error <= reduced.estimated_error[relevant] + ROUNDING).all()
    torch.testing.assert_close(reduced.train_loss.mean[:3], plain.train_loss.mean[:3], rtol=1e-13, atol=0)
    assert (reduced.estimated_error[:3] == 0).all()
    assert (reduced.test_loss.mean / plain.test_loss.mean - 1).abs()[relevant].max() < 1e-3
    deviation = (reduced.train_loss.std - plain.train_loss.std).abs()
    assert (deviation <= 0.05 * plain.train_loss.std + 1e-7 * plain.train_loss.mean)[relevant].all()


@pytest.mark.parametrize("case", LINEAR + AFFINE, ids=lambda case: case.name)
@pytest.mark.parametrize("words", [{}, {"label_noise_std": 0.2}], ids=["plain", "label noise"])
def test_null_spaces_duplicates_and_constant_parts(case, words):
    linearization = sgdsde.linearize(case.problem())
    sgd = at_share(linearization, 0.5, 2, momentum=0.8, **words)
    reduced, plain = both(linearization, sgd, [0, 50, 100, 200, 700])
    error, relevant = errors(reduced, plain)
    assert error.max() < 1e-4
    if reduced.estimated_error is None:  # a handful of directions: the recursion itself
        assert error.max() == 0
    else:
        assert (error <= reduced.estimated_error[relevant] + 1e-9).all()


@pytest.mark.parametrize("change", [{"momentum": 0.91}, {"nesterov": True}, {"batch_size": 6}, {"dampening": 0.05}])
def test_another_setting_is_told_apart(digits, change):
    """The negative control: what the tests above would let pass is far below what a wrong setting changes."""
    sgd = at_share(digits, 0.1, 4, momentum=0.9)
    reduced, _ = both(digits, sgd, [0, 180, 300])
    _, plain = both(digits, dataclasses.replace(sgd, **change), [0, 180, 300])
    assert errors(reduced, plain)[0].max() > 1e-3


def test_a_stationary_floor_is_reached_at_any_horizon(digits):
    sgd = at_share(digits, 0.5, 8, momentum=0.8, label_noise_std=0.3)
    far = sgdsde.predict(digits, sgd, 10**12, dynamics=ReducedMoments(), record=[10**6, 10**12])
    near = sgdsde.predict(digits, sgd, 2000, dynamics=MomentRecursion(), record=[2000])
    torch.testing.assert_close(far.train_loss.mean, near.train_loss.mean.expand(2), rtol=1e-4, atol=0)


def test_tolerances_are_kept(digits):
    sgd = at_share(digits, 0.1, 4, momentum=0.9)
    record = [0, 240, 300, 500, 1000]
    loose, plain = both(digits, sgd, record, tolerance=1e-2)
    tight, _ = both(digits, sgd, record, tolerance=1e-6)
    assert errors(loose, plain)[0].max() < 1e-2
    assert errors(tight, plain)[0].max() < 1e-6


def test_full_batch_is_gradient_descent_without_spread(digits):
    sgd = at_share(digits, 0.5, 32, momentum=0.9, sampling="without_replacement")
    reduced, plain = both(digits, sgd, [0, 100, 200, 400])
    assert reduced.dynamics.startswith("ReducedMoments")
    torch.testing.assert_close(reduced.train_loss.mean, plain.train_loss.mean, rtol=1e-9, atol=0)
    assert (reduced.train_loss.std == 0).all()


def test_beyond_the_limit_the_recursion_itself_answers(digits):
    sgd = at_share(digits, 1.3, 4, momentum=0.9)
    with pytest.warns(sgdsde.UnstableWarning):
        past = sgdsde.predict(digits, sgd, 300, dynamics=ReducedMoments())
    assert past.dynamics.startswith("MomentRecursion() for ReducedMoments")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"weight_decay": 0.01}, "weight decay with momentum"),
        ({"lr": lambda k: 0.01 / (1 + k)}, "schedules with momentum"),
        ({"sampling": "shuffled"}, "shuffled epochs with momentum"),
    ],
)
def test_what_it_cannot_represent_is_refused_by_name(digits, words, named):
    sgd = sgdsde.SGD(**{"lr": 0.01, "batch_size": 4, "momentum": 0.5, **words})
    with pytest.raises(ValueError, match=f"ReducedMoments cannot represent {named}; use dynamics.MomentRecursion"):
        sgdsde.predict(digits, sgd, 100, dynamics=ReducedMoments())
    assert not ReducedMoments.is_cheaper(digits, sgd, 10**6)


def test_predict_takes_it_where_it_is_cheaper_and_says_so(digits):
    sgd = at_share(digits, 0.5, 4, momentum=0.9)
    assert sgdsde.predict(digits, sgd, 10**5).dynamics.startswith("ReducedMoments(tolerance=0.0001): ")
    assert sgdsde.predict(digits, sgd, 400).dynamics == "MomentRecursion()"


@pytest.fixture(scope="module")
def small(digits) -> tuple[PairSpace, MomentumSpace]:
    modes = Modes.of(digits)
    pairs = PairSpace(modes.drift[-6:], modes.vectors[:, -6:].contiguous(), 1)
    lr = 0.3 / float(modes.drift.max())
    return pairs, MomentumSpace(pairs, MomentumStep.of(sgdsde.SGD(lr, 4, momentum=0.7), lr, 0.25, pairs.drift))


def four_blocks(triple: torch.Tensor) -> torch.Tensor:
    """[r, 2, r, 2] of the three."""
    whole = torch.stack([torch.stack([triple[EE], triple[EV]]), torch.stack([triple[EV].mT, triple[VV]])])
    return whole.permute(2, 0, 3, 1)


def random_triple(rank: int, seed: int) -> torch.Tensor:
    triple = torch.randn(3, rank, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    triple[[EE, VV]] += triple[[EE, VV]].mT.clone()
    return triple


def test_one_uncoupled_step_is_that_of_the_four_blocks(small):
    pairs, space = small
    triple, h = random_triple(6, 0), pairs.drift
    g, nu = space.step.matrices, torch.tensor(space.step.gains, dtype=torch.float64)
    moved = torch.einsum("iab,ibjd,jcd->iajc", g, four_blocks(triple), g)
    moved -= torch.einsum("a,c,ij->iajc", nu, nu, space.step.noise * h[:, None] * h * triple[EE])
    torch.testing.assert_close(four_blocks(space.uncoupled(triple)), moved, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("z", [1.5, 1.01])
def test_resolvents_are_inverses_and_each_other_s_transposes(small, z):
    _, space = small
    triple, values = random_triple(6, 1), torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    resolvent = space.resolvent(z)
    solved = resolvent.apply(triple)
    torch.testing.assert_close(z * solved - space.uncoupled(solved), triple, rtol=1e-9, atol=1e-9)
    left = torch.stack([block.diag() for block in resolvent.apply_transposed(values)])
    assert float(space.pack(left) @ space.pack(triple)) == pytest.approx(float(values @ solved[EE].diagonal()))
    noise = random_triple(6, 3)[EE]
    answer = space.pack(resolvent.answer * noise) @ space.pack(triple)
    assert float(answer) == pytest.approx(float((noise * solved[EE]).sum()))


def test_what_noise_leaves_is_the_response_of_the_stability_limit(small):
    pairs, space = small
    lr, noise, h = space.step.lr, space.step.noise, pairs.drift
    response = squared_response(Step.of(sgdsde.SGD(lr, 4, momentum=0.7), lr, first=False).modal(h), 1.1)
    expected = response / (1 + noise * h[:, None] * h * response)
    torch.testing.assert_close(space.resolvent(1.1).gains, expected, rtol=1e-9, atol=0)


def test_growing_directions_of_an_oblique_projection_are_left_out():
    rng = torch.Generator().manual_seed(4)
    vectors = torch.randn(4, 4, dtype=torch.float64, generator=rng)
    values = torch.tensor([0.9, 0.5, 1.2, -0.3], dtype=torch.float64)
    inverse = torch.linalg.inv(vectors)
    kept = momentum_system._stable_part(vectors * values @ inverse)
    torch.testing.assert_close(kept, vectors * (values < 1) @ inverse, rtol=1e-9, atol=1e-9)
