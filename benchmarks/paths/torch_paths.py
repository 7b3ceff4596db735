"""Floor, the library, Euler's method as a torch user writes it, torchsde and sdeint: final states [P, d]."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.paths.setting import BATCH_SIZE, N_PATHS, Setting

Runs = Callable[[int], Tensor]
"""Final states after so many steps."""


def arrays(setting: Setting, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    names = ("K", "e0", "H", "S", "h", "x0", "S_modal")
    return {name: torch.from_numpy(getattr(setting, name)).to(device, dtype) for name in names}


def floor(setting: Setting, device: str) -> Runs:
    """One product and its normal numbers, in place: no step of anything, the numbers that are left mean nothing."""
    product = torch.randn(setting.d, setting.d, device=device) / setting.d**2

    def run(n_steps: int) -> Tensor:
        state = torch.zeros(N_PATHS, setting.d, device=device)
        noise = torch.empty_like(state)
        for _ in range(n_steps):
            state.addmm_(noise.normal_(), product)
        return state

    return run


def fused(setting: Setting, device: str) -> Runs:
    """The shortest hand-written step in place: floor, and the element-wise work that the equation asks for."""
    a, lr, d = arrays(setting, torch.float32, device), setting.lr, setting.d
    spread = math.sqrt(1 / (BATCH_SIZE * d))
    factor = torch.linalg.cholesky(_gained(setting)).to(device, torch.float32).mT.contiguous()
    decay = torch.exp(-a["h"] * lr)

    def constant(n_steps: int) -> Tensor:
        x = a["x0"].repeat(N_PATHS, 1)
        noise = torch.empty_like(x)
        for _ in range(n_steps):
            x.mul_(decay).addmm_(noise.normal_(), factor)
        return x

    def state(n_steps: int) -> Tensor:
        e, kernel = a["e0"].repeat(N_PATHS, 1), a["K"]
        noise = torch.empty_like(e)
        for _ in range(n_steps):
            shift = 1 / d - spread * noise.normal_().mean(1, keepdim=True)
            e.addmm_(noise.mul_(spread).add_(shift).mul_(e), kernel, alpha=-2 * lr)
        return e

    return constant if setting.kind == "constant" else state


def _gained(setting: Setting) -> Tensor:
    h, s = torch.from_numpy(setting.h), torch.from_numpy(setting.S_modal)
    pair = h[:, None] + h
    gained = (s @ s.mT) * -torch.expm1(-pair * setting.lr) / pair
    return gained + 1e-12 * gained.trace() * torch.eye(len(h), dtype=gained.dtype)


def user(setting: Setting, device: str) -> Runs:
    """Euler-Maruyama, line by line as the equation stands there."""
    a, lr, d = arrays(setting, torch.float32, device), setting.lr, setting.d

    def run(n_steps: int) -> Tensor:
        e = a["e0"].expand(N_PATHS, -1)
        for _ in range(n_steps):
            dw = math.sqrt(lr) * torch.randn(N_PATHS, d, device=device)
            if setting.kind == "constant":
                e = e - lr * e @ a["H"] + dw @ a["S"].mT
            else:
                r = 2 * e
                centred = (dw - dw.mean(1, keepdim=True)) / math.sqrt(d)
                e = e - lr * r @ a["K"] / d - math.sqrt(lr / BATCH_SIZE) * (r * centred) @ a["K"]
        return e

    return run


def torchsde_own(setting: Setting, device: str) -> Runs:
    """torchsde's Euler, drift and noise in one function, its own Brownian motion."""
    import torchsde

    return _torchsde(setting, device, lambda n_steps, shape: torchsde.BrownianInterval(
        0.0, n_steps, size=shape, dt=1.0, device=device))  # fmt: skip


def torchsde_given(setting: Setting, device: str) -> Runs:
    """The same with increments of one's own in place of torchsde's Brownian motion."""
    from torchsde import BaseBrownian

    class Increments(BaseBrownian):
        levy_area_approximation, dtype, device, shape = "none", torch.float32, torch.device("cpu"), (0,)

        def __init__(self, shape: tuple[int, ...]) -> None:
            self.shape, self.device = shape, torch.device(device)

        def __call__(
            self, ta: float, tb: float | None = None, return_U: bool = False, return_A: bool = False
        ) -> Tensor:
            return torch.randn(self.shape, device=self.device)

        def __repr__(self) -> str:
            return "increments"

    return _torchsde(setting, device, lambda n_steps, shape: Increments(shape))


def torchsde_matrices(setting: Setting, device: str) -> Runs:
    """torchsde's Euler with drift f and noise matrix g as its manual shows them, one matrix for each path."""
    import torchsde

    return _torchsde(setting, device, lambda n_steps, shape: torchsde.BrownianInterval(
        0.0, n_steps, size=shape, dt=1.0, device=device), matrices=True)  # fmt: skip


def _torchsde(setting: Setting, device: str, brownian: Callable[..., Any], *, matrices: bool = False) -> Runs:
    """Time is counted in steps, whose sums are exact in float32: no last step is cut short."""
    import torchsde

    a, d, lr = arrays(setting, torch.float32, device), setting.d, setting.lr
    spread = lr / math.sqrt(BATCH_SIZE * d)
    factor = (math.sqrt(lr) * a["S_modal"]).mT.contiguous()
    centring = spread * (torch.eye(d, device=device) - 1 / d)

    class Products(torch.nn.Module):
        noise_type, sde_type = "general", "ito"

        def f_and_g_prod(self, t: Tensor, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            if setting.kind == "constant":
                return (-lr * a["h"]) * y, v @ factor
            r = torch.addmm(a["e0"], y, a["K"]).mul_(2)
            return r * (-lr / d), (v - v.mean(1, keepdim=True)).mul_(r).mul_(-spread)

    class Matrices(torch.nn.Module):
        noise_type, sde_type = "general", "ito"

        def f_and_g(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            if setting.kind == "constant":
                return (-lr * a["h"]) * y, factor.mT.expand(len(y), -1, -1)
            r = torch.addmm(a["e0"], y, a["K"]).mul_(2)
            return r * (-lr / d), -r[:, :, None] * centring

    equation = Matrices() if matrices else Products()

    def run(n_steps: int) -> Tensor:
        start = a["x0"].repeat(N_PATHS, 1) if setting.kind == "constant" else torch.zeros(N_PATHS, d, device=device)
        motion = brownian(float(n_steps), (N_PATHS, d))
        times = torch.tensor([0.0, float(n_steps)], device=device)
        with torch.no_grad():
            end = torchsde.sdeint(equation, start, times, bm=motion, method="euler", dt=1.0)[-1]
        return end if setting.kind == "constant" else a["e0"] + end @ a["K"]

    return run


def sdeint_euler(setting: Setting, device: str) -> Runs:
    """sdeint's itoEuler in float64, one path after the other with dense noise: as many paths as can be waited for."""
    import numpy as np
    import sdeint

    d, lr = setting.d, setting.lr
    centring = math.sqrt(lr / BATCH_SIZE / d) * (np.eye(d) - 1 / d)

    def drift(x: Any, t: float) -> Any:
        return -setting.H @ x

    def noise(x: Any, t: float) -> Any:
        return setting.S if setting.kind == "constant" else setting.K @ (2 * x[:, None] * centring)

    def run(n_steps: int) -> Tensor:
        times, generator = np.linspace(0, lr * n_steps, n_steps + 1), np.random.default_rng(0)
        ends = [sdeint.itoEuler(drift, noise, setting.e0, times, generator=generator)[-1] for _ in range(4)]
        return torch.from_numpy(np.stack(ends))

    return run
