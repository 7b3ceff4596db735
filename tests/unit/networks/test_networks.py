"""Networks: formulas against explicit loops, the two parametrizations, randomness, dtype and torch.func."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.func import functional_call, jacrev, vmap

from sgdsde import networks
from sgdsde.networks import MLP

F64 = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 3, channels: int = 2, size: int = 4, seed: int = 5) -> torch.Tensor:
    return torch.randn(n, channels, size, size, dtype=F64, generator=generator(seed))


def build(kind: str, **words) -> nn.Module:
    """One small network of each kind, all of them for images of 2 channels and size 4."""
    settings = {
        "sigma_w": 1.3,
        "sigma_b": 0.4,
        "activation": "tanh",
        "depth": 3,
        "dtype": F64,
        "generator": generator(),
    }
    settings |= words
    if kind in ("MLP", "ResNet"):
        return getattr(networks, kind)(32, 6, 2, **settings)
    return getattr(networks, kind)(2, 4, 6, 2, **settings)


KINDS = ["MLP", "ResNet", "CNN", "ConvResNet"]
SETTINGS = [(kind, {}) for kind in KINDS]
SETTINGS += [(kind, {"readout": "pool"}) for kind in KINDS[2:]]
SETTINGS += [(kind, {"scaling": scaling}) for kind in ("ResNet", "ConvResNet") for scaling in ("decreasing", "stable")]
cases = pytest.mark.parametrize(("kind", "words"), SETTINGS)


# ---- the two parametrizations


@cases
def test_both_parametrizations_are_the_same_function_from_one_generator(kind, words):
    ntk = build(kind, **words)
    standard = build(kind, parametrization="standard", **words)
    assert torch.allclose(ntk(images()), standard(images()), rtol=1e-12, atol=1e-12)
    for a, b in zip(ntk.modules(), standard.modules()):
        if hasattr(a, "weight_multiplier"):
            assert b.weight_multiplier == b.bias_multiplier == 1.0
            assert torch.allclose(a.weight_multiplier * a.weight, b.weight, rtol=1e-12)
            assert torch.allclose(a.bias_multiplier * a.bias, b.bias, rtol=1e-12)


@cases
def test_gradients_of_the_parametrizations_differ_by_the_multipliers(kind, words):
    ntk = build(kind, **words)
    standard = build(kind, parametrization="standard", **words)
    for network in (ntk, standard):
        (network(images()) ** 2).sum().backward()
    for a, b in zip(ntk.modules(), standard.modules()):
        if hasattr(a, "weight_multiplier"):
            assert a.weight_multiplier != pytest.approx(1.0)
            assert torch.allclose(a.weight.grad, a.weight_multiplier * b.weight.grad, rtol=1e-9, atol=1e-12)
            assert torch.allclose(a.bias.grad, a.bias_multiplier * b.bias.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("parametrization", ["ntk", "standard"])
@pytest.mark.parametrize("kind", KINDS)
def test_without_sigma_b_there_are_no_biases(kind, parametrization):
    network = build(kind, sigma_b=0.0, parametrization=parametrization)
    assert not [name for name, _ in network.named_parameters() if "bias" in name]
    assert torch.equal(network(torch.zeros(1, 2, 4, 4, dtype=F64)), torch.zeros(1, 2, dtype=F64))  # tanh(0) = 0


def test_the_scale_of_the_readout_scales_the_tangent_kernel():
    """For depth 1 and ReLU, f is homogeneous of degree 2 in sigma_w, so the tangent kernel grows as its 4th power."""

    def tangent_kernel(sigma_w: float) -> torch.Tensor:
        network = MLP(3, 8, 1, sigma_w=sigma_w, dtype=F64, generator=generator())
        x = torch.randn(4, 3, dtype=F64, generator=generator(1))
        rows = jacrev(lambda p: functional_call(network, p, (x,)))(dict(network.named_parameters()))
        J = torch.cat([row.flatten(1).reshape(4, -1) for row in rows.values()], 1)
        return J @ J.T

    assert torch.allclose(tangent_kernel(2.0), 16 * tangent_kernel(1.0), rtol=1e-12)


# ---- the formulas, by loops


@pytest.mark.parametrize("scaling", ["none", "decreasing", "stable"])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_resnet_equals_its_formula(scaling, depth):
    width, sigma_w, sigma_b = 6, 1.3, 0.4
    network = build("ResNet", depth=depth, scaling=scaling)
    x = images()
    p = {name: value.detach().numpy() for name, value in network.named_parameters()}
    for i in range(len(x)):
        y = sigma_w / math.sqrt(32) * p["first.weight"] @ x[i].flatten().numpy() + sigma_b * p["first.bias"]
        for l in range(2, depth + 1):  # noqa: E741
            s = {"none": 1.0, "decreasing": l**-0.5, "stable": depth**-0.5}[scaling]
            W, b = p[f"blocks.{l - 2}.weight"], p[f"blocks.{l - 2}.bias"]
            y = y + s * (sigma_w / math.sqrt(width) * W @ np.tanh(y) + sigma_b * b)
        f = sigma_w / math.sqrt(width) * p["read_out.weight"] @ np.tanh(y) + sigma_b * p["read_out.bias"]
        np.testing.assert_allclose(network(x)[i].detach().numpy(), f, rtol=1e-12)


def test_mlp_equals_its_formula():
    network = build("MLP", depth=2)
    x = images()
    p = {name: value.detach() for name, value in network.named_parameters()}
    y = 1.3 / math.sqrt(32) * x.flatten(1) @ p["hidden.0.weight"].T + 0.4 * p["hidden.0.bias"]
    y = 1.3 / math.sqrt(6) * torch.tanh(y) @ p["hidden.1.weight"].T + 0.4 * p["hidden.1.bias"]
    f = 1.3 / math.sqrt(6) * torch.tanh(y) @ p["read_out.weight"].T + 0.4 * p["read_out.bias"]
    assert torch.allclose(network(x), f, rtol=1e-12)


def convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """One image [channels, s, s]: every output pixel as a sum over its patch, outside pixels being zero."""
    out, channels, k, _ = weight.shape
    size, half = x.shape[-1], k // 2
    y = np.zeros((out, size, size))
    for row in range(size):
        for column in range(size):
            for i in range(k):
                for j in range(k):
                    r, c = row + i - half, column + j - half
                    if 0 <= r < size and 0 <= c < size:
                        y[:, row, column] += weight[:, :, i, j] @ x[:, r, c]
    return 1.3 / math.sqrt(channels * k**2) * y + 0.4 * bias[:, None, None]


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("readout", ["flatten", "pool"])
@pytest.mark.parametrize("kind", ["CNN", "ConvResNet"])
def test_convolutional_networks_equal_their_formula(kind, readout, kernel_size):
    words = {"scaling": "stable"} if kind == "ConvResNet" else {}
    network = build(kind, depth=2, readout=readout, kernel_size=kernel_size, **words)
    x = images(2)
    p = {name: value.detach().numpy() for name, value in network.named_parameters()}
    first, second = ("hidden.0", "hidden.1") if kind == "CNN" else ("first", "blocks.0")
    for i in range(len(x)):
        y = convolve(x[i].numpy(), p[f"{first}.weight"], p[f"{first}.bias"])
        step = convolve(np.tanh(y), p[f"{second}.weight"], p[f"{second}.bias"])
        y = step if kind == "CNN" else y + step / math.sqrt(2)
        seen = np.tanh(y).reshape(-1) if readout == "flatten" else np.tanh(y).mean((1, 2))
        f = 1.3 / math.sqrt(len(seen)) * p["read_out.weight"] @ seen + 0.4 * p["read_out.bias"]
        np.testing.assert_allclose(network(x)[i].detach().numpy(), f, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("relu", nn.ReLU()),
        ("leaky_relu", nn.LeakyReLU()),
        ("tanh", nn.Tanh()),
        ("gelu", nn.GELU()),
        ("silu", nn.SiLU()),
        ("elu", nn.ELU()),
        ("softplus", nn.Softplus()),
        ("sigmoid", nn.Sigmoid()),
    ],
)
def test_a_named_activation_is_the_torch_layer_of_that_name(name, layer):
    x = torch.linspace(-30, 30, 401, dtype=F64)
    assert torch.equal(networks.ACTIVATIONS[name](x), layer(x))
    assert torch.equal(build("ResNet", activation=name)(images()), build("ResNet", activation=layer)(images()))


def test_activations_without_a_torch_layer():
    x = torch.linspace(-3, 3, 101, dtype=F64)
    assert torch.equal(networks.ACTIVATIONS["erf"](x), torch.erf(x))
    assert torch.equal(networks.ACTIVATIONS["sin"](x), torch.sin(x))
    exact_gelu = x * torch.as_tensor(stats.norm.cdf(x.numpy()))
    assert torch.allclose(networks.ACTIVATIONS["gelu"](x), exact_gelu, rtol=1e-12)
    assert len(networks.ACTIVATIONS) == 10


# ---- randomness, dtype, torch.func


@cases
def test_a_generator_decides_every_entry_and_the_default_generator_is_untouched(kind, words):
    state = torch.get_rng_state()
    a, b, other = build(kind, **words), build(kind, **words), build(kind, generator=generator(1), **words)
    assert torch.equal(state, torch.get_rng_state())
    for name, value in a.named_parameters():
        assert torch.equal(value, b.get_parameter(name))
        assert not torch.equal(value, other.get_parameter(name))


def test_without_a_generator_torch_manual_seed_decides():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first = MLP(3, 4, 1)
        torch.manual_seed(3)
        second = MLP(3, 4, 1)
        third = MLP(3, 4, 1)
    assert torch.equal(first.hidden[0].weight, second.hidden[0].weight)
    assert not torch.equal(first.hidden[0].weight, third.hidden[0].weight)


@pytest.mark.parametrize("kind", KINDS)
def test_one_seed_is_one_function_in_every_dtype(kind):
    double, single = build(kind), build(kind, dtype=torch.float32)
    assert {p.dtype for p in single.parameters()} == {torch.float32}
    assert torch.equal(double.read_out.weight.float(), single.read_out.weight)
    assert torch.allclose(double(images()).float(), single(images().float()), rtol=1e-4, atol=1e-5)
    assert MLP(2, 3, 1).read_out.weight.dtype == torch.get_default_dtype()


@pytest.mark.gpu
def test_one_seed_is_one_function_on_every_device():
    here, there = build("CNN"), build("CNN", device="cuda")
    assert torch.allclose(here(images()), there(images().cuda()).cpu(), rtol=1e-10)


@cases
def test_vmap_over_parameters_equals_a_loop(kind, words):
    models = [build(kind, generator=generator(seed), **words) for seed in range(3)]
    stacked = {k: torch.stack([m.get_parameter(k) for m in models]) for k, _ in models[0].named_parameters()}
    x = images()
    together = vmap(lambda p: functional_call(models[0], p, (x,)))(stacked)
    for model, outputs in zip(models, together):
        assert torch.allclose(model(x), outputs, rtol=1e-11, atol=1e-13)


@cases
def test_jacobian_by_vmap_equals_one_backward_pass_per_output(kind, words):
    model = build(kind, **words)
    params = dict(model.named_parameters())

    def one(p, x):
        return functional_call(model, p, (x[None],))[0]

    rows = vmap(jacrev(one), in_dims=(None, 0))(params, images())
    for i in range(3):
        for output in range(2):
            value = model(images())[i, output]
            for name, gradient in zip(params, torch.autograd.grad(value, list(params.values()))):
                assert torch.allclose(rows[name][i, output], gradient, rtol=1e-9, atol=1e-12)


def test_one_backward_pass_reaches_every_parameter_and_copies_are_independent():
    for kind in KINDS:
        model = build(kind)
        twin = copy.deepcopy(model)
        model(images()).sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
        assert all(p.grad is None for p in twin.parameters())
        twin.load_state_dict(model.state_dict())
        assert torch.equal(twin(images()), model(images()))


def test_a_module_activation_is_registered_once_and_its_parameters_train():
    model = build("MLP", activation=nn.PReLU(dtype=F64))
    names = list(model.state_dict())
    assert [name for name in names if "activation" in name] == ["activation.weight"]
    model(images()).sum().backward()
    assert model.activation.weight.grad is not None
