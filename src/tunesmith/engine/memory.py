"""This process's memory: its peak as the operating system counts it, and how the allocator treats it."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Parameters of glibc's mallopt(3)."""
NEVER = 2**31 - 1
LARGE_BYTES, MAPPINGS = 32 << 20, 65536
"""Of a tensor that is mapped by itself, glibc's highest threshold, and how many there may be, its default."""


def peak_bytes() -> int:
    """Largest resident set of this process so far, plus the GPU's allocations when there is one."""
    unit = 1 if sys.platform == "darwin" else 1024
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return host + (torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)


def resident_bytes() -> int:
    """Of this process now; its peak where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return peak_bytes()
    return pages * resource.getpagesize()


def available_bytes() -> int | None:
    """What this process may still take: the machine's free memory, or what its control group leaves."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return free
    return free if limit == "max" else min(free, int(limit) - int(used))


def give_back() -> None:
    """Return what is free to the system: after a failed allocation, pieces of many sizes stand in the way of the next."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim()


def trim() -> None:
    """Return the heap's free pages to the system, also those between pieces that are in use: malloc_trim(3)."""
    if sys.platform.startswith("linux") and (release := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        release(0)


def keep_pages() -> bool:
    """Let the allocator keep what a step frees for the next one. False where that is not glibc's business.

    By default every large tensor is mapped anew and unmapped when freed, and the kernel clears its pages each time:
    an eighth of a small training step (docs/measurements.md).
    """
    if not sys.platform.startswith("linux"):
        return False
    return _mallopt((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER))


def return_large() -> bool:
    """After `keep_pages`: large tensors go back to the system when they are freed after all.

    The logits of a whole padded batch are of another size each step. Kept, they leave the heap in pieces that the next do not
    fit into: the same training took from 1.9 to 2.5 GB, and 1.7 GB like this, at the same speed.
    """
    return sys.platform.startswith("linux") and _mallopt((M_MMAP_THRESHOLD, LARGE_BYTES), (M_MMAP_MAX, MAPPINGS))


def _mallopt(*settings: tuple[int, int]) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt) and all(mallopt(*setting) for setting in settings)
