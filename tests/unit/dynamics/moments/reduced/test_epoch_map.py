"""Sampled orders of an epoch: what each does is its batches one after the other, and averages are those over orders."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import sgdsde
from sgdsde.dynamics.moments.reduced import epoch_map, epoch_runs
from sgdsde.dynamics.moments.reduced.epoch_map import EpochMap, EpochSampler, EpochShape, Passage, projected
from sgdsde.dynamics.moments.reduced.epoch_runs import EpochRuns, MovedMoments
from sgdsde.dynamics.moments.reduced.pairs import PairSpace
from sgdsde.dynamics.moments.reduced.sources import Sources
from tests.unit.dynamics.moments.reduced.dense import Driven, every_symmetric, normal, random_space, symmetric

RANK, LR, DECAY = 5, 0.5, 0.2
CLOSE = {"rtol": 1e-10, "atol": 1e-11}


@pytest.fixture(params=[(9, 1), (5, 2)], ids=["one output", "two outputs"])
def space(request: pytest.FixtureRequest) -> PairSpace:
    return random_space(*request.param, RANK)


def shape_of(space: PairSpace, decay: float = DECAY, lr: float = LR) -> EpochShape:
    """Batches of two and a smaller last one."""
    return EpochShape.of(sgdsde.SGD(lr, 2, sampling="shuffled", weight_decay=decay), space.n_train)


def sources_of(space: PairSpace, driven: Driven) -> Sources:
    return driven.sources(space, symmetric(RANK, seed=1), normal(RANK, 2, seed=2))


def batch_step(sampler: EpochSampler, batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """z' = G z + g, and the second moment that label noise adds: the gradient of one batch of examples in z."""
    space, sources, shape = sampler.sources.space, sampler.sources, sampler.shape
    c, h = space.n_outputs, space.drift
    rows = torch.cat([torch.arange(i * c, i * c + c) for i in batch.tolist()])
    w = space.vectors[rows] * h.sqrt()
    weight = shape.lr * space.n_train / len(batch)
    g_matrix = (1 - shape.lr * shape.decay) * torch.eye(RANK).double() - weight * w.mT @ w
    shift = torch.zeros(RANK, 2).double()
    if sources.fixed is not None:
        shift = shift - weight * w.mT @ sources.fixed[rows]
    if sources.offset is not None:
        shift = shift - shape.lr * sources.offset / h.sqrt()[:, None]
    return g_matrix, shift, weight**2 * sources.label_variance * w.mT @ w


def composed(sampler: EpochSampler, order: Tensor, n_steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """G, g and the labels' part of the first batches of an order."""
    whole, shift, labels = torch.eye(RANK).double(), torch.zeros(RANK, 2).double(), torch.zeros(RANK, RANK).double()
    start = 0
    for size in sampler.shape.sizes[:n_steps]:
        g_matrix, added, noise = batch_step(sampler, order[start : start + size])
        whole, shift, labels = g_matrix @ whole, g_matrix @ shift + added, g_matrix @ labels @ g_matrix.mT + noise
        start += size
    return whole, shift, labels


@pytest.mark.parametrize(
    ("words", "sizes"),
    [
        ({"batch_size": 3}, (3, 3, 3, 1)),
        ({"batch_size": 3, "drop_last": True}, (3, 3, 3)),
        ({"batch_size": 5}, (5, 5)),
        ({"batch_size": 5, "drop_last": True}, (5, 5)),
        ({"batch_size": 6}, (6, 4)),
    ],
    ids=str,
)
def test_the_batches_of_an_epoch(words, sizes):
    shape = EpochShape.of(sgdsde.SGD(0.1, sampling="shuffled", weight_decay=0.3, **words), 10)
    assert (shape.sizes, len(shape), shape.lr, shape.decay) == (sizes, len(sizes), 0.1, 0.3)
    assert shape.is_reversible is (len(set(sizes)) == 1)


def test_orders_are_permutations_and_batches_their_pieces(space):
    sampler = EpochSampler(sources_of(space, Driven()), shape_of(space), seed=3)
    orders = sampler.orders(50)
    assert (orders.sort(1).values == torch.arange(space.n_train)).all()
    assert len({tuple(order.tolist()) for order in orders}) > 40
    c, batches = space.n_outputs, list(sampler.batches(orders))
    assert [batch.shape[1] // c for batch in batches] == list(sampler.shape.sizes)
    torch.testing.assert_close(torch.cat(batches, 1)[:, ::c] // c, orders)
    assert (torch.cat(batches, 1).sort(1).values == torch.arange(space.n_train * c)).all()


EVERYTHING = [
    ("nothing", lambda space: Driven(), 0.0),
    ("immovable residual", lambda space: replace(Driven.by_all(space, columns=2), offset=None, label_variance=0.0), 0),
    ("all, decay", lambda space: Driven.by_all(space, columns=2), DECAY),
]


@pytest.mark.parametrize(("name", "make", "decay"), EVERYTHING, ids=[case[0] for case in EVERYTHING])
def test_an_order_is_its_batches_one_after_the_other(space, name, make, decay):
    sampler = EpochSampler(sources_of(space, make(space)), shape_of(space, decay), seed=3)
    orders = sampler.orders(4)
    positions, seen = sorted({1, 3, len(sampler.shape)}), []
    for position, passage in sampler.passages(orders, positions):
        seen.append(position)
        for i, order in enumerate(orders):
            whole, shift, labels = composed(sampler, order, position)
            torch.testing.assert_close(torch.eye(RANK).double() - passage.loss[i], whole, **CLOSE)
            torch.testing.assert_close(passage.shift[i], shift, **CLOSE)
            if name == "all, decay":
                torch.testing.assert_close(passage.labels[i], labels, **CLOSE)
            else:
                assert passage.labels is None
    assert seen == positions


def test_runs_move_as_their_orders_do_with_label_noise_of_its_size(space):
    driven = Driven.by_all(space, columns=2)
    start = normal(1, RANK, 2, seed=5)
    quiet = EpochSampler(sources_of(space, replace(driven, label_variance=0.0)), shape_of(space), seed=3)
    orders = quiet.orders(3)
    z = start.repeat(3, 1, 1)
    for k, moved in enumerate(quiet.move(z, orders), 1):
        for i, order in enumerate(orders):
            whole, shift, _ = composed(quiet, order, k)
            torch.testing.assert_close(moved[i], whole @ start[0] + shift, **CLOSE)
    noisy = EpochSampler(sources_of(space, driven), shape_of(space), seed=4)
    many = orders[:1].repeat(6000, 1)
    for k, moved in enumerate(noisy.move(start.repeat(6000, 1, 1), many), 1):
        whole, shift, labels = composed(noisy, orders[0], k)
        deviation = moved - (whole @ start[0] + shift)
        found = torch.einsum("kic,kjc->ij", deviation, deviation) / 6000
        # 12,000 squares of each entry: a standard error of at most 1.3 %, the bound at 5 of them
        assert (found - labels).abs().max() < 0.065 * labels.diagonal().max()


def moved_moment(y: Tensor, m: Tensor, whole: Tensor, shift: Tensor, labels: Tensor) -> Tensor:
    crossed = whole @ m @ shift.mT
    return whole @ y @ whole.mT + crossed + crossed.mT + shift @ shift.mT + labels


@pytest.mark.parametrize("held", [epoch_map.HELD, 40], ids=["whole", "in rows"])
def test_the_projected_epoch_is_the_mean_over_its_orders(space, held, monkeypatch):
    monkeypatch.setattr(epoch_map, "HELD", held)
    driven = Driven.by_all(space, columns=2)
    sampler = EpochSampler(sources_of(space, driven), shape_of(space), seed=3)
    orders, m = sampler.orders(3), normal(RANK, 2, seed=5)
    y = m @ m.mT + symmetric(RANK, seed=6)
    ((_, passage),) = sampler.passages(orders, [len(sampler.shape)])
    units = torch.stack(every_symmetric(RANK)).flatten(1)
    _, values, right = torch.linalg.svd(units, full_matrices=False)
    basis = right[values > 1e-10].view(-1, RANK, RANK)
    found = projected(basis, passage, reversible=False, driven=True)
    after, mean = found(torch.tensordot(basis, y, 2), m)
    each = [composed(sampler, order, len(sampler.shape)) for order in orders]
    expected = sum(moved_moment(y, m, *one) for one in each) / 3
    torch.testing.assert_close(torch.tensordot(after, basis, 1), expected, **CLOSE)
    torch.testing.assert_close(mean, sum(whole @ m + shift for whole, shift, _ in each) / 3, **CLOSE)
    alone = projected(basis, replaced(passage, None), reversible=False, driven=False)
    assert alone.force is None
    spread, _ = alone(torch.tensordot(basis, y, 2), m)
    torch.testing.assert_close(
        torch.tensordot(spread, basis, 1), sum(whole @ y @ whole.mT for whole, _, _ in each) / 3, **CLOSE
    )
    few = basis[:4]
    torch.testing.assert_close(
        projected(few, passage, reversible=False, driven=True).loss,
        found.restricted(torch.eye(15).double()[:, :4]).loss,
    )
    both = projected(basis, passage, reversible=True, driven=True)
    torch.testing.assert_close(both.loss, (found.loss + found.loss.mT) / 2, **CLOSE)
    torch.testing.assert_close(both.mean_loss, (found.mean_loss + found.mean_loss.mT) / 2, **CLOSE)


def replaced(passage: Passage, labels: Tensor | None) -> Passage:
    return Passage(passage.loss, passage.shift, labels)


def some_map(seed: int) -> EpochMap:
    return EpochMap(
        normal(3, 3, seed=seed),
        normal(3, 4, 2, seed=seed + 1),
        normal(3, seed=seed + 2),
        normal(4, 4, seed=seed + 3),
        normal(4, 2, seed=seed + 4),
    )


def test_maps_mix_turn_and_lose_their_mean():
    one, other, y, m = some_map(0), some_map(10), normal(3, seed=20), normal(4, 2, seed=21)
    mixed = EpochMap.mixed([one, other], [0.3, 0.7])(y, m)
    for found, a, b in zip(mixed, one(y, m), other(y, m)):
        torch.testing.assert_close(found, 0.3 * a + 0.7 * b, **CLOSE)
    turn = torch.linalg.qr(normal(3, 3, seed=22)).Q
    turned, mean = one.restricted(turn)(turn.mT @ y, m)
    torch.testing.assert_close(turn @ turned, one(y, m)[0], **CLOSE)
    torch.testing.assert_close(mean, one(y, m)[1], **CLOSE)
    assert one.restricted(turn[:, :2]).loss.shape == (2, 2)
    alone = one.without_mean()(y, m[:0, :0])[0]
    torch.testing.assert_close(alone, y - one.loss @ y + one.constant, **CLOSE)
    passage = one.of_mean
    torch.testing.assert_close(m - passage.loss[0] @ m + passage.shift[0], one(y, m)[1], **CLOSE)
    assert EpochMap.mixed([one.without_mean()], [1.0]).force is None


def runs_of(space: PairSpace, driven: Driven, seed: int = 3, lr: float = LR) -> EpochRuns:
    sources = sources_of(space, driven)
    return EpochRuns(SimpleNamespace(), SimpleNamespace(sources=sources), shape_of(space, lr=lr), seed)


def test_moments_within_an_epoch_are_means_over_the_orders_of_its_batches(space, monkeypatch):
    """And the squared residual of every order, from which the standard error comes; however many are held at once."""
    driven = Driven.by_all(space, columns=2)
    runs = runs_of(space, driven)
    m = normal(RANK, 2, seed=5)
    places = [(steps, m, m @ m.mT + symmetric(RANK, seed=steps)) for steps in (2, 1, 2)]
    found = runs.moved(places, 2)
    orders = torch.cat([runs._sampler(1 + batch).orders(epoch_runs.BATCH) for batch in range(2)])
    for (steps, m, y), one in zip(places, found):
        each = [composed(runs._sampler(0), order, steps) for order in orders]
        moments = torch.stack([moved_moment(y, m, *parts) for parts in each])
        mean, moment = one.averages()
        torch.testing.assert_close(mean, sum(whole @ m + shift for whole, shift, _ in each) / 16, **CLOSE)
        torch.testing.assert_close(moment, moments.mean(0), **CLOSE)
        losses = moments.diagonal(dim1=1, dim2=2) @ space.drift
        torch.testing.assert_close(torch.cat(one.losses), losses, **CLOSE)
        for floor in (0.0, 3.0):
            expected = losses.std() / 4 / (losses.mean() + floor)
            assert one.standard_error(floor) == pytest.approx(float(expected), rel=1e-9)
    monkeypatch.setattr(epoch_runs, "HELD", 3 * RANK**2)
    for one, other in zip(found, runs.moved(places, 2)):
        torch.testing.assert_close(one.moment, other.moment, **CLOSE)


def test_companions_are_the_moments_after_some_epochs_and_those_of_the_mean_alone(space):
    """Over the orders of one batch, every epoch from where the last one ended."""
    driven = Driven.by_all(space, columns=2)
    runs = runs_of(space, driven, lr=0.1)
    sources, root = runs.start.sources, space.drift.sqrt()[:, None]
    found = runs.followed(sources, (1, 3))
    assert len(found) == 4
    mean, moment, expected = sources.mean / root, space.unpack(sources.moment), []
    orders = runs._sampler(1).orders(epoch_runs.BATCH)
    each = [composed(runs._sampler(0), order, len(runs.shape)) for order in orders]
    for epoch in (1, 2, 3):
        moment = torch.stack([moved_moment(moment, mean, *parts) for parts in each]).mean(0)
        mean = torch.stack([whole @ mean + shift for whole, shift, _ in each]).mean(0)
        if epoch != 2:
            expected += [moment, mean @ mean.mT]
    for one, other in zip(found, expected):
        torch.testing.assert_close(space.unpack(one), other, **CLOSE)


def test_every_batch_of_orders_has_a_stream_of_its_own(space):
    runs = runs_of(space, Driven())
    orders = [runs._sampler(stream).orders(8) for stream in range(4)]
    assert all((one != other).any() for i, one in enumerate(orders) for other in orders[:i])
    assert (runs_of(space, Driven(), seed=4)._sampler(1).orders(8) != orders[1]).any()
    assert (runs_of(space, Driven())._sampler(1).orders(8) == orders[1]).all()


def test_the_first_epochs_report_the_scatter_of_their_own_averages(space, monkeypatch):
    """Over 40 seeds of 512 runs: the standard deviation of the mean loss, known to 12 %, within 40 %, is reported."""
    monkeypatch.setattr(epoch_runs, "RUNS", 512)
    driven = replace(Driven.by_all(space, columns=2), label_variance=0.1)
    floor = float(driven.fixed.square().sum())
    losses, reported = [], []
    for seed in range(40):
        after, moments, errors = runs_of(space, driven, seed).first_epochs([0, 2], 4)
        assert len(errors) == 3
        assert errors[0] == 0
        assert len(moments) == 4
        torch.testing.assert_close(torch.stack(moments).mean(0), after.moment, **CLOSE)
        losses.append(float(after.moment @ space.diagonal(space.drift)) + floor)
        reported.append(float(errors[2]))
    found = torch.tensor(losses)
    assert float(found.std() / found.mean()) == pytest.approx(float(torch.tensor(reported).mean()), rel=0.4)


def test_the_first_epochs_leave_the_moments_of_their_runs(space):
    """Held to the mean of 480 orders an epoch, which differ by a few percent: mean and second moment within 3 %."""
    driven = replace(Driven.by_all(space, columns=2), label_variance=0.0)
    runs = runs_of(space, driven, lr=0.05)
    after, _, _ = runs.first_epochs([], 8)
    start = runs.start.sources.mean / space.drift.sqrt()[:, None]
    place = [(len(runs.shape), start, start @ start.mT)]
    for _ in range(2):
        mean, moment = runs.moved(place, 60)[0].averages()
        place = [(len(runs.shape), mean, moment)]
    root = space.drift.sqrt()[:, None]
    assert (after.mean - root * mean).norm() < 0.03 * after.mean.norm()
    assert (space.unpack(after.moment) - moment).norm() < 0.03 * moment.norm()


def test_sums_over_passages_start_at_zero():
    total = MovedMoments(torch.zeros(2, 1).double(), torch.zeros(2, 2).double(), [])
    passage = Passage(torch.zeros(3, 2, 2).double(), torch.zeros(3, 2, 1).double(), None)
    y = symmetric(2, seed=1)
    total.add(passage, torch.ones(2, 1).double(), y, torch.ones(2).double())
    torch.testing.assert_close(total.averages()[1], y)
    torch.testing.assert_close(total.averages()[0], torch.ones(2, 1).double())
