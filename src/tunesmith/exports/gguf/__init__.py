"""One file for llama.cpp and all that is built on it: merged weights, tokenizer, chat template and stop tokens in a GGUF.

`--quant f16` (the default), `q8_0`, `bf16` or `f32`. It is asked by llama.cpp itself (`runtime.py`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tunesmith.exports.job import Job
from tunesmith.exports.probe import Question, Said

DEFAULT = "f16"


def dtype(job: Job) -> str:
    """What llama.cpp multiplies in: its cache of keys and values is in float16 whatever the weights are."""
    return "bfloat16" if job.quant == "bf16" else "float16"


def file_name(job: Job) -> str:
    return f"{job.name}-{job.quant or DEFAULT}.gguf"


def write(job: Job, out: Path) -> dict:
    """Raises UsageError: a method that has no merged form, or a model or tokenizer that no GGUF is written of (`file.py`)."""
    from tunesmith.exports import merged
    from tunesmith.exports.gguf.file import write as write_file

    merged.refuse(job)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".merged.") as folder:
        checkpoint = Path(folder) / "model"
        merged.write_weights(replace(job, dtype="float32"), checkpoint)
        facts = write_file(checkpoint, job.tokenizer, job.stops, out / file_name(job), name=job.name,
                           quant=job.quant or DEFAULT)
    return facts | {"library": "gguf", "file": file_name(job)}


def probe(job: Job, out: Path, asked: Sequence[Question], reference: Sequence[Said]) -> dict:
    from tunesmith.exports.gguf.runtime import probe as probe_file

    return probe_file(job, out / file_name(job), asked, reference)


def how(job: Job, facts: dict) -> str:
    """For the model card."""
    return f"""```sh
llama-server --model {facts["file"]} --jinja --ctx-size {min(facts["context"], 8192)}
```

or in Python: `pip install xllamacpp`, and its `CommonParams.model.path` is this file. Weights are in {facts["quant"]}.
"""
