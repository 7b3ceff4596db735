"""Test for a second derivative of a loss, by following its gradient along segments."""

from __future__ import annotations

import torch
from torch import Tensor

from sgdsde.losses.general import TorchLoss

SEGMENTS = 32
PIECES = 64
HALVINGS = 24
SCALES = (1.0, 4.0)
JUMP = 1e-3
"""Share of the gradient's way along a segment that is a jump: a piece of length 2^-30 holds less if H is bounded."""


def find_kink(loss: TorchLoss, targets: Tensor, *, n_outputs: int) -> str:
    """Fault of the second derivative, in words: a jump of the gradient, or none known to torch; else "".

    Along each segment the change of the gradient is compared with the integral of the Hessian, and the piece where they
    differ most is halved again and again. A bounded Hessian, continuous or not (``nn.HuberLoss``), leaves a difference
    that vanishes with the length; a jump stays.

    Args:
        targets: a few rows, [m, ...], in float64 if they are real.
    Limits: 32 segments for each row of the targets and scale, in the directions of a fixed draw, half of them through
        the target where it has the outputs' shape. A kink on a small part of the output space may lie on none.
    Cost: some 250 gradients of all segments.
    """
    stream = torch.Generator().manual_seed(0)
    start, stop, rows = _segments(targets, n_outputs, stream)
    try:
        loss.gradient(start, rows)
    except (RuntimeError, ValueError) as error:
        return f"which is not defined for all outputs ({str(error).splitlines()[0]})"
    try:
        left, width, change = _worst_piece(loss, start, stop, rows)
    except RuntimeError as error:
        return f"whose second derivative torch does not have ({str(error).splitlines()[0]})"
    direction = stop - start
    low, high = start + left[:, None] * direction, start + (left + width)[:, None] * direction
    jump = _gradient_change(loss, low, high, rows).norm(dim=1)
    jump = jump.nan_to_num(0.0, 0.0)
    # Where a segment sees next to nothing of the loss, a switch to a cheaper formula in a saturated tail is no kink.
    excess = jump - JUMP * change - JUMP**2 * change.max()
    worst = int(excess.argmax())
    if not excess[worst] > 0:
        return ""
    return f"whose gradient jumps by {float(jump[worst]):.3g} at outputs {_short(low[worst])}"


def _segments(targets: Tensor, n_outputs: int, stream: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Ends of all segments, [s, c] each, and the targets that go with them."""
    starts, stops, rows = [], [], []
    for scale in SCALES:
        for index in range(len(targets)):
            ends = scale * torch.randn(2, SEGMENTS, n_outputs, generator=stream, dtype=torch.float64)
            own = targets[index].cpu()
            if own.is_floating_point() and own.shape == (n_outputs,):
                offset = torch.randn(SEGMENTS // 2, 1, generator=stream, dtype=torch.float64).exp()
                ends[1, : SEGMENTS // 2] = own + offset * (own - ends[0, : SEGMENTS // 2])
            starts.append(ends[0])
            stops.append(ends[1])
            rows.append(targets[index].expand(SEGMENTS, *own.shape))
    return torch.cat(starts).to(targets.device), torch.cat(stops).to(targets.device), torch.cat(rows)


def _worst_piece(loss: TorchLoss, start: Tensor, stop: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The worst piece of each segment, where gradient and Hessian disagree most: left end and width, [s] each, and
    the change of the gradient along the whole segment."""
    direction = stop - start
    width = start.new_full((len(start),), 1 / PIECES)
    change, worst, left = torch.zeros_like(width), torch.full_like(width, -1.0), torch.zeros_like(width)
    before = loss.gradient(start, rows)
    for piece in range(PIECES):
        place = torch.full_like(width, piece / PIECES)
        after = loss.gradient(start + (place + width)[:, None] * direction, rows)
        difference = _difference(loss, start, direction, rows, place, width, after - before)
        left, worst = torch.where(difference > worst, place, left), torch.maximum(difference, worst)
        change += (after - before).norm(dim=1).nan_to_num(0.0, 0.0)
        before = after
    for _ in range(HALVINGS):
        width = width / 2
        ends = [loss.gradient(start + (left + side * width)[:, None] * direction, rows) for side in (0, 1, 2)]
        halves = [
            _difference(loss, start, direction, rows, left + side * width, width, ends[side + 1] - ends[side])
            for side in (0, 1)
        ]
        left = left + width * torch.stack(halves).argmax(0)
    return left, width, change


def _difference(
    loss: TorchLoss, start: Tensor, direction: Tensor, rows: Tensor, left: Tensor, width: Tensor, change: Tensor
) -> Tensor:
    """|change of the gradient - Hessian at the middle times the step| of one piece of each segment, [s]."""
    step = width[:, None] * direction
    middle = start + left[:, None] * direction + step / 2
    return (change - loss.hessian_product(middle, step, rows)).norm(dim=1).nan_to_num(0.0, 0.0)


def _gradient_change(loss: TorchLoss, low: Tensor, high: Tensor, rows: Tensor) -> Tensor:
    return loss.gradient(high, rows) - loss.gradient(low, rows)


def _short(outputs: Tensor) -> str:
    numbers = ", ".join(f"{float(value):.3g}" for value in outputs[:4])
    return f"[{numbers}{', ...' if len(outputs) > 4 else ''}]"
