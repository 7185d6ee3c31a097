"""Supervised fine-tuning: cross-entropy on the trained tokens, each token of a step weighing the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tunesmith.engine.loss import IGNORE
from tunesmith.objectives import step
from tunesmith.objectives.step import Measure, Measured

Sample = tuple[list[int], list[int]]
"""(tokens, labels), labels already shifted: labels[i] is the token that should follow tokens[i], or IGNORE."""


@dataclass(frozen=True, slots=True)
class Sft:
    forward_loss: Callable
    """The fast or the plain path's."""
    accuracy = "next-token accuracy"

    def begin(self, model, packs: Sequence[Sequence[Sample]]) -> tuple[float, Measure]:
        def measure(pack: Sequence[Sample]):
            loss, hits = self.forward_loss(model, pack)
            return loss, {"accuracy": hits}

        return labelled(packs), measure

    def tokens(self, sample: Sample) -> int:
        return len(sample[0])

    def trained(self, sample: Sample) -> int:
        return sum(label != IGNORE for label in sample[1])


def sample(ids: list[int], trained: list[bool]) -> Sample:
    return ids, [t if on else IGNORE for t, on in zip(ids[1:], trained[1:], strict=True)] + [IGNORE]


def labelled(packs: Sequence[Sequence[Sample]]) -> int:
    return sum(label != IGNORE for pack in packs for _, labels in pack for label in labels)


def forward_backward(forward_loss: Callable, model, packs: Sequence[Sequence[Sample]],
                     halved: Callable[[int], None] = lambda _tokens: None) -> Measured:
    """Accumulate the gradients of one step (`step.forward_backward`)."""
    return step.forward_backward(Sft(forward_loss), model, packs, halved)


def evaluate(forward_loss: Callable, model, packs: Sequence[Sequence[Sample]]) -> Measured:
    """The same numbers without gradients."""
    return step.evaluate(Sft(forward_loss), model, packs)
