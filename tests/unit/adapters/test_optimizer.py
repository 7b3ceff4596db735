"""How a torch script trains: rates as a real loop sees them, words, samplings; and what is refused."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from sgdsde import SGD, Problem, run_ensemble
from sgdsde.sampling import batch_indices
from tests.torch_scripts import SCHEDULERS, N, Stream, data, loader, made, model, optimizer


def rates_of_a_loop(steps: int, make, stride: int = 1) -> list[float]:
    opt = optimizer()
    scheduler, rates = make(opt), []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The epoch parameter")
        for k in range(steps):
            rates.append(float(opt.param_groups[0]["lr"]))
            opt.step()
            if (k + 1) % stride == 0:
                scheduler.step()
    return rates


@pytest.mark.parametrize("name", SCHEDULERS)
def test_rates_are_those_that_a_loop_sees(name):
    opt = optimizer(momentum=0.9)
    scheduler = made(name, opt)
    state, lr = scheduler.__dict__.get("last_epoch"), opt.param_groups[0]["lr"]
    sgd = SGD.from_optimizer(opt, loader(), scheduler)
    expected = rates_of_a_loop(15, lambda o: made(name, o))
    assert sgd.lr_at(14) == expected[14]  # asked out of order, answered in order
    assert [sgd.lr_at(k) for k in range(15)] == expected
    assert len(set(expected)) > 1
    assert opt.param_groups[0]["lr"] == lr
    assert scheduler.__dict__.get("last_epoch") == state


def test_a_scheduler_stepped_each_epoch_holds_its_rate_for_an_epoch():
    opt = optimizer()
    scheduler = lr_scheduler.ExponentialLR(opt, 0.5)
    sgd = SGD.from_optimizer(opt, loader(), scheduler, scheduler_interval="epoch")
    expected = rates_of_a_loop(9, lambda o: lr_scheduler.ExponentialLR(o, 0.5), stride=3)
    assert [sgd.lr_at(k) for k in range(9)] == expected
    assert expected[:4] == [0.1, 0.1, 0.1, 0.05]


def test_a_scheduler_that_has_moved_goes_on_from_there():
    opt = optimizer()
    scheduler = lr_scheduler.ExponentialLR(opt, 0.5)
    opt.step()
    scheduler.step()
    assert [SGD.from_optimizer(opt, loader(), scheduler).lr_at(k) for k in range(2)] == [0.05, 0.025]


def test_no_weights_are_copied(monkeypatch):
    opt = optimizer()
    scheduler = lr_scheduler.StepLR(opt, 2)
    copied = []
    original = nn.Parameter.__deepcopy__
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", lambda self, memo: copied.append(1) or original(self, memo))
    SGD.from_optimizer(opt, loader(), scheduler).lr_at(5)
    assert copied == []


@pytest.mark.parametrize("name", ["LinearLR", "SequentialLR", "OneCycleLR"])
@pytest.mark.parametrize("words", [{}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}])
def test_ensemble_equals_the_torch_loop_with_its_scheduler(name, words):
    network, examples = model(), data()
    opt = torch.optim.SGD(network.parameters(), lr=0.1, **words)
    scheduler = made(name, opt)
    train = DataLoader(examples, batch_size=4, shuffle=True)
    problem = Problem.from_loader(network, train, loss=nn.MSELoss())
    sgd = SGD.from_optimizer(opt, train, scheduler, model=network)
    n_steps, x, y = 14, *examples.tensors
    runs = run_ensemble(problem, sgd, n_steps, 2, seed=1, record=range(n_steps + 1))

    batches = batch_indices(sgd, N, n_steps, seed=1, run=1)
    losses = []
    for k in range(n_steps + 1):
        losses.append(nn.functional.mse_loss(network(x), y).item())
        if k < n_steps:
            rows = batches[k][batches[k] >= 0]
            opt.zero_grad()
            nn.functional.mse_loss(network(x[rows]), y[rows]).backward()
            opt.step()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The epoch parameter")
                scheduler.step()
    assert np.abs(runs.train_loss.samples[1].numpy() / np.array(losses) - 1).max() < 1e-10
    constant = run_ensemble(problem, SGD(0.1, 4, sampling="shuffled", **words), n_steps, 2, seed=1)
    assert abs(float(constant.train_loss.samples[1, -1]) / losses[-1] - 1) > 1e-3


def test_every_word_is_read():
    words = {"momentum": 0.8, "dampening": 0.1, "weight_decay": 0.02, "nesterov": False}
    assert SGD.from_optimizer(optimizer(**words), loader()) == SGD(0.1, 4, sampling="shuffled", **words)
    assert SGD.from_optimizer(optimizer(momentum=0.5, nesterov=True, foreach=True), loader()).nesterov
    groups = [{"params": [p]} for p in model().parameters()]
    assert SGD.from_optimizer(torch.optim.SGD(groups, lr=0.3), loader()).lr == 0.3
    assert SGD.from_optimizer(optimizer(lr=torch.tensor(0.25)), loader()).lr == 0.25


def test_sampling_is_read():
    def read(batch_size=4, **words):
        sgd = SGD.from_optimizer(optimizer(), loader(batch_size, **words))
        plan = sgd.plan(N, 6)
        return sgd.sampling, plan.batch_size.tolist()

    replacing = RandomSampler(data(), replacement=True)
    assert read(shuffle=True) == ("shuffled", [4, 4, 2] * 2)
    assert read(shuffle=True, drop_last=True) == ("shuffled", [4] * 6)
    assert read(sampler=replacing) == ("with_replacement", [4, 4, 2] * 2)
    assert read(sampler=replacing, drop_last=True) == ("with_replacement", [4] * 6)
    assert read(5, sampler=replacing) == ("with_replacement", [5] * 6)
    assert read(1, batch_sampler=BatchSampler(replacing, 3, True)) == ("with_replacement", [3] * 6)
    assert read(N, shuffle=False) == ("without_replacement", [N] * 6)
    assert read(64, shuffle=True) == ("shuffled", [N] * 6)
    long = RandomSampler(data(), replacement=True, num_samples=9)
    assert read(sampler=long)[1] == [4, 4, 1] * 2 == [len(b[0]) for _ in range(2) for b in loader(4, sampler=long)]


class Evens(BatchSampler):
    pass


class Backwards(RandomSampler):
    pass


WEIGHTED = WeightedRandomSampler([1.0] * N, N)
FEWER = RandomSampler(data(), num_samples=7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: loader(shuffle=False),
            "must be a RandomSampler, with or without replacement, got SequentialSampler; use",
        ),
        (
            lambda: loader(sampler=WEIGHTED),
            "got WeightedRandomSampler; use DataLoader(dataset, batch_size, shuffle=True)",
        ),
        (
            lambda: loader(sampler=SubsetRandomSampler(range(5))),
            "got SubsetRandomSampler; use shuffle=True on torch.utils",
        ),
        (
            lambda: loader(sampler=DistributedSampler(data(), 2, 0)),
            "got DistributedSampler; use shuffle=True in one process",
        ),
        (
            lambda: loader(sampler=Backwards(data())),
            "got Backwards; use DataLoader(dataset, batch_size, shuffle=True) or",
        ),
        (lambda: loader(1, batch_sampler=Evens(FEWER, 2, False)), "got the custom batch sampler Evens"),
        (lambda: loader(sampler=FEWER), "got RandomSampler(num_samples=7) on 10 examples; omit num_samples"),
        (lambda: loader(None, shuffle=False), "loader.batch_size must be a whole number, got batch_size=None"),
        (lambda: loader(11, shuffle=True, drop_last=True), "loader must be one that yields batches, got batch_size=11"),
        (lambda: DataLoader(Stream(), batch_size=2), "with a length and an index, got the IterableDataset Stream"),
    ],
)
def test_a_loader_without_counterpart_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SGD.from_optimizer(optimizer(), make())


def stepped(**words) -> torch.optim.SGD:
    opt = optimizer(**words)
    for parameter in opt.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    opt.step()
    return opt


def two_groups(**second) -> torch.optim.SGD:
    first, *rest = model().parameters()
    return torch.optim.SGD([{"params": [first]}, {"params": rest} | second], lr=0.1)


def hooked() -> torch.optim.SGD:
    opt = optimizer()
    opt.register_step_pre_hook(lambda *_: None)
    return opt


class Slower(torch.optim.SGD):
    pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.optim.Adam(model().parameters()), "optimizer must be a torch.optim.SGD, got Adam; only SGD"),
        (lambda: Slower(model().parameters(), lr=0.1), "optimizer must be a torch.optim.SGD, got Slower"),
        (lambda: optimizer(maximize=True), "optimizer must be one that minimizes, got maximize=True"),
        (lambda: stepped(momentum=0.9), "must be one that has not stepped, got 4 momentum buffers of earlier steps"),
        (lambda: two_groups(lr=0.2), "of one lr in all parameter groups, got lr=0.1 in group 0 and lr=0.2 in group 1"),
        (lambda: two_groups(weight_decay=0.5), "of one weight_decay in all parameter groups, got weight_decay=0 in"),
        (hooked, "optimizer must be without step hooks, got 1 of them"),
    ],
)
def test_an_optimizer_without_counterpart_is_refused_by_name(make, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        SGD.from_optimizer(make(), loader())


def test_a_plain_optimizer_that_has_stepped_is_no_different():
    assert SGD.from_optimizer(stepped(), loader()).lr == 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lr_scheduler.ReduceLROnPlateau, "a function of the step alone, got ReduceLROnPlateau, which reads measured"),
        (
            lambda o: lr_scheduler.OneCycleLR(o, 0.3, total_steps=9),
            "got OneCycleLR(cycle_momentum=True); use OneCycleLR(",
        ),
        (
            lambda o: lr_scheduler.StepLR(optimizer(), 3),
            "scheduler must be that of this optimizer, got StepLR of another",
        ),
        (lambda o: 0.1, "scheduler must be a torch.optim.lr_scheduler.LRScheduler or None, got float"),
    ],
)
def test_a_scheduler_without_counterpart_is_refused_by_name(make, message):
    opt = optimizer(momentum=0.9)
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        SGD.from_optimizer(opt, loader(), make(opt))


def test_a_scheduler_that_moves_something_else_is_refused_when_it_does():
    class Decays(lr_scheduler.LRScheduler):
        def get_lr(self):
            self.optimizer.param_groups[0]["weight_decay"] = 0.1 * self.last_epoch
            return [0.1]

    opt = optimizer()
    sgd = SGD.from_optimizer(opt, loader(), Decays(opt))
    with pytest.raises(ValueError, match=re.escape("got Decays, which moves weight_decay from 0 to 0.1")):
        sgd.lr_at(1)


def test_parameter_groups_that_part_later_are_refused_then():
    opt = two_groups()
    sgd = SGD.from_optimizer(opt, loader(), lr_scheduler.LambdaLR(opt, [lambda k: 1.0, lambda k: 1 / (1 + k)]))
    assert sgd.lr_at(0) == 0.1
    with pytest.raises(ValueError, match=re.escape("lr=0.1 in group 0 and lr=0.05 in group 1")):
        sgd.lr_at(1)


def test_a_rate_of_zero_at_the_end_of_an_annealing_is_kept():
    opt = optimizer()
    sgd = SGD.from_optimizer(opt, loader(), lr_scheduler.CosineAnnealingLR(opt, 5))
    assert sgd.plan(N, 6).lr[-1] == 0.0


def test_a_forgotten_scheduler_is_noticed():
    opt = optimizer()
    lr_scheduler.StepLR(opt, 3)
    with pytest.warns(UserWarning, match=r"scheduler=None: lr=0.1 is taken as constant"):
        SGD.from_optimizer(opt, loader())
    with pytest.raises(ValueError, match="scheduler_interval must be one of 'step', 'epoch', got 'batch'"):
        SGD.from_optimizer(opt, loader(), scheduler_interval="batch")


def test_the_optimizer_must_hold_what_the_model_trains():
    network = model()
    network[0].requires_grad_(False)
    partial = torch.optim.SGD(network[2].parameters(), lr=0.1)
    assert SGD.from_optimizer(partial, loader(), model=network).lr == 0.1
    assert SGD.from_optimizer(torch.optim.SGD(network.parameters(), lr=0.1), loader(), model=network).lr == 0.1
    network[0].requires_grad_(True)
    with pytest.raises(ValueError, match=re.escape("got one without '0.weight', '0.bias'; give them")):
        SGD.from_optimizer(partial, loader(), model=network)
    everything = torch.optim.SGD([*network.parameters(), nn.Parameter(torch.ones(2))], lr=0.1)
    with pytest.raises(ValueError, match="got 1 parameters that are not the model's"):
        SGD.from_optimizer(everything, loader(), model=network)
