"""The initializer on the edge of chaos and the report of what propagates: statistics with a stated error, messages."""

import pytest
import torch
from torch import nn

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
