"""How close an answer is to its references in meaning, as an encoder of sentences sees it."""

from __future__ import annotations

from pathlib import Path

from tunesmith.errors import BaseModelError, NotMeasured
from tunesmith.evals.items import Item, Outcome
from tunesmith.recipe.evaluation import Eval

NAME = "similarity"


def prepare(items: list[Item], said: dict[str, list[Outcome]], settings: Eval, folder: Path | None) -> dict:
    """Give each answer the cosine to its nearest reference. Raises NotMeasured when there is no embedder."""
    from tunesmith.evals.embed import load

    try:
        embed = load(settings.embedder, folder)
    except BaseModelError as error:
        raise NotMeasured(f"the embedder {settings.embedder!r} cannot be had", why=f"{error.what}: {error.why}",
                          fix=error.fix or "set eval.embedder") from error
    texts = sorted({r for item in items for r in item.references} | {o.text or "" for all_ in said.values() for o in all_})
    vectors = dict(zip(texts, embed(texts), strict=True))
    for outcomes in said.values():
        for item, outcome in zip(items, outcomes, strict=True):
            if outcome.text is not None:
                outcome.extra[NAME] = max(float(vectors[outcome.text] @ vectors[r]) for r in item.references)
    return {"embedder": embed.base.ref, "digest": embed.base.digest}


def similarity(outcome: Outcome, _item: Item) -> tuple[float, float]:
    """Cosine of the answer's and the nearest reference's vectors, in -1..1; an empty answer has 0."""
    return (outcome.extra[NAME] if (outcome.text or "").strip() else 0.0), 1.0
