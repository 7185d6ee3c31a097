"""What `ollama create` takes: a GGUF and a Modelfile with the chat template as Go writes it, the stops and the context.

The weights are the GGUF's and are asked by llama.cpp, which Ollama runs. Ollama itself is not asked: that its template writes
the same prompts is shown without it (`template.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunesmith.errors import UsageError
from tunesmith.exports import gguf
from tunesmith.exports.job import Job
from tunesmith.exports.probe import Question, Said
from tunesmith.store.files import write_text

MODELFILE = "Modelfile"
CONTEXT = 8192
"""Tokens that num_ctx asks for at most: Ollama reserves memory for all, and without it cuts prompts at its own default."""

dtype = gguf.dtype


def write(job: Job, out: Path) -> dict:
    """Raises UsageError, TemplateError: no GGUF is written of this model, or no Go template of its chat template."""
    from tunesmith.exports.gguf.vocabulary import begins
    from tunesmith.exports.ollama.template import translated

    if not job.template:
        raise UsageError("the base has no chat template", why="Ollama talks in messages",
                         fix="--format gguf, and llama.cpp's completion endpoint")
    source, notes = translated(job.tokenizer, begins(job.tokenizer))
    facts = gguf.write(job, out)
    write_text(out / MODELFILE, modelfile(facts["file"], source, [job.tokenizer.decode([t]) for t in job.stops],
                                          min(facts["context"], int(job.options.get("num_ctx", CONTEXT)))))
    return facts | {"template": source, "notes": facts["notes"] + notes}


def modelfile(file: str, template: str, stops: Sequence[str], context: int) -> str:
    """The text of a Modelfile: https://github.com/ollama/ollama/blob/main/docs/modelfile.md"""
    if '"""' in template:
        raise UsageError("the chat template has three quotes in a row", why="they end a template in a Modelfile",
                         fix="--format gguf")
    lines = [f"FROM ./{file}", f'TEMPLATE """{template}"""', f"PARAMETER num_ctx {context}", "PARAMETER temperature 0"]
    return "\n".join([*lines, *(f'PARAMETER stop "{stop}"' for stop in stops)]) + "\n"


def probe(job: Job, out: Path, asked: Sequence[Question], reference: Sequence[Said]) -> dict:
    """llama.cpp's verdict on the GGUF, and the Modelfile's template beside the prompts of the questions."""
    from tunesmith.exports.ollama import go

    found = gguf.probe(job, out, asked, reference)
    template = (out / MODELFILE).read_text(encoding="utf-8").split('"""')[1]
    wrong = [q.id for q in asked if not q.tools and _ids(job, go.render(template, q.messages)) != q.prompt]
    tools = sum(bool(q.tools) for q in asked)
    found["modelfile"] = {"asked": len(asked) - tools, "other_prompts": wrong, "with_tools": tools, "ollama": "not_measured"}
    if wrong:
        return found | {"verdict": "fail", "failed": [*found.get("failed", []), "modelfile"], "fix": "--format gguf",
                        "message": f"the Modelfile's template writes {len(wrong)} of {len(asked)} prompts otherwise"}
    if tools:
        return found | {"verdict": "fail", "failed": [*found.get("failed", []), "modelfile"], "fix": "--format gguf",
                        "message": f"{tools} questions give tools, which the Modelfile's template leaves out"}
    return found | {"message": found["message"] + ". Ollama itself was not asked: its template was evaluated here"}


def how(job: Job, facts: dict) -> str:
    """For the model card."""
    return f"""```sh
ollama create {job.name} --file {MODELFILE}
ollama run {job.name}
```

`{MODELFILE}` holds the chat template for Ollama, which has a template language of its own: tools and system messages after the
first turn are not written by it. `PARAMETER num_ctx` is the context it reserves, `temperature 0` makes answers repeatable.
""" + "".join(f"\n- {note}" for note in facts["notes"]) + "\n"


def _ids(job: Job, text: str) -> list[int]:
    from tunesmith.exports.gguf.vocabulary import begins

    bos = [job.tokenizer.bos_token_id] if begins(job.tokenizer) else []
    return bos + job.tokenizer(text, add_special_tokens=False)["input_ids"]
