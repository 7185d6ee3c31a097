"""What leaves the house: a release as files for another program, asked again there before they count (ADR 14).

    release  ->  Job  ->  format writes  ->  the format's runtime is asked  ->  README.md  ->  the directory appears
                                                      └─ it fails: nothing appears, and the verdict says why

Only a release is exported; a run that is none needs `unreleased`, and its model card says what its gates say.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith import exports
from tunesmith.errors import NotFoundError, UsageError
from tunesmith.evals.run import picked, read_report, sampled
from tunesmith.exports.job import Job
from tunesmith.exports.probe import Question, ask, questions
from tunesmith.exports.verdict import NUMBERS, rounding
from tunesmith.models.base import Base
from tunesmith.releases.bundle import GOLDENS, Release
from tunesmith.releases.card import card
from tunesmith.store.files import publish_directory, read_json, sha256_tree, write_text
from tunesmith.training.run import Run, tokenizer_for

Say = Callable[[str], None]
DTYPES = ("float32", "bfloat16", "float16")
CARD = "README.md"


@dataclass(frozen=True, slots=True)
class Source:
    """A release, or a run, as an export needs it."""

    name: str
    base: Base
    adapter: Path
    tokenizer: Any
    dtype: str
    questions: list[dict]
    """{messages, tools}: held out of training."""
    manifest: dict
    """The release's; of a run what one would hold, without `release_id`."""
    report: dict | None
    dataset: dict
    recipe: dict


class _Failed(Exception):
    """The probe refused: what was written is taken away."""


def export(name: str, format: str, output: Path, *, dtype: str | None = None, quant: str | None = None,
           base_path: str | None = None, unreleased: bool = False, options: dict | None = None,
           say: Say = lambda _line: None) -> dict:
    """As `verbs.export`."""
    module = exports.of(format)
    output = Path(output).absolute()
    if output.exists():
        raise UsageError("there is something already", where=str(output), why="an export never replaces anything",
                         fix="give --output a directory that is not there yet")
    if dtype and dtype not in DTYPES:
        raise UsageError(f"no dtype {dtype!r}", fix=f"--dtype {', '.join(DTYPES)}")
    source = source_of(name, unreleased)
    job = Job(name=slug(source.name), base=source.base, adapter=source.adapter, tokenizer=source.tokenizer,
              trained_dtype=source.dtype, dtype=dtype or source.dtype, base_path=base_path, quant=quant, options=options or {})
    if dtype is None and (choose := getattr(module, "dtype", None)):
        job = replace(job, dtype=choose(job))
    result = {"release_id": source.manifest.get("release_id"), "run_id": source.manifest["run_id"], "format": format,
              "dtype": job.dtype}
    try:
        with publish_directory(output) as staging:
            say(f"writing {format} in {job.dtype}")
            facts = module.write(job, staging)
            asked, left_out = askable(job, source.questions)
            say(f"asking the adapter on its base {len(asked)} questions")
            model = job.adapted()
            reference = ask(model, job.tokenizer, asked)
            job = replace(job, rounding=rounding(job, model, asked, reference))
            del model
            say("asking what was written, where it will run")
            found = module.probe(job, staging, asked, reference) | {"left_out": left_out}
            result |= {k: found.get(k) for k in NUMBERS} | {
                "verdict": found["verdict"], "probe": found, "facts": facts}
            if found["verdict"] == "fail":
                raise _Failed
            write_text(staging / CARD, card(source, job, module.how(job, facts), found, facts["library"]))
            result["files"] = sha256_tree(staging)
    except _Failed:
        return result | {"path": None, "files": {}}
    return result | {"path": str(output)}


def askable(job: Job, asked: list[dict]) -> tuple[list[Question], int]:
    """(questions, how many were left out). One that spells out a special token is rendered safely here and in no other program.

    Raises:
        UsageError: none is left.
    """
    @dataclass(frozen=True)
    class Asked:
        id: str
        messages: list
        tools: list | None

    found = questions(job.tokenizer, [Asked(f"question {n}", q["messages"], q["tools"]) for n, q in enumerate(asked, 1)])
    if job.template:
        found = [q for q in found if q.prompt == job.tokenizer.apply_chat_template(
            q.messages, tools=q.tools, add_generation_prompt=True, tokenize=True, return_dict=False)]
    if not found:
        raise UsageError("there is no held-out question to ask an export", fix="release a run with a test set")
    return found, len(asked) - len(found)


def source_of(name: str, unreleased: bool = False) -> Source:
    """A release by id, unique prefix or path; or a run, whose release it is, if it has one.

    Raises:
        NotFoundError: neither. UsageError: a run that was not released, without `unreleased`.
    """
    try:
        return _of_release(Release.find(name))
    except NotFoundError as no_release:
        try:
            run = Run.find(name)
        except NotFoundError:
            raise no_release from None
    if released := run.state.get("release_id"):
        return _of_release(Release.find(released))
    if not unreleased:
        raise UsageError(f"run {run.path.name} was not released", where=str(run.path),
                         why="what leaves the house has passed its gates",
                         fix=f"tunesmith release {run.path.name}, or --unreleased: its model card will say so")
    return _of_run(run)


def _of_release(release: Release) -> Source:
    return Source(release.manifest["name"], release.base(), release.adapter, release.tokenizer(), release.manifest["dtype"],
                  read_json(release.path / "golden.json"), release.manifest, read_json(release.path / "report" / "report.json"),
                  read_json(release.path / "dataset.json"), read_json(release.path / "recipe.resolved.json"))


def _of_run(run: Run) -> Source:
    state, loaded, dataset, base = run.state, run.recipe(), run.dataset(), run.base()
    if state["status"] != "finished":
        raise UsageError(f"run {run.path.name} is {state['status']}", where=str(run.path), fix="let it finish: tunesmith train "
                         f"--resume {run.path.name}")
    report = read_report(run)
    rows = picked(dataset, dataset.tests[0], sampled(dataset, dataset.tests[0], GOLDENS, loaded.recipe.train.seed))
    manifest = {"name": state["name"], "run_id": state["run_id"], "base": state["base"], "dataset_id": dataset.id,
                "template_fingerprint": state["template_fingerprint"], "dtype": state["dtype"], "gates": [], "overrides": [],
                "adapter": report["adapter"] if report else None}
    return Source(state["name"], base, run.adapter, tokenizer_for(base, loaded), state["dtype"],
                  [{"messages": r.question, "tools": r.tools} for r in rows], manifest, report, dataset.manifest,
                  read_json(run.path / "recipe.resolved.json"))


def slug(name: str) -> str:
    """A name for a server: letters, digits and `-_.` only; some of them refuse or rewrite others."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "adapter"
