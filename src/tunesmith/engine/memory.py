"""Peak resident memory, as the operating system counts it."""

from __future__ import annotations

import resource
import sys

import torch


def peak_bytes() -> int:
    """Largest resident set of this process so far, plus the GPU's allocations when there is one."""
    unit = 1 if sys.platform == "darwin" else 1024
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return host + (torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)
