"""Supervised fine-tuning: cross-entropy on the trained tokens, each token of a step weighing the same.

The loss of a step is the sum over its packs divided by the step's labelled tokens, so that it does not matter how
the step is cut into forward passes (the mistake of naive gradient accumulation: every pack's mean weighing the same).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tunesmith.engine.loss import IGNORE

Sample = tuple[list[int], list[int]]
"""(tokens, labels), labels already shifted: labels[i] is the token that should follow tokens[i], or IGNORE."""


@dataclass(frozen=True, slots=True)
class Measured:
    loss: float
    """Mean over labelled tokens, in nats."""
    accuracy: float
    """Share of labelled tokens that are the most likely one."""
    tokens: int
    trained_tokens: int


def sample(ids: list[int], trained: list[bool]) -> Sample:
    return ids, [t if on else IGNORE for t, on in zip(ids[1:], trained[1:], strict=True)] + [IGNORE]


def labelled(packs: Sequence[Sequence[Sample]]) -> int:
    return sum(label != IGNORE for pack in packs for _, labels in pack for label in labels)


def forward_backward(forward_loss: Callable, model, packs: Sequence[Sequence[Sample]]) -> Measured:
    """Accumulate the gradients of one step. `forward_loss` is the fast or the plain path's."""
    count = labelled(packs)
    total = hits = 0.0
    for pack in packs:
        loss, right = forward_loss(model, list(pack))
        (loss / count).backward()
        total += loss.item()
        hits += right.item()
    return Measured(total / count, hits / count, sum(len(t) for pack in packs for t, _ in pack), count)


def evaluate(forward_loss: Callable, model, packs: Sequence[Sequence[Sample]]) -> Measured:
    """The same numbers without gradients."""
    import torch

    count = labelled(packs)
    with torch.inference_mode():
        results = [forward_loss(model, list(pack)) for pack in packs]
    return Measured(sum(r[0].item() for r in results) / count, sum(r[1].item() for r in results) / count,
                    sum(len(t) for pack in packs for t, _ in pack), count)
