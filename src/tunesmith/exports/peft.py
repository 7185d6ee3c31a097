"""A PEFT directory that stands on its own: adapter, tokenizer with its template, generation config with its stops.

`adapter_config.json` names the base as --base-path says, or where it was found. It is asked by PEFT and transformers in a
process of their own.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tunesmith.errors import UsageError
from tunesmith.exports import fresh
from tunesmith.exports.job import Job
from tunesmith.exports.probe import Question, Said, ask, difference
from tunesmith.exports.prompting import write_prompting
from tunesmith.exports.verdict import NUMBERS
from tunesmith.methods import QUANTISATION_FILE
from tunesmith.methods.files import CONFIG_FILE, WEIGHTS_FILE, read_config
from tunesmith.store.files import write_json

OURS = {"full": "its weights are the whole model: --format merged",
        "bottleneck": "no other program has these layers: serve it here"}
"""Methods that PEFT does not have."""


def write(job: Job, out: Path) -> dict:
    """Raises UsageError: PEFT has no such method."""
    refuse(job)
    named = write_adapter(job, out)
    write_prompting(job, out)
    return {"library": "peft", "base_model_name_or_path": named}


def refuse(job: Job) -> None:
    if job.method in OURS:
        raise UsageError(f"an adapter of method {job.method} has no PEFT directory", where=str(job.adapter),
                         fix=OURS[job.method])


def write_adapter(job: Job, out: Path) -> str:
    """The two files of the adapter, its base named anew; returns that name."""
    name, revision = base_name(job)
    config = read_config(job.adapter) | {"base_model_name_or_path": name, "revision": revision, "inference_mode": True}
    shutil.copyfile(job.adapter / WEIGHTS_FILE, out / WEIGHTS_FILE)
    write_json(out / CONFIG_FILE, config)
    if (job.adapter / QUANTISATION_FILE).is_file():
        shutil.copyfile(job.adapter / QUANTISATION_FILE, out / QUANTISATION_FILE)
    return name


def base_name(job: Job) -> tuple[str, str | None]:
    """(what the export calls its base, its revision): --base-path, a name on the Hugging Face hub, or a directory here."""
    if job.base_path:
        return job.base_path, None
    name, _, revision = job.base.ref.partition("@")
    from_hub = name.count("/") == 1 and not name.startswith((".", "/", "~", "pypi:")) and not name.endswith(".gguf")
    return (name, revision or None) if from_hub and "snapshots" in job.base.path.parts else (str(job.base.path), None)


def probe(job: Job, out: Path, asked: Sequence[Question], reference: Sequence[Said]) -> dict:
    """By plain PEFT. An adapter of QLoRA is there on the base as it was before it was quantised: `on_original`."""
    elsewhere = job.base_path and not Path(job.base_path).is_dir()
    target = fresh.Target(out, "peft", job.base.path if elsewhere else None)
    if job.method == "qlora":
        return on_original(job, asked, reference, lambda expected: fresh.probe(job, target, asked, expected))
    return fresh.probe(job, target, asked, reference)


def on_original(job: Job, asked: Sequence[Question], reference: Sequence[Said], examine) -> dict:
    """The verdict on an adapter of QLoRA in a program that puts it on the original base. `examine(expected) -> dict`.

    It is held to our own adapter on the original base. How far that is from what was trained and evaluated is said beside it
    (`from_trained`), and its numbers stand where others have theirs.
    """
    model = job.adapted(onto="original")
    from_trained = difference(reference, ask(model, job.tokenizer, asked, along=reference))
    expected = ask(model, job.tokenizer, asked)
    del model
    found = examine(expected)
    return found | {key: getattr(from_trained, key) for key in NUMBERS} | {
        "base": "original", "from_trained": from_trained.as_dict(),
        "message": f"{found['message']}. It is the adapter on the original base: from the 4-bit one that was trained and "
        f"evaluated it differs by KL {from_trained.mean_kl:.2g} nats a token, {from_trained.same_texts:.0%} of the answers are "
        "the same", "warning": "this is not the model that was evaluated: --format merged is"}


def how(job: Job, facts: dict) -> str:
    """For the model card."""
    dtype, base = job.dtype, facts["base_model_name_or_path"]
    return f"""```python
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

folder = "."  # this directory
base = AutoModelForCausalLM.from_pretrained({base!r}, dtype=torch.{dtype})
model = PeftModel.from_pretrained(base, folder)
tokenizer = AutoTokenizer.from_pretrained(folder)  # not the base's: this one has the template that was trained
ends = GenerationConfig.from_pretrained(folder)    # not the base's: this one has the stop tokens
{ASK}```
"""


ASK = '''
messages = [{"role": "user", "content": "..."}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**prompt, generation_config=ends, do_sample=False, max_new_tokens=256)
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True))
'''
"""Of a model card, what is the same for an adapter and for a whole model."""
