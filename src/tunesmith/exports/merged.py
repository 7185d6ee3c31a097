"""A whole model for anybody's transformers: merged weights, tokenizer with its template, generation config with its stops.

It is asked by plain transformers in a process of its own, with its own `generate` and its own generation config.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunesmith.errors import UsageError
from tunesmith.exports import fresh, merge
from tunesmith.exports.job import Job
from tunesmith.exports.peft import ASK
from tunesmith.exports.probe import Question, Said
from tunesmith.exports.prompting import generation_config, write_prompting
from tunesmith.store.files import read_json, write_json

CONFIG = "config.json"
MERGEABLE = ("lora", "qlora", "ia3", "full")
"""Methods whose adapter can become weights of the base's own shape. QLoRA's becomes part of the base that was trained on."""


def write(job: Job, out: Path) -> dict:
    """Raises UsageError: the method has no merged form. AdapterError: its weights are not finite."""
    refuse(job)
    write_weights(job, out)
    write_prompting(job, out)
    write_json(out / CONFIG, read_json(out / CONFIG) | {"eos_token_id": generation_config(job)["eos_token_id"]})
    return {"library": "transformers", "dtype": job.dtype} | ({"base": "dequantised"} if job.method == "qlora" else {})


def refuse(job: Job) -> None:
    if job.method not in MERGEABLE:
        raise UsageError(f"an adapter of method {job.method} has no merged form", where=str(job.adapter),
                         why="it is no change of the base's own weights",
                         fix="serve it here" + ("" if job.method == "bottleneck" else ", or --format peft"))


def write_weights(job: Job, out: Path) -> None:
    """Weights and config, in `job.dtype`; of QLoRA, onto the base that was trained on."""
    out.mkdir(exist_ok=True)
    merge.write(job.base.path, job.adapter, out, dtype=job.dtype)


def probe(job: Job, out: Path, asked: Sequence[Question], reference: Sequence[Said]) -> dict:
    return fresh.probe(job, fresh.Target(out, "merged"), asked, reference)


def how(job: Job, facts: dict) -> str:
    """For the model card."""
    return f"""```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this directory
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.{job.dtype})
tokenizer = AutoTokenizer.from_pretrained(folder)
ends = model.generation_config
{ASK}```

With vLLM: `vllm serve . --served-model-name {job.name} --dtype {job.dtype}`
"""
