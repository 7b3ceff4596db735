"""The empirical kernel equals one backward pass per output for every kind of layer, within the memory it is given."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sgdsde
from sgdsde._functional import as_functional
from sgdsde._probe import probe
from sgdsde.kernel import KernelPlan, gram
from tests.catalogue import CASES, kernel_by_backward

SLOW_PATH = [name for name, case in CASES.items() if not case.vectorizes]


OUTPUTS = ("full", "trace", "per_class")


def reduced(kernel: torch.Tensor, c: int, outputs: str) -> torch.Tensor:
    """The entries of a full kernel [n1 c, n2 c] that ``outputs`` names, by their definition."""
    four = kernel.view(len(kernel) // c, c, -1, c)
    by_class = torch.stack([four[:, a, :, a] for a in range(c)])
    return {"full": kernel, "trace": by_class.sum(0), "per_class": by_class}[outputs]


def relative_error(kernel: torch.Tensor, expected: torch.Tensor) -> float:
    return float((kernel - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_kernel_equals_one_backward_pass_per_output(name):
    case = CASES[name]
    model, x1, x2 = case.model(), case.inputs(3), case.inputs(2, seed=2)
    expected = kernel_by_backward(model, x1)
    assert expected.abs().max() > 1e-6
    assert relative_error(sgdsde.empirical_ntk(model, x1), expected) < 1e-9
    assert relative_error(sgdsde.empirical_ntk(model, x2, x1), kernel_by_backward(model, x2, x1)) < 1e-9


@pytest.mark.parametrize(
    "name", ["linear", "conv2d", "transformer encoder", "lstm", "batch norm 2d", "embedding", "tied weights"]
)
def test_float32_models_give_float64_kernels_of_their_float32_jacobians(name):
    case = CASES[name]
    model, x = case.model(torch.float32), case.inputs(dtype=torch.float32)
    kernel = sgdsde.empirical_ntk(model, x)
    assert kernel.dtype == torch.float64
    assert relative_error(kernel, kernel_by_backward(model, x)) < 3e-6
    assert torch.equal(kernel, kernel.mT)
    assert sgdsde.empirical_ntk(model, x, dtype=torch.float32).dtype == torch.float32


def test_products_of_float32_jacobians_are_rounded_in_float64():
    # Entries of 1 and 1e-5: a float32 product would lose the small squares beside the large one.
    model = nn.Linear(2, 1, bias=False)
    x = torch.tensor([[1.0, 1e-5], [-1.0, 1e-5]])
    kernel = sgdsde.empirical_ntk(model, x)
    expected = x.double() @ x.double().mT
    torch.testing.assert_close(kernel.sum(0), expected.sum(0), rtol=1e-12, atol=0)
    assert not torch.allclose((x @ x.mT).double().sum(0), expected.sum(0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", SLOW_PATH)
def test_what_cannot_be_vectorized_takes_the_slow_path(name):
    functional, _ = probe(as_functional(CASES[name].model()), CASES[name].inputs())
    assert not functional.vectorizes


@pytest.mark.parametrize(
    "name", ["linear", "conv2d", "multihead attention", "batch norm 1d", "tied weights", "bilinear"]
)
def test_the_usual_layers_take_the_fast_path(name):
    functional, _ = probe(as_functional(CASES[name].model()), CASES[name].inputs())
    assert functional.vectorizes


def test_where_keeps_the_named_parameters_and_the_parts_add_up():
    case = CASES["residual block"]
    model, x = case.model(), case.inputs()
    weights = sgdsde.empirical_ntk(model, x, where=lambda name: "weight" in name)
    rest = sgdsde.empirical_ntk(model, x, where=lambda name: "weight" not in name)
    expected = kernel_by_backward(model, x, where=lambda name: "weight" in name)
    assert relative_error(weights, expected) < 1e-9
    assert relative_error(weights + rest, kernel_by_backward(model, x)) < 1e-9


def test_params_replace_values_by_name_and_leave_the_model_alone():
    model, other, x = CASES["conv2d"].model(), CASES["conv2d"].model(), CASES["conv2d"].inputs()
    values = {name: 2 * value.detach() + 1 for name, value in model.named_parameters()}
    with torch.no_grad():
        for name, value in other.named_parameters():
            value.copy_(values[name])
    assert relative_error(sgdsde.empirical_ntk(model, x, params=values), kernel_by_backward(other, x)) < 1e-9
    assert not torch.allclose(kernel_by_backward(model, x), kernel_by_backward(other, x))


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("name", ["conv2d", "lstm", "transformer encoder layer", "one layer under two names"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 1), (2, 1, 2), (4, 3, 3), (5, 2, 3)], ids=str)
def test_blocks_steps_and_tiles_never_change_the_kernel(name, sizes, outputs):
    case = CASES[name]
    model, x1, x2 = case.model(), case.inputs(5), case.inputs(3, seed=4)
    functional, at_two = probe(as_functional(model), x1)
    for pair in ((x1, None), (x2, x1)):
        plan = KernelPlan.make(functional, functional.params, *pair, at_two.shape[1], outputs=outputs)
        plan = dataclasses.replace(plan, rows=sizes[0], step=sizes[1], tile=sizes[2])
        expected = reduced(kernel_by_backward(model, *pair), at_two.shape[1], outputs)
        assert relative_error(gram(functional, *pair, plan=plan), expected) < 1e-12


# ------------------------------------------------------------------------------------------------- memory

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


def live_peak(function: Callable[[], Any]) -> int:
    """Most bytes of tensors alive at once, as torch's allocator counts them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = function()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    del result
    return int(np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).max())


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


# ----------------------------------------------------------------------------------------------- refusals

X = torch.randn(3, 4, dtype=torch.float64)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"x1": X.numpy()}, TypeError, "x1 must be a torch.Tensor, got ndarray; use torch.as_tensor(...)"),
        ({"x1": X[:0]}, ValueError, "x1 must be non-empty, got shape [0, 4]"),
        ({"x1": X.float()}, TypeError, "x1 must be of the model's dtype torch.float64, got torch.float32"),
        (
            {"x1": X.to(torch.complex128)},
            TypeError,
            "x1 must be of the model's dtype torch.float64, got torch.complex128",
        ),
        ({"x1": X.to("meta")}, ValueError, "x1 must be on the model's device cpu, got meta"),
        ({"x1": X[:, :3]}, ValueError, "x1 must be a batch that the model accepts, got shape [2, 3]"),
        ({"x2": X * float("nan")}, ValueError, "x2 must be finite everywhere, got 12 NaN or infinite entries"),
        ({"x2": X[:, :3]}, ValueError, "x2 must be examples of shape [4] like x1, got [3]"),
        ({"dtype": torch.float16}, ValueError, "dtype must be torch.float64 or torch.float32, got torch.float16"),
        ({"memory": 0}, ValueError, "memory must be at least 1, got 0; give a number of bytes"),
        ({"memory": 0.5}, ValueError, "memory must be a whole number, got 0.5"),
        (
            {"where": lambda name: False},
            ValueError,
            "where must be a predicate that keeps at least one parameter, got none",
        ),
        ({"params": {"0.gain": X}}, ValueError, "got unknown '0.gain'"),
        ({"params": {"0.bias": X}}, ValueError, "params['0.bias'] must be of shape [3], got [3, 4]"),
        ({"params": {"0.bias": torch.ones(3)}}, ValueError, "params['0.bias'] must be of torch.float64 on cpu"),
    ],
)
def test_bad_arguments_are_refused_by_name(words, error, message):
    model = CASES["linear"].model()
    with pytest.raises(error, match=re.escape(message)):
        sgdsde.empirical_ntk(model, **({"x1": X} | words))


# ----------------------------------------------------------------------------------------------- explained


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


def test_each_layer_takes_the_cheaper_way():
    # One pixel or two: inputs and gradients. 256 pixels and four channels: the Jacobian has fewer numbers.
    for size, way in ((1, "gram"), (16, "jacobian")):
        model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * size**2, 3))
        plan = sgdsde.empirical_ntk(model, torch.randn(6, 4, size, size), explain=True)
        assert [layer.way for layer in plan.layers] == [way, "gram"]
