"""What a kernel takes, known beforehand: bytes that are kept, refused and explained, operations, blocks, seconds."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde._functional import as_functional
from sgdsde._probe import probe
from sgdsde.kernel import KernelPlan, gram, memory_plan
from sgdsde.kernel.hardware_rates import Rates
from tests.catalogue import CASES
from tests.live_memory import live_peak
from tests.unit.kernel.test_empirical import relative_error

DENSE = nn.Sequential(nn.Linear(784, 96), nn.ReLU(), nn.Linear(96, 10)), (784,)
CONVOLUTIONAL = (
    nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    ),
    (3, 16, 16),
)
ATTENTION = (
    nn.Sequential(nn.TransformerEncoderLayer(16, 4, dim_feedforward=32, batch_first=True), nn.Flatten()).eval(),
    (8, 16),
)


@pytest.mark.parametrize("megabytes", [24, 48])
@pytest.mark.parametrize("network", [DENSE, CONVOLUTIONAL, ATTENTION], ids=["dense", "convolutional", "attention"])
def test_live_tensors_stay_within_the_memory_given(network, megabytes):
    model, shape = network
    x = torch.randn(12, *shape, generator=torch.Generator().manual_seed(0))
    memory = megabytes * 2**20
    peak = live_peak(lambda: sgdsde.empirical_ntk(model, x, memory=memory))
    assert peak <= memory
    functional, at_two = probe(as_functional(model), x)
    plan = KernelPlan.make(functional, functional.params, x, None, at_two.shape[1], memory=memory)
    assert plan.total_bytes <= memory
    assert peak >= 0.25 * plan.total_bytes, "an estimate far too high is wrong too"


TOKENS = (
    nn.Sequential(
        *(nn.Embedding(50, 16), nn.TransformerEncoderLayer(16, 4, dim_feedforward=32, batch_first=True)),
        *(nn.Flatten(), nn.Linear(128, 4)),
    ).eval(),
    (8,),
)
MIXED = (
    nn.Sequential(
        *(nn.Conv1d(8, 16, 5, groups=4, padding=2), nn.ReLU(), nn.BatchNorm1d(16).eval()),
        *(nn.ConvTranspose1d(16, 8, 4, stride=2), nn.Flatten(), nn.Linear(8 * 34, 3)),
    ).eval(),
    (8, 16),
)


DEEP = (
    nn.Sequential(*(layer for _ in range(20) for layer in (nn.Linear(48, 48), nn.Tanh())), nn.Linear(48, 10)),
    (48,),
)


@pytest.mark.parametrize("method", ["structured", "jacobian"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    "network", [CONVOLUTIONAL, TOKENS, MIXED, DEEP], ids=["convolutional", "tokens", "mixed", "deep"]
)
def test_live_tensors_stay_within_what_the_plan_says(network, dtype, method):
    model, shape = network
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(50, (20, *shape), generator=generator) if network is TOKENS else torch.randn(20, *shape)
    functional, at_two = probe(as_functional(model), x)
    words = {"dtype": dtype, "method": method, "outputs": "trace" if network is TOKENS else "full"}

    def plan(memory: int) -> KernelPlan:
        return KernelPlan.make(functional, functional.params, x, None, at_two.shape[1], memory=memory, **words)

    whole = plan(10**10)
    smaller = plan(whole.result_bytes + (whole.total_bytes - whole.result_bytes) // 4)
    assert smaller.step < whole.step
    assert live_peak(lambda: gram(functional, x, None, plan=smaller)) <= smaller.total_bytes


@pytest.mark.parametrize(("n1", "n2", "outputs"), [(20, 5, "full"), (5, 20, "trace"), (5, 20, "per_class")])
def test_live_tensors_of_two_sets_stay_within_what_the_plan_says(n1, n2, outputs):
    model, shape = CONVOLUTIONAL
    functional, x = as_functional(model), torch.randn(25, *shape)
    x1, x2 = x[:n1], x[n1:]

    def plan(memory: int) -> KernelPlan:
        return KernelPlan.make(functional, functional.params, x1, x2, 10, memory=memory, outputs=outputs)

    whole = plan(10**10)
    assert (whole.rows, whole.held_examples) == (20, 25)
    smaller = plan(whole.result_bytes + (whole.total_bytes - whole.result_bytes) // 12)
    assert smaller.held_examples < 25
    for each in (whole, smaller):
        peak = live_peak(lambda each=each: gram(functional, x1, x2, plan=each))
        assert 0.25 * each.total_bytes < peak <= each.total_bytes


def test_more_at_once_than_makes_anything_faster_is_not_taken(monkeypatch):
    functional, x = as_functional(CONVOLUTIONAL[0]), torch.randn(400, 3, 16, 16)
    sizes = []
    for comfortable in (2**22, 2**25, 2**28):
        monkeypatch.setattr(memory_plan, "COMFORTABLE", comfortable)
        plan = KernelPlan.make(functional, functional.params, x, None, 10, memory=10**11)
        assert 0.3 * comfortable < plan.workspace_bytes <= comfortable
        sizes.append((plan.step, plan.tile))
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("method", ["structured", "jacobian"])
def test_more_memory_means_larger_blocks(method):
    functional = as_functional(DENSE[0])
    x = torch.randn(64, 784)
    words = {"dtype": torch.float32, "method": method}
    smallest = KernelPlan.make(functional, functional.params, x, None, 10, **words, memory=10**10).result_bytes
    rows = []
    for megabytes in (16, 32, 10**5) if method == "jacobian" else (0.4, 0.5, 10**5):
        memory = smallest + int(megabytes * 2**20)
        plan = KernelPlan.make(functional, functional.params, x, None, 10, **words, memory=memory)
        assert plan.total_bytes <= memory
        rows.append(plan.rows)
    assert rows[0] < rows[1] < rows[2] == 64


def test_a_kernel_beyond_the_memory_names_what_does_not_need_it():
    with pytest.raises(MemoryError, match=r"the kernel takes 320,000 .* or use sgdsde.kernel.TiledKernel \(on disk\)"):
        sgdsde.empirical_ntk(DENSE[0], torch.ones(20, 784), memory=300_000)
    with pytest.raises(MemoryError, match=r"raise it$"):
        sgdsde.empirical_ntk(DENSE[0], torch.ones(20, 784), torch.ones(1, 784), memory=30_000)


@pytest.mark.parametrize("words", [{}, {"x2": torch.ones(5, 784)}], ids=["square", "two sets"])
def test_too_little_memory_is_refused_in_bytes_before_the_kernel_is_made(words):
    model, x = DENSE[0], torch.ones(20, 784)
    message = (
        r"memory must be at least ([\d,]+) bytes, got 300,000; the kernel takes [\d,]+ "
        r"and two examples with 10 outputs [\d,]+; raise it"
    )

    def attempt() -> None:
        with pytest.raises(MemoryError, match=message) as caught:
            sgdsde.empirical_ntk(model, x, memory=300_000, **words)
        needed.append(int(re.search(message, str(caught.value))[1].replace(",", "")))

    needed: list[int] = []
    assert live_peak(attempt) < 4 * 10**6
    kernel = sgdsde.empirical_ntk(model, x, memory=needed[0], **words)
    assert relative_error(kernel, sgdsde.empirical_ntk(model, x, **words)) < 1e-6
    with pytest.raises(MemoryError):
        sgdsde.empirical_ntk(model, x, memory=needed[0] - 1, **words)


PEAK = """
import torch
from torch import nn
import sgdsde
torch.set_num_threads(1)
def kilobytes(what):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(what))
model, x = {model}, torch.randn({shape})
sgdsde.empirical_ntk(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten()), torch.randn(2, 1, 4, 4))
before = kilobytes("VmRSS")
assert kilobytes("VmHWM") < before + 2**11, "start-up took more than it kept"
sgdsde.empirical_ntk(model, x, memory={memory})
print(1024 * (kilobytes("VmHWM") - before))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the high-water mark of Linux")
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ("nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10))", "64, 784"),
        (
            "nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), "
            "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))",
            "16, 3, 32, 32",
        ),
    ],
)
def test_the_process_grows_by_the_memory_given_and_a_slack_of_its_allocator(model, shape):
    memory, slack = 2**28, 2**26
    code = PEAK.format(model=model, shape=shape, memory=memory)
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert answer.returncode == 0, answer.stderr
    assert int(answer.stdout) <= memory + slack


def test_a_plan_is_explained_before_anything_runs():
    model = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 3))
    x = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    plan = sgdsde.empirical_ntk(model, x, dtype=torch.float32, explain=True)
    assert isinstance(plan, KernelPlan)
    # By hand: 50 * 51 / 2 pairs; a dense layer q -> o takes 2 (q + c^2 o) a pair, the last one (identity) 2 q.
    assert [layer.tile_operations for layer in plan.layers] == [1275 * 2 * (30 + 9 * 20), 1275 * 2 * 20]
    assert plan.network == 2 * (30 * 20 + 20 * 3) + 3 * 2 * 20 * 3
    assert plan.operations == 50 * plan.network + sum(layer.tile_operations for layer in plan.layers)
    assert plan.result_bytes == 4 * 150**2
    assert plan.example_bytes == 4 * (30 + 3 * 20 + 20)
    assert plan.total_bytes == plan.result_bytes + 50 * plan.example_bytes + plan.workspace_bytes
    assert plan.seconds is not None
    assert 0 < plan.seconds < 10
    text = str(plan)
    for words in (
        "50 x 50 examples with 3 outputs",
        "0.weight, 0.bias",
        "2.weight, 2.bias",
        f"{plan.total_bytes:,} bytes",
    ):
        assert words in text
    assert f"expected: {plan.seconds:.3g} s" in text


def test_blocks_that_are_made_again_are_counted():
    model, x = CASES["linear"].model(), CASES["linear"].inputs(7)
    functional = as_functional(model)
    for pair, made in (((x, None), 7 + 3), ((x, x[:5]), 5 + 2 * 7)):
        plan = KernelPlan.make(functional, functional.params, *pair, 3)
        assert plan.made_examples == sum(len(side) for side in pair if side is not None)
        assert dataclasses.replace(plan, rows=4).made_examples == made


@pytest.mark.parametrize(("n1", "n2", "rows"), [(7, None, 7), (7, None, 3), (7, 5, 4), (5, 7, 2), (6, 6, 6)])
def test_the_words_and_the_seconds_of_a_plan_add_up(n1, n2, rows):
    """Counted as blocks are made: a block of columns once, beside it one block of rows after the other."""
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16**2, 3))
    functional, x = as_functional(model), torch.randn(13, 4, 16, 16)
    plan = KernelPlan.make(functional, functional.params, x[:n1], None if n2 is None else x[n1 : n1 + n2], 3)
    assert plan.seconds is None
    plan = dataclasses.replace(plan, rows=rows, rates=Rates(network=2e6, products=3e6, entries=5e6))
    made, blocks = 0, 0
    for j in range(0, n2 or n1, rows):
        made += min(rows, (n2 or n1) - j)
        for i in range(0, n1, rows):
            blocks += 1
            made += min(rows, n1 - i) if n2 is not None or i > j else 0
    assert plan.made_examples == made
    work = [layer.tile_operations + made * layer.example_operations for layer in plan.layers]
    assert any(layer.example_operations for layer in plan.layers)
    assert plan.operations == sum(work) + made * plan.network
    entries = sum(layer.entries for layer in plan.layers)
    assert plan.seconds == pytest.approx(made * plan.network / 2e6 + sum(work) / 3e6 + entries / 5e6)
    text = str(plan)
    assert f"blocks: {blocks} of at most {rows} x {rows} examples" in text
    assert f"{made} in all" in text
    told = [float(line.split()[0]) for line in text.splitlines()[4:-1]]
    assert told == [float(f"{count:.3g}") for count in (*work, made * plan.network, plan.operations)]


def test_each_layer_takes_the_cheaper_way():
    # One pixel or two: inputs and gradients. 256 pixels and four channels: the Jacobian has fewer numbers.
    for size, way in ((1, "gram"), (16, "jacobian")):
        model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * size**2, 3))
        plan = sgdsde.empirical_ntk(model, torch.randn(6, 4, size, size), explain=True)
        assert [layer.way for layer in plan.layers] == [way, "gram"]
