"""SVAG in an ensemble: every substep has batches of its own."""

from __future__ import annotations

import sgdsde
from sgdsde import SVAG
from tests.problems import BY_NAME


def test_substeps_draw_batches_of_their_own():
    """At a tiny step the spread of the outputs is that of SGD; batches shared by four substeps would make it four times
    as large. 400 runs each: the quotient leaves [0.6, 1.7] with probability below 1e-6 (F of 399 and 399)."""
    problem, runs = BY_NAME["one output"].problem(), 400
    sgd = sgdsde.SGD(lr=1e-5, batch_size=1)
    spread = {}
    for variant in (None, SVAG(4)):
        found = sgdsde.run_ensemble(problem, sgd, 1, runs, variant=variant, seed=3, observe=("outputs",), record=[1])
        spread[variant] = found.train_outputs.samples[:, -1, 0, 0].var()
    plain, refined = spread.values()
    assert 0.6 < refined / plain < 1.7
