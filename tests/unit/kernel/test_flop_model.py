"""Bytes of a plan go with the bytes of a number; tiles are aligned; a digest knows contents and not their order."""

import dataclasses

import pytest
import torch
from torch import nn

from sgdsde._functional import as_functional
from sgdsde.kernel.flop_model import Job, layer_plan
from sgdsde.kernel.layers.structure import structure_of
from sgdsde.kernel.memory_plan import ALIGNED, TILE_ROWS, _tile
from sgdsde.kernel.tiles.manifest import Manifest


@pytest.mark.parametrize("outputs", ["full", "trace", "per_class"])
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Linear(3, 40), nn.Tanh(), nn.Linear(40, 2)), (3,)),
        (nn.Sequential(nn.Conv2d(2, 30, 3), nn.Tanh(), nn.Flatten(), nn.Linear(30 * 4, 2)), (2, 4, 4)),
    ],
    ids=["dense", "convolution"],
)
def test_bytes_are_twice_as_many_in_double_precision_and_operations_the_same(model, shape, outputs):
    functional, x = as_functional(model.double()), torch.randn(5, *shape, dtype=torch.float64)
    job = Job(5, 5, True, 2, outputs, itemsize=4)
    for term in structure_of(functional, functional.params, x, 2).terms:
        single = layer_plan(term, job)
        double = layer_plan(term, dataclasses.replace(job, itemsize=8))
        assert double == dataclasses.replace(single, held=2 * single.held, working=2 * single.working)
        assert single.held > 0


@pytest.mark.parametrize("n_outputs", [1, 2, 3, 10])
def test_a_tile_is_aligned_and_no_larger_than_asked_for(n_outputs):
    for most in (1, 7, 100, 999, 10_000):
        tile = _tile(Job(most, most, False, n_outputs, "full", 8), most)
        assert 1 <= tile <= min(most, -(-TILE_ROWS // n_outputs))
        assert tile * n_outputs % ALIGNED == 0 or tile <= ALIGNED
        assert tile > min(most, TILE_ROWS // n_outputs) - ALIGNED


def test_the_digest_of_a_manifest_does_not_know_the_order_of_its_sources():
    words = {"rows": 6, "columns": None, "n_outputs": 2, "outputs": "full", "dtype": "float64", "tile": 3}
    one = Manifest(**words, memory=9, sources={"model": "a", "x": "b"}, fingerprint=[1.0])
    assert one.digest == dataclasses.replace(one, sources={"x": "b", "model": "a"}, fingerprint=[2.0]).digest
    assert one.digest != dataclasses.replace(one, sources={"x": "a", "model": "b"}).digest
