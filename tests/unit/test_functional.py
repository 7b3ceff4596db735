"""Models that are no deterministic function of one example are refused, by the name of the layer."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.utils import checkpoint

import sgdsde
from sgdsde._functional import as_functional
from sgdsde._probe import probe
from tests.architectures import Cube, Wrapped
from tests.catalogue import kernel_by_backward

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def then(forward, **layers) -> nn.Module:
    """A dense layer followed by a function."""
    return Wrapped(lambda m, x: forward(m, m.dense(x)), dense=nn.Linear(4, 4), **layers)


class Counting(nn.Module):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.dense, self.in_place = nn.Linear(4, 2), in_place
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        if self.in_place:
            self.count += 1
        else:
            self.count = self.count + 1
        return self.dense(x)


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Scaling(nn.Module):
    def forward(self, x):
        return x * x.abs().max().item()


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


def flat(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), layer)


LSTM_WITH_NOISE = Wrapped(
    lambda m, x: m.lstm(x[:, None])[0][:, 0] + torch.randn(len(x), 4), lstm=nn.LSTM(4, 4, batch_first=True)
)
OWN_BACKWARD_WITH_NOISE = then(lambda m, x: Cube.apply(x) + torch.randn(len(x), 4))
LSTM_IN_TRAIN_MODE = Wrapped(lambda m, x: m.lstm(x[:, None])[0][:, 0], lstm=nn.LSTM(4, 4, 2, dropout=0.3))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (flat(nn.BatchNorm1d(4)), "layer '1' (BatchNorm1d) must be in eval mode, got train mode with batch statistics"),
        (flat(nn.BatchNorm1d(4)), "call model.eval() first, or replace the layer"),
        (flat(nn.BatchNorm1d(4, track_running_stats=False)).eval(), "LayerNorm or GroupNorm"),
        (flat(nn.Dropout(0.1)), "layer '1' (Dropout) must be deterministic, got random in train mode"),
        (flat(nn.AlphaDropout(0.1)), "layer '1' (AlphaDropout)"),
        (flat(nn.RReLU()), "layer '1' (RReLU) must be deterministic"),
        (LSTM_IN_TRAIN_MODE, "layer 'lstm' (LSTM) must be deterministic"),
        (nn.TransformerEncoderLayer(4, 2, dim_feedforward=3), "(MultiheadAttention) must be deterministic"),
        (
            nn.LazyLinear(3),
            "model (LazyLinear) must be initialized, got a lazy layer; run the model once on an example",
        ),
        (flat(parametrizations.spectral_norm(nn.Linear(4, 2))), "must be constant, got changed by a forward pass"),
        (flat(Counting(in_place=True)), "buffer '1.count' must be constant, got changed by a forward pass"),
        (flat(Counting(in_place=False)), "buffer '1.count' must be constant, got changed by a forward pass"),
        (flat(Noisy()), "got layer '1' (Noisy), which draws random numbers"),
        (then(lambda m, x: F.dropout(x, 0.5)), "which draws random numbers"),
        (LSTM_WITH_NOISE, "model must be deterministic, got Wrapped, which draws random numbers"),
        (OWN_BACKWARD_WITH_NOISE, "model must be deterministic, got two different outputs for the same input"),
        (flat(Branching()), "free of control flow that depends on data, got layer '1' (Branching)"),
        (flat(Branching()), "replace the branch by torch.where"),
        (flat(Scaling()), "free of control flow that depends on data, got layer '1' (Scaling)"),
        (then(lambda m, x: x - x.mean(0)), "a function of one example at a time, got an output that changes with the"),
        (then(lambda m, x: x.cumsum(0)), "replace batch statistics by LayerNorm or GroupNorm"),
        (then(lambda m, x: F.normalize(x, dim=0)), "a function of one example at a time"),
        (then(lambda m, x: x.detach()), "model must be differentiable in its parameters"),
        (
            then(lambda m, x: checkpoint.checkpoint(m.last, x, use_reentrant=False), last=nn.Linear(4, 2)),
            "got activation checkpoints, whose second forward pass cannot be followed; remove torch.utils.",
        ),
        (nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2)), "a function that leaves its input as it is"),
        (then(lambda m, x: x[:, 0]), "model output must be [2, c] for 2 examples, got [2]; end the model with"),
        (then(lambda m, x: x[:, :, None]), "got [2, 4, 1]"),
        (then(lambda m, x: x[:1]), "got [1, 4]"),
        (then(lambda m, x: x[:, :0]), "got [2, 0]"),
        (then(lambda m, x: x / 0), "model output must be finite everywhere"),
        (
            nn.Sequential(nn.ReLU(), nn.Flatten()),
            "model must be a model with at least one trainable parameter, got none",
        ),
        (nn.Linear(4, 2).requires_grad_(False), "set requires_grad=True on the parameters that SGD trains"),
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2).double()), "model must be of one dtype, got torch.float32 and"),
        (
            nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2, device="meta")),
            "model must be on one device, got cpu and meta",
        ),
    ],
)
def test_unfit_models_are_refused(model, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sgdsde.Problem(model, X, torch.zeros(5, 2), loss=nn.MSELoss())
    with pytest.raises(ValueError, match=re.escape(message)):
        sgdsde.empirical_ntk(model, X)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (then(lambda m, x: (x, x)), "model output must be one tensor [n, c], got tuple"),
        (then(lambda m, x: x.to(torch.complex64)), "model output must be real and floating-point, got torch.complex64"),
        (nn.Linear(4, 2, dtype=torch.complex64), "parameter 'weight' must be a real floating-point tensor"),
        ("resnet18", "model must be an nn.Module or a pair (f, params), got str"),
        (nn.Linear, "model must be an nn.Module or a pair (f, params), got the class Linear; create an"),
        (lambda x: x, "pass the module, or (f, params) with f(params, x)"),
        ((lambda p, x: x @ p["w"], {"w": [1.0, 2.0]}), "a flat dict of tensors by name, got list for 'w'"),
        (
            (lambda p, x: x @ p["w"], {"w": torch.ones(4, 2).int()}),
            "parameter 'w' must be a real floating-point tensor",
        ),
    ],
)
def test_what_is_no_real_model_is_refused(model, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        sgdsde.Problem(model, X, torch.zeros(5, 2), loss=nn.MSELoss())


def test_parameters_that_are_not_finite_are_refused_by_name():
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.bias[1] = torch.nan
    with pytest.raises(ValueError, match=r"parameter 'bias' must be finite everywhere, got 1 NaN .* index \[1\]"):
        sgdsde.empirical_ntk(model, X)


def test_coupling_is_seen_when_the_first_examples_are_equal():
    centered = then(lambda m, x: x - x.mean(0))
    x = torch.cat([X[:1], X[:1], X])
    with pytest.raises(ValueError, match="a function of one example at a time"):
        probe(as_functional(centered), x)


def test_a_branch_on_a_weight_takes_the_slow_path():
    def forward(m, x):
        return x if m.dense.weight.sum() > 0 else -x

    functional, _ = probe(as_functional(then(forward)), X)
    assert not functional.vectorizes


def test_branches_on_shapes_and_settings_are_no_branches_on_data():
    functional, _ = probe(as_functional(then(lambda m, x: x if len(x) > 0 and m.training else -x)), X)
    assert functional.vectorizes


def test_randomness_that_is_switched_off_is_accepted():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0), nn.Tanh()).train()
    assert probe(as_functional(model), X)[0].vectorizes


def test_the_probe_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="deterministic"):
        probe(as_functional(LSTM_WITH_NOISE), X)
    assert torch.equal(before, torch.get_rng_state())


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.trace(nn.Linear(4, 2), X)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: scripted()])
def test_wrapped_models_are_refused(wrap):
    model = nn.Sequential(wrap(nn.Linear(4, 2)))
    message = r"model must be plain nn.Modules, got .*; pass the module that was scripted, compiled or wrapped"
    with pytest.raises(ValueError, match=message):
        sgdsde.empirical_ntk(model, X)


def test_inference_mode_is_refused_and_no_grad_is_not():
    model = nn.Linear(4, 2)
    with (
        torch.inference_mode(),
        pytest.raises(ValueError, match="inference_mode must be off where derivatives are need"),
    ):
        sgdsde.empirical_ntk(model, X)
    with torch.no_grad():
        kernel = sgdsde.empirical_ntk(model, X)
    torch.testing.assert_close(kernel, kernel_by_backward(model, X), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_tensors_that_hooks_leave_on_a_layer_are_recomputed():
    def pruned() -> nn.Module:
        layer = nn.Linear(4, 4, dtype=torch.float64)
        prune.random_unstructured(layer, "weight", amount=0.5)
        return layer

    x = X.double()
    for first in (pruned(), nn.utils.weight_norm(nn.Linear(4, 4, dtype=torch.float64))):
        model = nn.Sequential(first, nn.Tanh(), nn.Linear(4, 2, dtype=torch.float64))
        model(x)  # leaves a weight with a history behind
        torch.testing.assert_close(sgdsde.empirical_ntk(model, x), kernel_by_backward(model, x), rtol=1e-9, atol=1e-11)


def test_a_model_that_cannot_be_copied_says_what_to_do():
    model = nn.Linear(4, 2)
    model.lock = (i for i in range(3))
    with pytest.raises(ValueError, match=r"copyable by copy.deepcopy, .* pass a pair \(f, params\)"):
        sgdsde.empirical_ntk(model, X)
