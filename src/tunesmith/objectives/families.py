"""A prompt and its answers as rows of a pack that share it, so that it is computed once.

    conversation  p p p p P a a a e .       P is the prompt's last token, e the stop token; what comes after it is not predicted
    first row     p p p p                   seen by all the others, nothing of it is predicted
    a row         P a a a                   labels a a a e: so each answer has its own first prediction

Shapes: a family is (prompt, answer, ...), each (tokens, labels) as in `sft.Sample`.
"""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.engine.loss import IGNORE
from tunesmith.objectives.sft import Sample

Rendered = tuple[list[int], list[bool]]
"""(ids, trained) of a whole conversation."""
Family = tuple[Sample, ...]


def family(*conversations: Rendered) -> Family:
    """Conversations that differ from their first trained token on.

    Raises:
        ValueError: they do not begin with the same prompt, or nothing of one is trained.
    """
    prompt = conversations[0][0][: first_trained(conversations[0][1])]
    return (prompt[:-1], [IGNORE] * (len(prompt) - 1)), *(answer(prompt, *c) for c in conversations)


def answer(prompt: Sequence[int], ids: list[int], trained: list[bool]) -> Sample:
    """The row of one conversation that begins with `prompt`, from the prompt's last token to the last label."""
    begin, end = first_trained(trained), len(trained) - trained[::-1].index(True)
    if ids[:begin] != list(prompt):
        raise ValueError("the answers do not have the same prompt")
    labels = [t if on else IGNORE for t, on in zip(ids[begin:end], trained[begin:end], strict=True)]
    return ids[begin - 1 : end - 1], labels


def first_trained(trained: list[bool]) -> int:
    """Raises ValueError when there is none, or it is the first token, which nothing predicts."""
    begin = trained.index(True)
    if not begin:
        raise ValueError("an answer without a prompt")
    return begin


def tokens(rows: Family) -> int:
    return sum(len(ids) for ids, _ in rows)


def labels(rows: Family) -> int:
    return sum(label != IGNORE for _, row in rows for label in row)
