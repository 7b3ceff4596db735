"""The initializer on the edge of chaos and the report of what propagates: statistics with a stated error, messages."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from sgdsde import meanfield
from sgdsde.networks import CNN, MLP, ResNet


def tanh_model(width=400, depth=5):
    layers = [nn.Linear(30, width), nn.Tanh()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(width, width)).double()


def test_a_user_model_starts_on_the_edge_and_stays_there():
    generator = torch.Generator().manual_seed(0)
    model = tanh_model()
    start = meanfield.init_edge_of_chaos_(model, 0.2, generator=generator)
    x = start.scale_inputs(torch.randn(16, 30, generator=generator, dtype=torch.float64))
    assert x.square().mean(1) == pytest.approx(start.input_mean_square, rel=1e-12)
    report = meanfield.propagate(model, x, activation="tanh", sigma_w=start.sigma_w, sigma_b=0.2)
    torch.testing.assert_close(report.predicted_q, torch.full((6,), start.q, dtype=torch.float64), rtol=1e-9, atol=0)
    # q of one layer averages 400 neurons: standard deviation sqrt(2/400) = 7 %, and less over 16 examples; 4 of them.
    assert bool(((report.measured_q / report.predicted_q - 1).abs() < 0.28).all())
    assert bool(((report.measured_c - report.predicted_c).abs() < 4 * 400**-0.5).all())
    assert "q measured" in str(report)


def test_off_the_edge_is_told_apart():
    generator = torch.Generator().manual_seed(0)
    model = tanh_model()
    meanfield.init_edge_of_chaos_(model, 0.2, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.6)
    report = meanfield.propagate(model, torch.randn(8, 30, generator=generator, dtype=torch.float64), activation="tanh")
    assert float(report.measured_q[-1]) > 1.5 * meanfield.edge_of_chaos("tanh", 0.2).q


def test_convolutions_count_their_fan_in():
    model = nn.Sequential(nn.Conv2d(8, 200, 5), nn.ReLU(), nn.Conv2d(200, 4, 3, groups=2))
    meanfield.init_edge_of_chaos_(model, 0.0, generator=torch.Generator().manual_seed(0))
    assert float(model[0].weight.detach().std()) == pytest.approx((2 / 200) ** 0.5, rel=0.02)
    assert float(model[2].weight.detach().std()) == pytest.approx((2 / 900) ** 0.5, rel=0.05)
    assert bool((model[0].bias == 0).all())


@pytest.mark.parametrize("kind", [MLP, ResNet])
def test_networks_report_themselves(kind):
    generator = torch.Generator().manual_seed(0)
    network = kind(20, 600, 600, depth=3, activation="erf", sigma_b=0.1, generator=generator, dtype=torch.float64)
    report = meanfield.propagate(network, torch.randn(10, 20, generator=generator, dtype=torch.float64))
    assert len(report.layers) == 4
    assert bool(((report.measured_q / report.predicted_q - 1).abs() < 4 * (2 / 600) ** 0.5).all())


def test_settings_of_activation_modules_count():
    model = nn.Sequential(nn.Linear(3, 3), nn.LeakyReLU(0.5), nn.Linear(3, 3))
    assert meanfield.init_edge_of_chaos_(model, 0.0).sigma_w == pytest.approx((2 / 1.25) ** 0.5)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Tanh()), "every layer with parameters.*a LayerNorm"),
        (nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.ReLU()), "one kind of activation module.*Tanh, ReLU"),
        (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), "one kind of activation module.*none"),
        (nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh()), "with a bias when sigma_b > 0"),
        (nn.Sequential(nn.Linear(3, 3), nn.Softplus()), "has no edge of chaos"),
        (CNN(1, 2, 3, 1), "take sigma_w and sigma_b themselves"),
    ],
)
def test_what_cannot_be_initialized_is_refused_and_left_alone(model, words):
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match=words):
        meanfield.init_edge_of_chaos_(model, 0.2)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_a_zero_input_cannot_be_scaled():
    start = meanfield.init_edge_of_chaos_(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), 0.2)
    with pytest.raises(ValueError, match="zeros in example 1"):
        start.scale_inputs(torch.tensor([[1.0, 0, 0], [0, 0, 0]]))


class Standardized(nn.Linear):
    """A layer whose forward uses other weights than the ones it holds."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight / self.weight.std(), self.bias)


def hooked(layer: nn.Linear) -> nn.Linear:
    layer.register_forward_pre_hook(lambda module, inputs: module.weight.data.mul_(0.5))
    return layer


def wrapped(layer: nn.Linear) -> nn.Linear:
    layer.forward = lambda x: nn.functional.linear(x, 2 * layer.weight)  # type: ignore[method-assign]
    return layer


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (nn.utils.weight_norm, "got a weight that each forward pass makes anew from weight_g, weight_v"),
        (nn.utils.spectral_norm, "makes anew from weight_orig; initialize first"),
        (lambda layer: prune.random_unstructured(layer, "weight", amount=0.5), "makes anew from weight_orig"),
        (lambda layer: prune.random_unstructured(layer, "bias", amount=0.5), "a bias that each forward pass makes"),
        (parametrizations.weight_norm, "makes anew from a parametrization"),
        (parametrizations.orthogonal, "makes anew from a parametrization"),
        (hooked, "without hooks that may change its weights, got a forward pre-hook"),
        (wrapped, "a plain nn.Linear, got a forward of its own"),
    ],
)
def test_weights_that_a_forward_pass_overwrites_are_refused_by_name(wrap, message):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), wrap(nn.Linear(8, 4)))
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match=re.escape("layer 2 (")) as caught:
        meanfield.init_edge_of_chaos_(model, 0.2)
    assert message in str(caught.value)
    assert torch.equal(model[0].weight, before), "nothing is drawn before everything is checked"


def test_a_layer_with_a_forward_of_its_own_and_shared_weights_are_refused():
    with pytest.raises(ValueError, match=r"layer 0 \(Standardized\) must be a plain nn.Linear"):
        meanfield.init_edge_of_chaos_(nn.Sequential(Standardized(4, 4), nn.Tanh()), 0.2)
    tied = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    tied[2].weight = nn.Parameter(tied[0].weight.t())
    with pytest.raises(ValueError, match="got 0 and 2 with one weight; untie them first"):
        meanfield.init_edge_of_chaos_(tied, 0.2)


def test_weight_norm_after_the_initialization_keeps_it_as_told():
    model = nn.Sequential(nn.Linear(64, 512), nn.Tanh(), nn.Linear(512, 1))
    made = meanfield.init_edge_of_chaos_(model, 0.2, generator=torch.Generator().manual_seed(0))
    parametrizations.weight_norm(model[0])
    assert float(model[0].weight.detach().std()) == pytest.approx(made.sigma_w / 8, rel=0.02)
