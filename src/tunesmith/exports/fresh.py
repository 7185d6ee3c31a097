"""Exports asked by plain transformers and PEFT in a process that has nothing of ours (`plain.py`), and what it said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunesmith.errors import AdapterError
from tunesmith.exports import plain
from tunesmith.exports.job import Job
from tunesmith.exports.probe import NEW_TOKENS, Question, Said
from tunesmith.exports.verdict import Found, judge
from tunesmith.serving.text import decode


@dataclass(frozen=True, slots=True)
class Target:
    """A directory to be asked."""

    path: Path
    kind: Literal["peft", "merged"]
    base: Path | None = None
    """For peft: the base's directory; None: the one that its adapter_config.json names."""


def probe(job: Job, target: Target, asked: Sequence[Question], reference: Sequence[Said]) -> dict:
    """The verdict on one directory, as `verdict.judge`; what cannot be loaded has failed."""
    return verdicts(job, [target], asked, reference)[0]


def verdicts(job: Job, targets: Sequence[Target], asked: Sequence[Question], reference: Sequence[Said]) -> list[dict]:
    """The verdict on each directory, all asked in one process. Raises AdapterError: the process did not end well."""
    found = []
    for one in ask_fresh(job, targets, asked, reference):
        found.append(judge(job, asked, reference, one) if isinstance(one, Found) else {
            "verdict": "fail", "runtime": "transformers", "failed": ["load"], "message": f"it cannot be loaded: {one}",
            "fix": "load it by hand, as its model card says, and see"})
    return found


def ask_fresh(job: Job, targets: Sequence[Target], asked: Sequence[Question], reference: Sequence[Said],
              new_tokens: int = NEW_TOKENS) -> list[Found | str]:
    """What plain transformers made of each target; a text where it could not load it."""
    import torch
    from safetensors import safe_open

    questions = [{"messages": [{k: v for k, v in m.items() if k != "weight"} for m in q.messages], "tools": q.tools,
                  "along": s.answer, "logits": len(s.answer) + s.stopped} for q, s in zip(asked, reference, strict=True)]
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as folder:
        paths = {name: str(Path(folder) / name) for name in ("asked", "answers", "logits")}
        requests = [{"path": str(t.path), "kind": t.kind, "base": t.base and str(t.base), "dtype": job.dtype,
                     "new_tokens": new_tokens, "threads": torch.get_num_threads(), "questions": questions} for t in targets]
        Path(paths["asked"]).write_text(json.dumps({"requests": requests, **paths}), encoding="utf-8")
        done = subprocess.run([sys.executable, "-P", plain.__file__, paths["asked"]], capture_output=True, text=True,
                              check=False, env=os.environ | {"TRANSFORMERS_VERBOSITY": "error"})
        if done.returncode:
            why = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
            raise AdapterError("plain transformers could not be asked", why=why,
                               fix="see that there is memory for a second model")
        answers = json.loads(Path(paths["answers"]).read_text(encoding="utf-8"))
        with safe_open(paths["logits"], framework="pt") as file:
            return [one["error"] if "error" in one else Found(
                answers["runtime"], one["prompts"],
                [_said(job, ids, file.get_tensor(f"{n}.{q}")) for q, ids in enumerate(one["answers"])], one["ends"])
                for n, one in enumerate(answers["answers"])]


def _said(job: Job, ids: list[int], logits) -> Said:
    stopped = bool(ids) and ids[-1] in job.stops
    answer = ids[:-1] if stopped else ids
    return Said(decode(job.tokenizer, answer), answer, stopped, logits)
