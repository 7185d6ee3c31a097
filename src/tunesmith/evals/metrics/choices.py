"""Multiple choice by likelihood: nothing is generated, the model's own probabilities of the given choices are compared.

A choice's log-likelihood is that of its text and of the stop token after it, given the question: it is the probability that the
model answers exactly this. So no choice that begins another one has the advantage of being shorter.
"""

from __future__ import annotations

from tunesmith.evals.items import Item, Outcome


def choice(outcome: Outcome, item: Item) -> tuple[float, float]:
    """1 when the correct choice is the likeliest (Brown et al. 2020). The first of equal ones counts as the model's."""
    return float(_likeliest(outcome.choices) == item.correct), 1.0


def choice_norm(outcome: Outcome, item: Item) -> tuple[float, float]:
    """The same of the log-likelihood per byte of the choice's text, for choices of different lengths."""
    return float(_likeliest([x / max(1, len(c.encode()))
                             for x, c in zip(outcome.choices, item.choices, strict=True)]) == item.correct), 1.0


def needs_choices(item: Item) -> None:
    """Raises ValueError: fewer than two choices, the same twice, or none of them correct."""
    if len(item.choices) < 2:
        raise ValueError("it has no two choices")
    if len(set(item.choices)) < len(item.choices):
        raise ValueError("it has the same choice twice")
    if item.correct is None or not 0 <= item.correct < len(item.choices):
        raise ValueError("`correct` is not the number of a choice, counted from 0")


def _likeliest(scores) -> int:
    return max(range(len(scores)), key=scores.__getitem__)
