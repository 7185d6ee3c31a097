"""Causal attention of short rows on the CPU, forward and backward: our explicit float32 form against SDPA.

    python benchmarks/attention_cpu.py [--rows 16] [--tokens 128]

Shapes of SmolLM2-135M: 9 query heads, 3 key/value heads, head size 64. Prints the median of several runs.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from tunesmith.engine.attention import _masked_cpu

HEADS, KV_HEADS, SIZE, REPEATS = 9, 3, 64, 15


def sdpa(q, k, v, scaling):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)


def milliseconds(attend, rows: int, tokens: int, dtype: torch.dtype) -> float:
    torch.manual_seed(0)
    q, k, v = (torch.randn(rows, h, tokens, SIZE, dtype=dtype, requires_grad=True) for h in (HEADS, KV_HEADS, KV_HEADS))
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        attend(q, k, v, SIZE**-0.5).sum().backward()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    print(f"{options.rows} rows of {options.tokens} tokens, {torch.get_num_threads()} threads, median of {REPEATS}")
    for dtype in (torch.bfloat16, torch.float32):
        ours = milliseconds(_masked_cpu, options.rows, options.tokens, dtype)
        theirs = milliseconds(sdpa, options.rows, options.tokens, dtype)
        print(f"{str(dtype).removeprefix('torch.'):>9}: explicit {ours:6.1f} ms   SDPA {theirs:6.1f} ms   "
              f"ratio {theirs / ours:.2f}")


if __name__ == "__main__":
    main()
