"""A directory that vLLM serves: the adapter, the base by its name, and the flags that it takes.

    serve.sh                 vllm serve BASE --enable-lora --max-lora-rank 16 --lora-modules {...} ...
    adapter/                 adapter_config.json names the base exactly as serve.sh does: vLLM's resolvers compare the two
    chat_template.jinja      the template that was trained; vLLM takes none from an adapter's directory
    generation_config.json   the stop tokens; vLLM takes the base's otherwise, which may not end where the template does

What vLLM cannot load as an adapter (DoRA, whole modules, IA3, full) is merged where that is possible, and said.
vLLM itself is found by TUNESMITH_VLLM (its `vllm` or `python`) or on the PATH; `vllm_server.py` starts it and asks.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from tunesmith.errors import UsageError
from tunesmith.exports import merged, peft
from tunesmith.exports.job import Job
from tunesmith.exports.probe import Question, Said
from tunesmith.exports.prompting import GENERATION, generation_config
from tunesmith.methods import report
from tunesmith.methods.files import read_config
from tunesmith.serving.vllm_process import INSTALL, executable
from tunesmith.store.files import write_json, write_text

SCRIPT, ADAPTER, TEMPLATE = "serve.sh", "adapter", "chat_template.jinja"


def loadable(job: Job) -> dict:
    """`{loads, max_lora_rank, refused[]}`: whether vLLM takes this adapter, by its settings and by its tensors' names."""
    return report.vllm_directory(job.adapter)


def dtype(job: Job) -> str:
    """As trained; but vLLM's LoRA kernels for GPUs take 16 bits only (vllm/lora/ops/triton_ops, 0.32)."""
    return "bfloat16" if job.trained_dtype == "float32" and loadable(job)["loads"] else job.trained_dtype


def write(job: Job, out: Path) -> dict:
    """Raises UsageError: vLLM cannot load the adapter, and it has no merged form."""
    found = loadable(job)
    if not found["loads"]:
        return _write_merged(job, out, found["refused"])
    (out / ADAPTER).mkdir()
    name = peft.write_adapter(job, out / ADAPTER)
    revision = read_config(out / ADAPTER).get("revision")
    write_json(out / GENERATION, generation_config(job))
    flags = ["--dtype", job.dtype, "--generation-config", ".", "--enable-lora", "--max-lora-rank", str(found["max_lora_rank"])]
    flags += ["--revision", revision] if revision else []
    flags += _template(job, out)
    modules = json.dumps({"name": job.name, "path": ADAPTER, "base_model_name": "$BASE"}).replace('"', '\\"')
    _write_script(job, out, name, [*map(shlex.quote, flags), f'--lora-modules "{modules}"'])
    return {"library": "peft", "form": "adapter", "base_model_name_or_path": name, "max_lora_rank": found["max_lora_rank"],
            "flags": flags, "refused": []}


def _write_merged(job: Job, out: Path, refused: list[str]) -> dict:
    if job.method not in merged.MERGEABLE:
        raise UsageError("vLLM cannot load this adapter, and it has no merged form", where=str(job.adapter),
                         why="; ".join(refused), fix="serve it here")
    facts = merged.write(job, out)
    flags = ["--dtype", job.dtype, "--served-model-name", job.name, *_template(job, out)]
    _write_script(job, out, ".", [shlex.quote(f) for f in flags])
    return facts | {"form": "merged", "flags": flags, "refused": refused}


def _template(job: Job, out: Path) -> list[str]:
    if job.template is None:
        return []
    write_text(out / TEMPLATE, job.template)
    return ["--chat-template", TEMPLATE]


def _write_script(job: Job, out: Path, base: str, flags: list[str]) -> None:
    write_text(out / SCRIPT, f"""#!/usr/bin/env bash
# Serve {job.name!r} with vLLM: OpenAI's API at /v1. What follows is passed on to vLLM.
#   ./serve.sh --port 8000
#   VLLM=/path/to/bin/vllm BASE=/path/to/base ./serve.sh
set -euo pipefail
cd "$(dirname "${{BASH_SOURCE[0]}}")"
BASE=${{BASE:-{shlex.quote(base)}}}
exec "${{VLLM:-vllm}}" serve "$BASE" \\
  {" ".join(flags)} "$@"
""")
    os.chmod(out / SCRIPT, 0o755)


def probe(job: Job, out: Path, asked: Sequence[Question], reference: Sequence[Said]) -> dict:
    """By vLLM itself, with the flags of serve.sh; `not_measured` where it is not installed."""
    from tunesmith.exports import vllm_server

    command = executable()
    if command is None:
        return {"verdict": "not_measured", "runtime": "vLLM", "questions": len(asked), "fix": f"{INSTALL} and export again",
                "message": "vLLM is not installed here, so nobody has asked this directory anything"}
    form = "adapter" if (out / ADAPTER).is_dir() else "merged"
    elsewhere = form == "adapter" and job.base_path and not Path(job.base_path).is_dir()

    def examine(expected: Sequence[Said]) -> dict:
        with vllm_server.serving(out / SCRIPT, command, job.base.path if elsewhere else None) as server:
            return vllm_server.examine(job, server, job.name, asked, expected, base=form == "adapter")

    try:
        if form == "adapter" and job.method == "qlora":
            return peft.on_original(job, asked, reference, examine)
        return examine(reference)
    except vllm_server.NotServed as error:
        return {"verdict": "fail", "runtime": "vLLM", "questions": len(asked), "failed": ["load"],
                "message": f"vLLM does not serve it: {error}", "fix": f"run {SCRIPT} by hand and read what it prints"}


def how(job: Job, facts: dict) -> str:
    """For the model card."""
    said = f"```\n./{SCRIPT} --port 8000\n```\n\nand ask for the model `{job.name}`"
    if facts["form"] == "adapter":
        return (f"{said}, or for `{facts['base_model_name_or_path']}` without the adapter. The base is not in this directory: "
                f"`BASE=/another/place ./{SCRIPT}` says where it is. `{ADAPTER}/` is a PEFT directory.")
    return f"{said}. It is a merged model, since vLLM does not load the adapter: {'; '.join(facts['refused'])}."
