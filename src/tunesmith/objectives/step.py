"""One optimizer step of any objective: gradients accumulated over packs, and what was measured on the way.

The loss of a step is the sum over its packs divided by one number for the whole step (its labelled tokens, its pairs), so that
it does not matter how the step is cut into forward passes (the mistake of naive gradient accumulation: every pack's mean
weighing the same).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from tunesmith.engine.memory import give_back
from tunesmith.errors import TrainingError, out_of_memory

Pack = Sequence[Any]
"""Samples of one forward pass. What a sample is, its objective knows."""
Measure = Callable[[Pack], tuple[torch.Tensor, dict[str, torch.Tensor]]]
"""(summed loss of a pack, other sums by name; `accuracy` is one of them)."""


class Objective(Protocol):
    accuracy: str
    """What the accuracy is a share of, in words."""

    def begin(self, model, packs: Sequence[Pack]) -> tuple[float, Measure]:
        """(what the sums of these packs are divided by, how to measure one of them or a part of it)."""

    def tokens(self, sample: Any) -> int:
        """Tokens that a sample takes in a forward pass."""

    def trained(self, sample: Any) -> int:
        """Labelled ones among them."""


@dataclass(frozen=True, slots=True)
class Measured:
    loss: float
    """Mean over what the objective counts: labelled tokens, or pairs."""
    accuracy: float
    """Share of them that the model has right: `Objective.accuracy` says what that means."""
    tokens: int
    trained_tokens: int
    extra: dict[str, float] = field(default_factory=dict)
    """Other means, by their name in metrics.jsonl."""


def forward_backward(objective: Objective, model, packs: Sequence[Pack],
                     halved: Callable[[int], None] = lambda _tokens: None) -> Measured:
    """Accumulate the gradients of one step.

    A pack that memory does not hold is tried again in two halves, which give the same sums; `halved` is told its tokens.

    Raises:
        TrainingError: one sample alone does not fit.
    """
    divisor, measure = objective.begin(model, packs)
    parameters = [p for p in model.parameters() if p.requires_grad]
    total, sums = 0.0, Counter()
    queue = [list(pack) for pack in reversed(packs)]
    while queue:
        pack = queue.pop()
        try:
            loss, found = measure(pack)
            gradients = torch.autograd.grad(loss / divisor, parameters, allow_unused=True)  # all of them, or none is added
        except (RuntimeError, MemoryError) as error:
            if out_of_memory(error) is None:
                raise
            if len(pack) == 1:
                raise TrainingError(f"a row of {objective.tokens(pack[0])} tokens does not fit into memory",
                                    why=str(error).split("\n")[0], fix="lower data.max_tokens, or set train.dtype: bfloat16; "
                                    "`tunesmith check` says what a training takes") from None
            gradients = None
        if gradients is None:  # outside of `except`: the error holds everything that the failed pass had made
            give_back()
            halved(sum(map(objective.tokens, pack)))
            queue += [pack[len(pack) // 2 :], pack[: len(pack) // 2]]
            continue
        for p, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                p.grad = gradient if p.grad is None else p.grad.add_(gradient)
        total += loss.item()
        sums.update({name: value.item() for name, value in found.items()})
    return _measured(objective, packs, divisor, total, sums)


def evaluate(objective: Objective, model, packs: Sequence[Pack]) -> Measured:
    """The same numbers without gradients."""
    total, sums = 0.0, Counter()
    with torch.inference_mode():
        divisor, measure = objective.begin(model, packs)
        for pack in packs:
            loss, found = measure(list(pack))
            total += loss.item()
            sums.update({name: value.item() for name, value in found.items()})
    return _measured(objective, packs, divisor, total, sums)


def _measured(objective: Objective, packs: Sequence[Pack], divisor: float, total: float, sums: Counter) -> Measured:
    means = {name: value / divisor for name, value in sums.items()}
    return Measured(total / divisor, means.pop("accuracy"), sum(objective.tokens(s) for pack in packs for s in pack),
                    sum(objective.trained(s) for pack in packs for s in pack), means)
