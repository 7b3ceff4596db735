"""Bytes of tensors that are alive at once, as torch's allocator counts them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def live_peak(function: Callable[[], Any]) -> int:
    """Most bytes of tensors alive at once beyond those from before the call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = function()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    del result
    return int(np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).max())
