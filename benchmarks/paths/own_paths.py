"""The library's paths, through ``SDEPaths``: final residuals [P, d]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import sgdsde
from benchmarks.paths.setting import BATCH_SIZE, N_PATHS, Setting
from sgdsde.dynamics import FrozenNoise, SDEPaths, WeakOrder2


def linearization(setting: Setting, device: str, dtype: torch.dtype = torch.float32) -> sgdsde.Linearization:
    """A model linear in d weights whose kernel, outputs and targets (zero) are those of the setting."""
    kernel, start = (torch.from_numpy(value).to(device, dtype) for value in (setting.K, setting.e0[:, None]))

    def outputs(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return x * params["theta"]

    x = torch.ones_like(start)
    problem = sgdsde.Problem(
        (outputs, {"theta": x[:1, 0].clone()}), x, torch.zeros_like(start), loss=torch.nn.MSELoss()
    )
    return sgdsde.Linearization(problem, kernel, None, outputs=start, test_outputs=None)


class OwnPaths:
    """Called with n: final residuals. Prepared for n: the clock sees the steps from the third on, no decomposition."""

    before = 2
    rounding: float

    def __init__(self, setting: Setting, device: str, **words: Any) -> None:
        self._made, self._words, self._seed = linearization(setting, device), words, 0
        self._sgd = sgdsde.SGD(setting.lr, BATCH_SIZE)

    def __call__(self, n_steps: int) -> Tensor:
        return self.prepared(n_steps)()

    def prepared(self, n_steps: int) -> Callable[[], Tensor]:
        self._seed += 1
        paths = SDEPaths(N_PATHS, seed=self._seed, **self._words)
        laws = paths.evolve(self._made, self._sgd, [self.before, max(n_steps, self.before + 1)])
        next(iter(laws))

        def rest() -> Tensor:
            samples = next(iter(laws)).samples
            assert samples is not None
            return samples[:, :, 0]

        return rest

    def measured_rounding(self) -> float:
        return SDEPaths(**self._words).rounding_error(self._made, self._sgd, 100)


def sgdsde_euler(setting: Setting, device: str) -> OwnPaths:
    return OwnPaths(setting, device)


def sgdsde_exact(setting: Setting, device: str) -> OwnPaths:
    return OwnPaths(setting, device, integrator=FrozenNoise(stride=1))


def sgdsde_second_order(setting: Setting, device: str) -> OwnPaths:
    return OwnPaths(setting, device, integrator=WeakOrder2())


def sgdsde_tf32(setting: Setting, device: str) -> OwnPaths:
    """Euler's method in TF32, and how far 100 steps of it are from float64."""
    paths = OwnPaths(setting, device, precision="tf32")
    paths.rounding = paths.measured_rounding()
    return paths
