"""
Your own training script
========================

You have a model, an optimizer and a loader. What will training do to the loss, and how far can the answer be trusted?
Nothing below changes the three, and nothing is trained before the last step.
"""

# %%
# A training script, as it is
# ---------------------------
# The part that you have already. Here the model is a small one on 8 x 8 images of digits; the labels are +1 and -1.
import torch
from torch.utils.data import DataLoader, TensorDataset

import sgdsde

digits = sgdsde.datasets.digits(n_train=64, n_test=32)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Tanh(), torch.nn.Linear(128, 1))
loader = DataLoader(TensorDataset(digits.x_train, digits.y_train), batch_size=16, shuffle=True)
test_loader = DataLoader(TensorDataset(digits.x_test, digits.y_test), batch_size=32)
optimizer = torch.optim.SGD(model.parameters(), lr=0.03)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)

# %%
# The same for sgdsde
# -------------------
# A :class:`sgdsde.Problem` copies the model and never changes yours. The optimizer, the loader and the scheduler say
# how it is trained: learning rate, batch size, momentum, decay, and that batches are those of reshuffled epochs. What
# cannot be represented is refused by name.
problem = sgdsde.Problem.from_loader(model, loader, test_loader, loss=torch.nn.MSELoss())
sgd = sgdsde.SGD.from_optimizer(optimizer, loader, scheduler)
print(sgd)

# %%
# The predicted loss
# ------------------
# The model is linearized at its initial weights; the kernel of that linearization says how the loss falls on average,
# and the noise of the minibatches what that average is raised by. Should the kernel move too far for that, a warning
# says so. It is shown here, not hidden.
import warnings

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    predicted = sgdsde.predict(problem, sgd, n_steps=40)
for warning in caught:
    print(f"{warning.category.__name__}: {warning.message}")
predicted.plot()

# %%
# Should it move, follow it: :class:`sgdsde.dynamics.MovingKernel` refreshes the kernel along the path of the network.
following = sgdsde.predict(problem, sgd, n_steps=40, dynamics=sgdsde.dynamics.MovingKernel())

# %%
# Predicted against measured
# --------------------------
# ``run_ensemble`` trains the network many times at once, on batches that your loader could have drawn. Eight runs are
# few; their standard error is in the table.
measured = sgdsde.run_ensemble(problem, sgd, n_steps=40, n_runs=8, seed=0)
frozen, moving = sgdsde.compare(predicted, measured), sgdsde.compare(following, measured)
print(moving)
moving.plot()

# %%
# How much of the error was the frozen kernel? The largest relative error of the training loss, both ways:
print(f"frozen kernel: {frozen.train.max_relative_error:.1%}, moving kernel: {moving.train.max_relative_error:.1%}")

# %%
# ``sgdsde.diagnose(problem, sgd, n_steps)`` gives such advice for the cost of a few runs, and
# ``sgdsde.error_budget`` says afterwards where the rest of the gap comes from.
