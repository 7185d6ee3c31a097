"""Memory and time of merging an adapter into a model of 8 billion weights, on files.

    python benchmarks/merge_8b.py                       LoRA of rank 16 on every linear layer, bfloat16
    python benchmarks/merge_8b.py --method qlora        each layer through 4 bits first
    python benchmarks/merge_8b.py --layers 4            a smaller one

Writes a checkpoint of Llama-3-8B's shape with random weights into shards of 4 GB (16 GB; the merged one as much again) in a
directory that is removed at the end, merges in a process of its own, and reports that process's peak memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from math import prod
from pathlib import Path

SHAPE = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
         "vocab_size": 128256, "max_position_embeddings": 8192, "tie_word_embeddings": False, "rope_theta": 500000.0}
MERGE = """
import json, sys, time
from pathlib import Path
from tunesmith.exports.merge import merge
began = time.monotonic()
facts = merge(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
seconds = time.monotonic() - began
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps(facts | {"seconds": round(seconds, 1), "peak_bytes": peak}))
"""


def write_base(folder: Path, layers: int, shard_bytes: int, shape: dict) -> int:
    """Random bfloat16 weights in shards, as save_pretrained would name them. Returns their bytes."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from tunesmith.exports.merging.shards import Planned, write

    config = LlamaConfig(num_hidden_layers=layers, dtype="bfloat16", **shape)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    block = (0.02 * torch.randn(1 << 24, generator=torch.Generator().manual_seed(0))).to(torch.bfloat16)

    def pieces(shape: tuple[int, ...]):
        """The same 16 million random numbers again and again."""
        left = prod(shape)
        while left > 0:
            yield block[:left]
            left -= len(block)

    shards: list[list[Planned]] = [[]]
    for name, p in model.named_parameters():
        one = Planned(name, torch.bfloat16, tuple(p.shape), lambda s=tuple(p.shape): pieces(s))
        if shards[-1] and sum(t.bytes for t in shards[-1]) + one.bytes > shard_bytes:
            shards.append([])
        shards[-1].append(one)
    files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    total = sum(t.bytes for shard in shards for t in shard)
    for file, shard in zip(files, shards, strict=True):
        write(folder / file, shard)
    places = {t.name: file for file, shard in zip(files, shards, strict=True) for t in shard}
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def write_adapter(base: Path, folder: Path, method: str, rank: int) -> None:
    """A LoRA on every linear layer, with B not zero, made from shapes alone."""
    import torch
    from safetensors.torch import save_file

    from tunesmith.exports.merging.names import without_weights
    from tunesmith.methods import QUANTISATION_FILE
    from tunesmith.methods.lora import config
    from tunesmith.methods.targets import linear_layers
    from tunesmith.recipe.methods import Lora

    settings = config(Lora(rank=rank, alpha=2.0 * rank), "random")
    draw, tensors = torch.Generator().manual_seed(1), {}
    for name, layer in linear_layers(without_weights(base)).items():
        for part, shape in (("A", (rank, layer.in_features)), ("B", (layer.out_features, rank))):
            tensors[f"base_model.model.{name}.lora_{part}.weight"] = 0.02 * torch.randn(shape, generator=draw)
    folder.mkdir()
    settings.save_pretrained(folder)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    if method == "qlora":
        (folder / QUANTISATION_FILE).write_text(json.dumps({"quant_type": "nf4", "block_size": 64, "double_quant": True}))


def measure(scratch: Path, *, layers: int, method: str = "lora", rank: int = 16, shard_bytes: int = 4_000_000_000,
            shape: dict | None = None) -> dict:
    """`{bytes, peak_bytes, seconds, ...}` of a merge in a process of its own."""
    (scratch / "base").mkdir()
    size = write_base(scratch / "base", layers, shard_bytes, SHAPE | (shape or {}))
    write_adapter(scratch / "base", scratch / "adapter", method, rank)
    done = subprocess.run([sys.executable, "-c", MERGE, *(str(scratch / n) for n in ("base", "adapter", "merged"))],
                          capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return {"base_bytes": size, **json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--layers", type=int, default=32)
    options.add_argument("--method", choices=("lora", "qlora"), default="lora")
    options.add_argument("--rank", type=int, default=16)
    options.add_argument("--scratch", help="where there is room for twice the model")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="merge-", dir=given.scratch) as scratch:
        found = measure(Path(scratch), layers=given.layers, method=given.method, rank=given.rank)
    print(json.dumps({k: found[k] for k in ("method", "base_bytes", "bytes", "shards", "tensors", "changed", "peak_bytes",
                                            "seconds")}))


if __name__ == "__main__":
    main()
