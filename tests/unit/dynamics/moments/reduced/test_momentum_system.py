"""With momentum too: on a basis of everything the system is the recursion, and its families are resolvents."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sgdsde
from sgdsde.dynamics.moments.reduced import momentum_pairs
from sgdsde.dynamics.moments.reduced.momentum_model import MomentumModel, _Families
from sgdsde.dynamics.moments.reduced.momentum_pairs import EE, EV, VV, MomentumSpace, MomentumStep
from sgdsde.dynamics.moments.reduced.momentum_system import MomentumStart, MomentumSystem, mean_with_buffer
from sgdsde.dynamics.moments.reduced.pairs import PairSpace, StepCoefficients
from sgdsde.dynamics.moments.reduced.resolvent import CoupledBlocks, PastLimitError
from sgdsde.dynamics.moments.reduced.system import Segment
from sgdsde.step import Step
from tests.unit.dynamics.moments.reduced.dense import (
    Driven,
    every_symmetric,
    gradient_noise,
    normal,
    random_space,
    symmetric,
)

RANK, LR, Q, BATCH = 4, 0.5, 0.4, 3.0
SGD = sgdsde.SGD(LR, 3, momentum=0.6, dampening=0.2, nesterov=False)
CLOSE = {"rtol": 1e-8, "atol": 1e-9}
LOOSE = {"rtol": 1e-4, "atol": 1e-4}
"""What single precision leaves."""


@pytest.fixture(params=[(8, 1), (4, 2)], ids=["one output", "two outputs"])
def pairs(request: pytest.FixtureRequest) -> PairSpace:
    return random_space(*request.param, RANK)


DRIVEN = {
    "nothing": lambda pairs: Driven(),
    "an immovable residual": lambda pairs: Driven(Driven.by_all(pairs, columns=2).fixed),
    "label noise": lambda pairs: Driven(label_variance=0.3),
    "both": lambda pairs: Driven(Driven.by_all(pairs, columns=2).fixed, label_variance=0.3),
}


class Twin:
    """E[z z^T] of z = (a, u) as [r, 2, r, 2] and E[z] [r, 2, k], stepped as torch does."""

    def __init__(self, pairs: PairSpace, driven: Driven) -> None:
        self.pairs, self.driven = pairs, driven
        self.mean = normal(RANK, 2, 2, seed=2)
        root = normal(2 * RANK, 2 * RANK, seed=3)
        spread = (0.05 * root @ root.mT).view(RANK, 2, RANK, 2)
        self.moment = spread + torch.einsum("iak,jbk->iajb", self.mean, self.mean)
        modal = Step.of(SGD, LR, first=False).modal(pairs.drift)
        self._g, self._nu = modal.matrices, modal.gains

    def advance(self) -> None:
        ee = self.moment[:, 0, :, 0]
        noise = gradient_noise(self.pairs, Q, BATCH, self.driven, ee, self.mean[:, 0])
        moved = torch.einsum("iab,ibjd,jcd->iajc", self._g, self.moment, self._g)
        self.moment = moved + torch.einsum("a,c,ij->iajc", self._nu, self._nu, noise)
        self.mean = torch.einsum("iab,ibk->iak", self._g, self.mean)

    def start(self) -> MomentumStart:
        """Covariances and the mean of the buffer; that of the residual is the sources' own."""
        spread = self.moment - torch.einsum("iak,jbk->iajb", self.mean, self.mean)
        return MomentumStart(spread[:, 0, :, 1], spread[:, 1, :, 1], self.mean[:, 1])

    def triple(self) -> Tensor:
        """H^-1/2 E[z z^T] H^-1/2 in units of a step, blocks ee, ev, vv."""
        root = self.pairs.drift.rsqrt()
        parts = (self.moment[:, 0, :, 0], LR * self.moment[:, 0, :, 1], LR**2 * self.moment[:, 1, :, 1])
        return torch.stack([root[:, None] * part * root for part in parts])


def model_of(pairs: PairSpace, driven: Driven) -> tuple[MomentumModel, Twin]:
    twin = Twin(pairs, driven)
    sources = driven.sources(pairs, twin.moment[:, 0, :, 0], twin.mean[:, 0])
    space = MomentumSpace(pairs, MomentumStep.of(SGD, LR, Q, pairs.drift))
    start, mean = twin.start().scaled(sources, LR)
    torch.testing.assert_close(start, twin.triple(), **CLOSE)
    torch.testing.assert_close(mean, torch.stack([twin.mean[:, 0], LR * twin.mean[:, 1]], 1), **CLOSE)
    return MomentumModel(space, sources, start, mean, BATCH, 100), twin


def every_triple(space: MomentumSpace) -> Tensor:
    """Orthonormal basis of all triples with symmetric ee and vv."""
    nothing, rows = torch.zeros(RANK, RANK).double(), []
    for unit in every_symmetric(RANK):
        rows += [[unit, nothing, nothing], [nothing, unit.tril(), nothing], [nothing, unit.triu(1), nothing]]
        rows += [[nothing, nothing, unit]]
    packed = torch.stack([space.pack(torch.stack(row)) for row in rows])
    _, values, right = torch.linalg.svd(packed, full_matrices=False)
    found = right[values > 1e-10]
    assert len(found) == RANK * (RANK + 1) + RANK**2
    return found


@pytest.mark.parametrize("name", DRIVEN)
def test_on_all_triples_it_is_the_recursion(pairs, name):
    driven = DRIVEN[name](pairs)
    model, twin = model_of(pairs, driven)
    families = _Families(model, CoupledBlocks(pairs, model.space.coupling, 1e-6))
    families.grow([0.5], 0.1)
    basis = every_triple(model.space)
    system = model._projected(basis, basis, families)
    record, root = [0, 1, 2, 5, 17], pairs.drift.sqrt()
    states, means = system.run([Segment(17, StepCoefficients(LR, Q), BATCH)], record)
    for k in range(18):
        if k in record:
            y, m = states[record.index(k)], means[record.index(k)]
            moment = root[:, None] * pairs.unpack(y @ system.projection.basis) * root
            exact = twin.moment[:, 0, :, 0]
            torch.testing.assert_close(moment, exact, rtol=1e-6, atol=1e-6)  # the stationary part is of a solve
            torch.testing.assert_close(m, twin.mean[:, 0], **CLOSE)
            torch.testing.assert_close(y @ system.loss, exact.trace(), rtol=1e-6, atol=0)
            squared = (y @ system.projection.a2) @ y
            torch.testing.assert_close(squared, exact.square().sum(), rtol=1e-6, atol=0)
            other = pairs.pack(symmetric(RANK, seed=8))
            inner = y @ system.projection.coordinates(other)
            torch.testing.assert_close(inner, (y @ system.projection.basis) @ other, rtol=1e-9, atol=0)
        twin.advance()


def test_on_turned_spans_it_is_the_same(pairs):
    model, _ = model_of(pairs, DRIVEN["both"](pairs))
    families = _Families(model, CoupledBlocks(pairs, model.space.coupling, 1e-6))
    families.grow([0.5], 0.1)
    basis = every_triple(model.space)
    system, n = model._projected(basis, basis, families), len(basis)
    one, other = (torch.linalg.qr(normal(n, n, seed=seed)).Q for seed in (5, 6))
    turned = system.restricted(one, other)
    segments = [Segment(9, StepCoefficients(LR, Q), BATCH)]
    states, means = system.run(segments, [0, 9])
    found, same = turned.run(segments, [0, 9])
    torch.testing.assert_close(found[:, :-1] @ one.mT, states[:, :-1], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found @ turned.loss, states @ system.loss, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(same, means, **CLOSE)
    few = system.restricted(one[:, :7], other[:, :9])
    assert (few.gram.shape, few.start.shape, few.loss.shape) == ((9, 7), (9,), (8,))
    states, means = few.run(segments, [0, 4, 9])
    assert (states.shape, means.shape) == ((3, 8), (3, RANK, 2))
    assert (states[:, -1] == 1).all()


@pytest.mark.parametrize("n_steps", [50, 10**6])
@pytest.mark.parametrize("name", ["nothing", "an immovable residual"])
def test_poles_reach_down_to_a_tenth_of_the_slowest_rate(pairs, n_steps, name):
    """That of squares, or of the mean where it drives them; in time, what lasts for a third of the steps or more."""
    model, _ = model_of(pairs, DRIVEN[name](pairs))
    model.n_steps = n_steps
    kept = torch.linalg.eigvals(MomentumStep.of(SGD, LR, Q, pairs.drift).matrices).abs().max()
    slowest = 1 - float(kept) if name != "nothing" else 1 - float(kept) ** 2
    ts, shift = model._poles(6.0)
    assert shift == pytest.approx(0.98 * slowest)
    assert ts[0] + shift == pytest.approx(0.5)
    assert ts[-1] + shift == pytest.approx(max(0.1 * shift, 0.3 / n_steps))
    assert 0.8 < 6 * math.log10((ts[0] + shift) / (ts[1] + shift)) <= 1.0001, "six a decade"


def test_a_mean_that_does_not_decay_is_past_the_limit(pairs):
    model, _ = model_of(pairs, Driven())
    fast = sgdsde.SGD(2.2 * 1.6 / float(pairs.drift.max()), 3, momentum=0.6)
    step = MomentumStep.of(fast, fast.lr, Q, pairs.drift)
    assert step.kept.max() >= 1
    with pytest.raises(PastLimitError, match="does not decay"):
        MomentumModel(MomentumSpace(pairs, step), model.sources, model.start, model.mean, BATCH, 100)


def coupled(space: MomentumSpace, triple: Tensor) -> Tensor:
    """T X, from the uncoupled step and C."""
    pairs = space.pairs
    noise = pairs.unpack(pairs.from_blocks(pairs.to_blocks(pairs.pack(triple[EE]))))
    responses = torch.tensor(space.step.responses, dtype=torch.float64)
    return space.uncoupled(triple) + space.coupling * responses[:, None, None] * noise


@pytest.mark.parametrize("name", ["nothing", "both"])
def test_both_families_are_resolvents_of_the_whole_step(pairs, name):
    """(z - T) of the right one is the start with what the mean adds; the left one answers for the loss."""
    driven = DRIVEN[name](pairs)
    model, twin = model_of(pairs, driven)
    space = model.space
    torch.testing.assert_close(space.unpack(space.pack(twin.triple())), twin.triple(), **CLOSE)
    families = _Families(model, CoupledBlocks(pairs, space.coupling, 1e-6))
    ts = [0.5, 0.2, 0.05]
    families.grow(ts, 0.02)
    assert families.poles == [None, 0, 1, 2, None]
    loss = pairs.drift.diag()
    torch.testing.assert_close(space.unpack(families.left[0])[EE], loss, **CLOSE)
    for row, z in enumerate([1 + t for t in (*ts, 0.0)], 1):
        right, left = space.unpack(families.right[row]), families.left[row]
        source = families.start
        noise = model.noise_of_mean(z)
        if noise is not None:
            source = source + torch.tensor(space.step.responses).double()[:, None, None] * noise
        torch.testing.assert_close(z * right - coupled(space, right), source, **LOOSE)
        triple = torch.stack([symmetric(RANK, seed=4), normal(RANK, RANK, seed=5), symmetric(RANK, seed=6)])
        pushed = z * triple - coupled(space, triple)
        torch.testing.assert_close(left @ space.pack(pushed), (loss * triple[EE]).sum(), **LOOSE)


@pytest.mark.parametrize("name", DRIVEN)
def test_what_constant_sources_maintain_is_stationary(pairs, name):
    driven = DRIVEN[name](pairs)
    model, twin = model_of(pairs, driven)
    families = _Families(model, CoupledBlocks(pairs, model.space.coupling, 1e-6))
    families.grow([0.5], 0.1)
    rest = families.stationary
    added = gradient_noise(pairs, Q, BATCH, driven, torch.zeros(RANK, RANK).double(), torch.zeros(RANK, 2).double())
    root, responses = pairs.drift.rsqrt(), torch.tensor(model.space.step.responses).double()
    source = responses[:, None, None] * (root[:, None] * added * root)
    torch.testing.assert_close(coupled(model.space, rest) + source, rest, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(families.start + rest, twin.triple(), rtol=1e-9, atol=1e-9)
    assert bool(rest.any()) is (name != "nothing")


def test_what_the_mean_adds_is_the_sum_over_all_steps(pairs):
    driven, z = DRIVEN["an immovable residual"](pairs), 1.25
    model, twin = model_of(pairs, driven)
    nothing, root, total = torch.zeros(RANK, RANK).double(), pairs.drift.rsqrt(), 0.0
    alone = gradient_noise(pairs, Q, BATCH, driven, nothing, 0 * twin.mean[:, 0])
    for k in range(200):
        added = gradient_noise(pairs, Q, BATCH, driven, nothing, twin.mean[:, 0]) - alone
        total = total + z ** -(k + 1) * root[:, None] * added * root
        twin.advance()
    torch.testing.assert_close(model.noise_of_mean(z), total, **CLOSE)
    assert model_of(pairs, Driven())[0].noise_of_mean(z) is None


def test_without_noise_nothing_is_coupled(pairs):
    driven = DRIVEN["an immovable residual"](pairs)
    model, _ = model_of(pairs, driven)
    quiet = MomentumSpace(pairs, MomentumStep.of(SGD, LR, 0.0, pairs.drift))
    model = MomentumModel(quiet, model.sources, model.start, model.mean, BATCH, 100)
    assert model.noise_of_mean(1.1) is None
    assert model.constant_noise() is None
    families = _Families(model, CoupledBlocks(pairs, 0.0, 1e-6))
    families.grow([0.5], 0.1)
    right = quiet.unpack(families.right[1])
    torch.testing.assert_close(1.5 * right - quiet.uncoupled(right), model.start, **CLOSE)


def test_rows_of_pairs_are_worked_on_in_any_number(pairs, monkeypatch):
    step = MomentumStep.of(SGD, LR, Q, pairs.drift)
    triple = torch.stack([symmetric(RANK, seed=4), normal(RANK, RANK, seed=5), symmetric(RANK, seed=6)])
    whole = MomentumSpace(pairs, step)
    monkeypatch.setattr(momentum_pairs, "ROWS_AT_ONCE", 3 * RANK)
    parts = MomentumSpace(pairs, step)
    for one, other in (
        (whole.uncoupled(triple), parts.uncoupled(triple)),
        (whole.solve(1.2, triple), parts.solve(1.2, triple)),
        (whole.resolvent(1.2).answer, parts.resolvent(1.2).answer),
        (whole.resolvent(1.2).response, parts.resolvent(1.2).response),
    ):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


def test_dot_products_of_packed_triples_are_those_of_four_blocks(pairs):
    space = MomentumSpace(pairs, MomentumStep.of(SGD, LR, Q, pairs.drift))
    one, other = (
        torch.stack([symmetric(RANK, seed=s), normal(RANK, RANK, seed=s + 1), symmetric(RANK, seed=s + 2)])
        for s in (1, 4)
    )
    expected = (one * other)[[EE, EV, EV, VV]].sum()
    torch.testing.assert_close(space.pack(one) @ space.pack(other), expected, **CLOSE)
    torch.testing.assert_close(space.ee_of(space.pack(one)), pairs.pack(one[EE]), **CLOSE)


def test_the_mean_alone_is_that_of_the_steps(pairs):
    _, twin = model_of(pairs, Driven())
    matrices = MomentumStep.of(SGD, LR, Q, pairs.drift).matrices
    mean = torch.stack([twin.mean[:, 0], LR * twin.mean[:, 1]], 1)
    found = mean_with_buffer(matrices, mean, [0, 3, 3, 10])
    for k in range(11):
        for row in [i for i, step in enumerate([0, 3, 3, 10]) if step == k]:
            torch.testing.assert_close(found[row], twin.mean[:, 0], **CLOSE)
        twin.advance()


def test_a_model_holds_what_the_recursion_gives_and_its_coarser_forms_differ(pairs):
    """Built from poles, to the tolerance of its solves; without every fifth pole it is another, near, model."""
    model, twin = model_of(pairs, DRIVEN["both"](pairs))
    system: MomentumSystem = model.build(5.0, 1e-5)
    segments, record = [Segment(40, StepCoefficients(LR, Q), BATCH)], [5, 20, 40]
    losses = system.run(segments, record)[0] @ system.loss
    exact = []
    for k in range(41):
        if k in record:
            exact.append(twin.moment[:, 0, :, 0].trace())
        twin.advance()
    torch.testing.assert_close(losses, torch.stack(exact), rtol=2e-3, atol=0)
    coarser = model.coarser()
    assert len(coarser) == 2
    for one in coarser:
        found = one.run(segments, record)[0] @ one.loss
        assert 0 < (found - losses).abs().max() < 0.05 * losses.max()
    assert model.applications >= len(system.gram)
