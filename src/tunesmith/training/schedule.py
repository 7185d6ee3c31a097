"""Learning rate at each step, as a factor of the recipe's learning rate."""

from __future__ import annotations

import math
from typing import Literal


def factor(step: int, total: int, warmup_share: float, schedule: Literal["cosine", "linear", "constant"]) -> float:
    """Factor for `step` (from 0) of `total`: linear warm-up to 1, then the schedule down towards 0.

    The last step still moves: the schedule reaches 0 one step after the end.
    """
    warmup = round(warmup_share * total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, total - warmup)
    if schedule == "constant":
        return 1.0
    return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
