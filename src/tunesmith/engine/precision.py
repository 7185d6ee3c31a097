"""Which dtype and device, measured rather than assumed."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

SHAPE = (1024, 1024, 1024)
REPEATS = 5


@dataclass(frozen=True, slots=True)
class Choice:
    dtype: torch.dtype
    device: str
    because: str
    """One line for the user."""
    flops_per_second: float
    """Of a matmul in this dtype, as measured."""


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def choose(wanted: str = "auto") -> Choice:
    """The given dtype, or the one whose matmul is faster here. float32 wins a tie: it is the more exact."""
    where = device()
    seconds = {d: _matmul_seconds(d, where) for d in (torch.float32, torch.bfloat16)}
    measured = ", ".join(f"{_name(d)} {s * 1e3:.1f} ms" for d, s in seconds.items())
    if wanted == "auto":
        dtype = torch.bfloat16 if seconds[torch.bfloat16] < 0.9 * seconds[torch.float32] else torch.float32
    else:
        dtype = getattr(torch, wanted)
    reason = f"the recipe says so; matmul {SHAPE[0]}: {measured}" if wanted != "auto" else f"matmul {SHAPE[0]}: {measured}"
    m, k, n = SHAPE
    return Choice(dtype, where, f"chose dtype={_name(dtype)} device={where} ({reason})", 2 * m * k * n / seconds[dtype])


def _matmul_seconds(dtype: torch.dtype, where: str) -> float:
    m, k, n = SHAPE
    a = torch.ones(m, k, dtype=dtype, device=where)
    b = torch.ones(n, k, dtype=dtype, device=where)
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        c = a @ b.T
        c[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return best


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
