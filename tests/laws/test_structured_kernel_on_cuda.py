"""The kernel on a CUDA device: the same numbers, to the rounding of the arithmetic asked for, and no waiting."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import sgdsde
from sgdsde._functional import as_functional
from sgdsde.kernel import KernelPlan, gram
from tests.catalogue import CASES, kernel_by_backward

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:.*tf32:UserWarning"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
NAMES = ["linear", "conv2d", "residual block", "transformer encoder layer", "embedding", "tied weights", "weight norm"]


@pytest.fixture
def tf32(request):
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = request.param
    yield request.param
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("tf32", [False, True], indirect=True, ids=["float32", "tf32"])
@pytest.mark.parametrize("name", NAMES)
def test_float32_and_tf32_agree_with_float64_to_their_rounding(name, tf32):
    case = CASES[name]
    expected = kernel_by_backward(case.model(), case.inputs())
    inputs = case.inputs(dtype=torch.float32).cuda()
    kernel = sgdsde.empirical_ntk(case.model(torch.float32).cuda(), inputs, dtype=torch.float32)
    assert kernel.is_cuda
    error = (kernel.double().cpu() - expected).abs().max() / expected.abs().max()
    assert error < (2e-2 if tf32 else 2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_float64_agrees_with_the_cpu(name):
    case = CASES[name]
    expected = kernel_by_backward(case.model(), case.inputs())
    kernel = sgdsde.empirical_ntk(case.model().cuda(), case.inputs().cuda())
    assert (kernel.cpu() - expected).abs().max() < 1e-9 * expected.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_waits_for_the_device_while_tiles_are_made(name):
    model, x = CASES[name].model().cuda(), CASES[name].inputs(5).cuda()
    functional = as_functional(model)
    n_outputs = functional.forward(functional.params, x[:1]).shape[1]
    plan = KernelPlan.make(functional, functional.params, x, None, n_outputs)
    plan = dataclasses.replace(plan, rows=3, step=2, tile=2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        gram(functional, x, None, plan=plan)
    finally:
        torch.cuda.set_sync_debug_mode("default")
