"""The bound on the tail's share of the noise, by hand where examples are orthogonal: every factor of it is a number."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import sgdsde
from sgdsde import dynamics
from sgdsde.dynamics.moments.modes import Modes
from sgdsde.dynamics.moments.truncation_bound import _mixed, _TailMoments
from tests.problems import BY_NAME, linear_problem

KERNEL = np.array([9.0, 4.0, 1.0, 0.25])
TAIL = np.array([0.0, 0.0, 1.0, 0.25])
LARGEST = min(KERNEL[1], TAIL.sum())
"""All that the leading pairs and the trace say of the tail's largest eigenvalue."""
N, S = 4, 2.0
TARGETS = np.array([0.5, -1.0, 2.0, 1.0])


def moments(sgd: sgdsde.SGD) -> _TailMoments:
    features = np.diag(KERNEL**0.5)[:, None, :]
    linearization = sgdsde.linearize(linear_problem(features, TARGETS[:, None], np.zeros(4))).truncate(2, tail="frozen")
    return _TailMoments(Modes.of(linearization), linearization.basis.tail, sgd, sgd.plan(N, 3))


def sharpness(q: float) -> float:
    """Of K/n + q D(K): that of the leading pairs and that of the tail, added."""
    return (1 / N + q) * KERNEL.max() + LARGEST / N + q * TAIL.max()


@pytest.mark.parametrize("lr", [0.05, 0.2])
@pytest.mark.parametrize("small", [True, False], ids=["few examples moved", "all moved"])
def test_one_step_of_noise_by_hand(lr: float, small: bool) -> None:
    """phi/B = 1/3; the tail's mean has moved as far as one step carries the largest of its modes."""
    q, tail = 1 / 3, moments(sgdsde.SGD(lr, 3))
    tail.advance(0)
    energy, moved = np.array([0.3, 0.1, 0.7, 0.2]), np.array([0.1, 0.0, 0.05, 0.02]) * (0.1 if small else 10)
    others = np.array([0.0, 0.2, 0.1, 0.3])
    tail.add_noise(*map(torch.from_numpy, (energy, moved, others)), q, lr)
    unit = S**2 * q / N
    assert tail._direct == pytest.approx(lr**2 * unit * (TAIL * (energy**0.5 + moved + others) ** 2).sum(), rel=1e-12)
    length = lr * S / N * LARGEST * np.linalg.norm(TARGETS[2:])
    assert tail._length() == pytest.approx(length, rel=1e-12)
    mean = min((KERNEL * moved**2).sum(), KERNEL.max() * length**2)
    assert (mean == KERNEL.max() * length**2) is not small
    share = lr * S / 2 * sharpness(q)
    pushed = ((TAIL * energy).sum() ** 0.5 + mean**0.5) ** 2
    expected = lr**2 * unit * pushed / (1 - share) if share < 1 else math.inf
    assert tail.weights == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.4])
def test_the_weights_of_the_tail_are_bounded_up_to_a_learning_rate_and_no_further(decay: float) -> None:
    """lr s/2 (K/n + q D(K)) = 1 - lr decay; with momentum never."""
    q, nothing = 1 / 3, torch.zeros(4, dtype=torch.float64)
    top = 1 / (S / 2 * sharpness(q) + decay)
    for words, part, is_bounded in (({}, 0.999, True), ({}, 1.001, False), ({"momentum": 0.1}, 0.1, False)):
        tail = moments(sgdsde.SGD(part * top, 3, weight_decay=decay, **words))
        tail.add_noise(nothing + 1, nothing, nothing, q, part * top)
        assert math.isfinite(tail.weights) is is_bounded


@pytest.mark.parametrize("words", [{}, {"momentum": 0.5}], ids=str)
def test_noise_of_labels_passes_through_the_tail_once(words: dict) -> None:
    lr, variance = 0.1, 0.7
    tail = moments(sgdsde.SGD(lr, 2, **words))
    gain = lr / (1 - words.get("momentum", 0.0))
    for _ in range(3):
        tail.add_labels(variance)
    labels = 3 * gain**2 * variance * S**2 / N
    assert tail._labels == pytest.approx(labels, rel=1e-12)
    assert tail.weights == pytest.approx(labels * TAIL.sum(), rel=1e-12)
    assert tail._trace() == pytest.approx(LARGEST * TAIL.sum() * labels, rel=1e-12)
    torch.testing.assert_close(
        tail.variances(), torch.from_numpy(TAIL * min(LARGEST * labels, LARGEST * TAIL.sum() * labels))
    )


def test_dynamics_without_noise_leave_out_what_descent_on_whole_batches_does() -> None:
    linearization = sgdsde.linearize(BY_NAME["two outputs"].problem()).truncate(3, tail="frozen")
    quiet = dynamics.truncation_error(linearization, sgdsde.SGD(0.05, 2), [0, 1, 9], noise="none")
    whole = sgdsde.SGD(0.05, 4, sampling="without_replacement")
    torch.testing.assert_close(quiet, dynamics.truncation_error(linearization, whole, [0, 1, 9], noise="state"))
    noisy = dynamics.truncation_error(linearization, sgdsde.SGD(0.05, 1), [0, 1, 9], noise="state")
    assert noisy[-1] > 1.005 * quiet[-1]


@pytest.mark.parametrize("c", [1, 2, 3])
def test_two_parts_of_unknown_correlation_are_bounded_at_the_best_share(c: int) -> None:
    """eps D + (1 + 1/eps) v I: of all shares eps none gives a smaller trace, and with D it holds E (x + y)(x + y)^T."""
    rng = np.random.default_rng(c)
    root = rng.normal(size=(5, c, c))
    blocks, squares = torch.from_numpy(root @ root.swapaxes(1, 2)), torch.from_numpy(rng.exponential(size=5))
    blocks[3], squares[4] = 0.0, 0.0
    found = _mixed(blocks, squares)
    for block, square, one in zip(blocks.numpy(), squares.tolist(), found.numpy()):
        shares = np.geomspace(1e-4, 1e4, 2001)
        candidates = shares[:, None, None] * block + ((1 + 1 / shares) * square)[:, None, None] * np.eye(c)
        traces = candidates.trace(axis1=1, axis2=2)
        if block.any() and square:
            assert np.trace(one) == pytest.approx(traces.min(), rel=1e-4)
            np.testing.assert_allclose(one, candidates[traces.argmin()], rtol=0, atol=0.02 * np.trace(one))
        else:  # a part of zero adds nothing
            np.testing.assert_allclose(one, square * np.eye(c), rtol=0, atol=1e-12)
        values = np.linalg.eigh(block)
        deviation = values[1] * values[0].clip(0) ** 0.5
        for _ in range(20):  # y of covariance v I in any rotation, fully correlated with x of covariance D
            turn = np.linalg.qr(rng.normal(size=(c, c)))[0] * square**0.5
            total = (deviation + turn) @ (deviation + turn).T
            assert np.linalg.eigvalsh(block + one - total).min() > -1e-9
