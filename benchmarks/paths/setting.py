"""The equations that all contestants integrate, and the second moments that they must reach.

State-dependent noise, the SDE of minibatch SGD in the coordinates of the weights, e = e_0 + K w and r = 2 e:

    dw = -r/n dt - sqrt(lr/B) r (dW - mean dW)/sqrt(n)

Constant noise: dx = -H x dt + S dW with S = sqrt(lr/B) K C(r_0)^{1/2}; modal coordinates make the drift diagonal.
Steps of length lr. NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

N_PATHS, BATCH_SIZE = 1000, 8
COLUMNS = {f"{kind}, d = {d}": (kind, d) for kind, sizes in
           {"constant": (64, 256, 1024), "state": (64, 256, 512)}.items() for d in sizes}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """K [d, d], e_0 [d], H, S, and the same in the eigenbasis of K: h [d], x_0 and S; float64."""

    kind: str
    d: int

    def __post_init__(self) -> None:
        rng, d = np.random.default_rng(self.d), self.d
        vectors = np.linalg.qr(rng.normal(size=(d, d)))[0]
        rates = np.geomspace(1.0, 0.01, d)
        start = rng.normal(size=d)
        lr = 0.2
        values = rates * d / 2
        centred = np.diag(start * 2) @ (np.eye(d) - 1 / d) / d**0.5
        modal = np.sqrt(lr / BATCH_SIZE) * (values[:, None] * (vectors.T @ centred))
        names = {
            "lr": lr, "K": (vectors * values) @ vectors.T, "e0": start, "h": rates, "x0": vectors.T @ start,
            "S_modal": modal, "H": (vectors * rates) @ vectors.T, "S": vectors @ modal,
        }  # fmt: skip
        for name, value in names.items():
            object.__setattr__(self, name, value)

    def euler(self, n_steps: int) -> float:
        """E |e|^2 after so many steps of Euler's method."""
        d, lr = self.d, self.lr
        if self.kind == "constant":
            left = 1 - lr * self.h
            pair = left[:, None] * left
            ratio = np.where(pair < 1, (1 - pair**n_steps) / (1 - pair), n_steps)
            variance = (lr * (self.S_modal @ self.S_modal.T) * ratio).trace()
            return float(variance + ((left**n_steps * self.x0) ** 2).sum())
        second, step = np.outer(self.e0, self.e0), np.eye(d) - lr * self.H
        for _ in range(n_steps):
            noise = np.diag(second.diagonal()) * 4 / d - second * 4 / d**2
            second = step @ second @ step + lr**2 / BATCH_SIZE * (self.K @ noise @ self.K)
        return float(second.trace())

    def exact(self, n_steps: int) -> float:
        """The same of the Gaussian process with constant noise."""
        time, pair = self.lr * n_steps, self.h[:, None] + self.h
        gained = (self.S_modal @ self.S_modal.T) * -np.expm1(-pair * time) / pair
        return float(gained.trace() + ((np.exp(-self.h * time) * self.x0) ** 2).sum())
