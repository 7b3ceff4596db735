"""What a user writes, checked by `mypy --strict` against the installed types (make check)."""

import pathlib

import torch

import sgdsde
from sgdsde import dynamics

model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
x, y = torch.randn(32, 4), torch.randn(32, 1)
problem = sgdsde.Problem(model, x[:24], y[:24], loss=torch.nn.MSELoss(), x_test=x[24:], y_test=y[24:])
sgd: sgdsde.SGD = sgdsde.SGD(lr=0.05, batch_size=4, momentum=0.5)

predicted: sgdsde.Trajectory = sgdsde.predict(problem, sgd, n_steps=50, dynamics=dynamics.MomentRecursion())
measured = sgdsde.run_ensemble(problem, sgd, n_steps=50, n_runs=8, seed=0)
result: sgdsde.Comparison = sgdsde.compare(predicted, measured)
text: str = result.sentence
worst: float = result.train.max_relative_error
is_fine: bool = result.verdict is sgdsde.Verdict.AGREES
limit: float = sgdsde.stability.max_lr(problem, batch_size=4, momentum=0.5)

arrival: int | None = sgdsde.steps_to(measured, loss=0.5).step
needed: int = sgdsde.spread_over_runs(measured).runs_needed(0.05)
chosen: sgdsde.SGD = sgdsde.choose_lr(problem, sgd, 50).sgd
rates: dict[int, float] = sgdsde.scaling_rule(problem, sgdsde.SGD(0.05, 4), [8, 16]).lrs
advice: dynamics.Dynamics | None = sgdsde.diagnose(problem, sgd, 50).dynamics
seconds: float = sgdsde.expected_cost(problem, sgd, 50).seconds
gap: torch.Tensor = sgdsde.error_budget(problem, sgd, 50, 8).gap
kernel = sgdsde.empirical_ntk(model, x)
losses: torch.Tensor = predicted.train_loss.quantile(0.9)
predicted.save(pathlib.Path("predicted.npz"))
