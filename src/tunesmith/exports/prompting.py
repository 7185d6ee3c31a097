"""How an export is prompted and where it stops, in the files that every runtime of the transformers family reads."""

from __future__ import annotations

from pathlib import Path

from tunesmith.exports.job import Job
from tunesmith.store.files import read_json, write_json

GENERATION = "generation_config.json"


def write_prompting(job: Job, out: Path) -> None:
    """The tokenizer with its `chat_template.jinja`, and the generation config."""
    job.tokenizer.save_pretrained(out)
    write_json(out / GENERATION, generation_config(job))


def generation_config(job: Job) -> dict:
    """The base's own, if it has one, ending where answers were trained to end: at the template's stop token and end-of-text."""
    path = job.base.path / GENERATION
    made = read_json(path) if path.is_file() else {}
    made["eos_token_id"] = job.stops if len(job.stops) > 1 else job.stops[0]
    if job.tokenizer.pad_token_id is not None:
        made["pad_token_id"] = job.tokenizer.pad_token_id
    return made
