"""
Learning rate and batch size
============================

How large may the learning rate be, what does a larger batch allow, and which settings end lowest? All of it follows
from one linearization, before training.
"""

# %%
# One problem, linearized once
# ----------------------------
# A network wide enough that its kernel stays nearly what it is.
import matplotlib.pyplot as plt
import torch

import sgdsde
from sgdsde import stability

data = sgdsde.datasets.digits(n_train=64, n_test=32)
torch.manual_seed(0)
model = sgdsde.networks.MLP(64, 256, 1)
linearization = sgdsde.linearize(sgdsde.Problem(model, **data.tensors(), loss=torch.nn.MSELoss()))

# %%
# The largest stable learning rate
# --------------------------------
# Below the limit in mean square the expected loss falls, above it the noise feeds on itself and the loss grows. Small
# batches have a limit far below that of full-batch training, 2 over the sharpness.
batch_sizes = [1, 2, 4, 8, 16, 32, 64]
limits = [stability.max_lr(linearization, batch_size) for batch_size in batch_sizes]
full_batch, critical = stability.max_lr_full_batch(linearization), stability.critical_batch_size(linearization)

figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
axis.loglog(batch_sizes, limits, "o-", label="limit in mean square")
axis.axhline(full_batch, color="gray", linestyle="--", label="full batch")
axis.axvline(critical, color="gray", linestyle=":", label="critical batch size")
axis.set(xlabel="batch size", ylabel="largest stable learning rate")
axis.legend()

# %%
# If you double the batch
# -----------------------
# Far below the critical batch size, twice the batch allows twice the learning rate. Far above it a larger batch allows
# nothing more: curvature is the limit there, not noise.
print(f"critical batch size: {critical:.1f}")
for small, large, batch_size in zip(limits, limits[1:], batch_sizes):
    print(f"{batch_size:4d} -> {2 * batch_size:4d}: the limit grows {large / small:.2f} times")

# %%
# The predicted loss of a grid
# ----------------------------
# :func:`sgdsde.sweep` predicts every combination; learning rates may be parts of each batch size's own limit. The cost
# of a setting is that of one prediction: nothing is trained.
parts = [0.1, 0.3, 0.5, 0.7, 0.9]
swept = sgdsde.sweep(
    linearization, lr=[sgdsde.LimitFraction(part) for part in parts], batch_size=[2, 8, 32], n_steps=200
)
figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
for batch_size in (2, 8, 32):
    rows = [row for row in swept.rows if row["batch_size"] == batch_size]
    axis.loglog(
        [row["lr"] for row in rows], [row["train_loss"] for row in rows], "o-", label=f"batch size {batch_size}"
    )
axis.set(xlabel="learning rate", ylabel="predicted training loss after 200 steps")
axis.legend()

# %%
# The limit is where training fails, not where it is best: near it the noise holds the loss up. The lowest of the grid:
best = swept.best()
print(f"lr {best.lr:.3g}, batch size {best.batch_size}")

# %%
# Real runs at the three settings
# -------------------------------
# Do they do what was predicted? Half of each limit, real training of the network, 16 runs.
for batch_size in (2, 8, 32):
    sgd = sgdsde.SGD(0.5 * stability.max_lr(linearization, batch_size), batch_size)
    predicted = sgdsde.predict(linearization, sgd, 30, record=[0, 5, 30])
    measured = sgdsde.run_ensemble(linearization.problem, sgd, 30, 16, seed=0, record=[0, 5, 30])
    for step, told, seen, error in zip(
        (5, 30), predicted.train_loss.mean[1:], measured.train_loss.mean[1:], measured.train_loss.standard_error[1:]
    ):
        print(f"batch {batch_size:2d}, step {step:3d}: predicted {told:.4f}, measured {seen:.4f} +- {error:.4f}")
