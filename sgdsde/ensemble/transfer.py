"""Numbers made on the host, brought to the device that trains."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(values: Tensor, device: torch.device) -> Tensor:
    """The values on a device; what is there already as it is. From the host to CUDA without waiting for the device.

    A copy to CUDA is made from pinned memory, in the order of the current stream; the host goes on at once.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
