"""Supervised fine-tuning: cross-entropy on the trained tokens, each token of a step weighing the same.

The loss of a step is the sum over its packs divided by the step's labelled tokens, so that it does not matter how
the step is cut into forward passes (the mistake of naive gradient accumulation: every pack's mean weighing the same).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tunesmith.engine.loss import IGNORE
from tunesmith.engine.memory import give_back
from tunesmith.errors import TrainingError

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


def forward_backward(forward_loss: Callable, model, packs: Sequence[Sequence[Sample]],
                     halved: Callable[[int], None] = lambda _tokens: None) -> Measured:
    """Accumulate the gradients of one step. `forward_loss` is the fast or the plain path's.

    A pack that memory does not hold is tried again in two halves, which give the same sums; `halved` is told its tokens.

    Raises:
        TrainingError: one row alone does not fit.
    """
    count = labelled(packs)
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = hits = 0.0
    queue = [list(pack) for pack in reversed(packs)]
    while queue:
        pack = queue.pop()
        try:
            loss, right = forward_loss(model, pack)
            gradients = torch.autograd.grad(loss / count, parameters, allow_unused=True)  # all of them, or none is added
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            if len(pack) == 1:
                raise TrainingError(f"a row of {len(pack[0][0])} tokens does not fit into memory",
                                    why=str(error).split("\n")[0], fix="lower data.max_tokens, or set train.dtype: bfloat16; "
                                    "`tunesmith check` says what a training takes") from None
            gradients = None
        if gradients is None:  # outside of `except`: the error holds everything that the failed pass had made
            give_back()
            halved(sum(len(tokens) for tokens, _ in pack))
            queue += [pack[len(pack) // 2 :], pack[: len(pack) // 2]]
            continue
        for p, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                p.grad = gradient if p.grad is None else p.grad.add_(gradient)
        total += loss.item()
        hits += right.item()
    return Measured(total / count, hits / count, sum(len(t) for pack in packs for t, _ in pack), count)


def _out_of_memory(error: Exception) -> bool:
    """torch says it in many ways: on a GPU, in its own allocator on a CPU, in oneDNN's."""
    said = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in said for words in ("can't allocate memory", "not enough memory", "bad_alloc", "create a memory object"))


def evaluate(forward_loss: Callable, model, packs: Sequence[Sequence[Sample]]) -> Measured:
    """The same numbers without gradients."""
    count = labelled(packs)
    with torch.inference_mode():
        results = [forward_loss(model, list(pack)) for pack in packs]
    return Measured(sum(r[0].item() for r in results) / count, sum(r[1].item() for r in results) / count,
                    sum(len(t) for pack in packs for t, _ in pack), count)
