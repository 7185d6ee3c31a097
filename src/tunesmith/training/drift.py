"""How far an adapter has moved the model on text that it was not trained for: cheap enough to be asked during training.

    KL      sum over the vocabulary of p_base (log p_base - log p_tuned), in nats, at each token of the text, base || tuned
    loss    what the text costs base and tuned, in nats a token

The text is `neutral.txt`: plain prose of sixteen kinds, written for this. It has nothing of anybody's task in it, so what moves
there was moved by accident: a fine-tune that forgets what its base could do, shows it here before a benchmark does.
Both are 0 for an adapter that changes nothing, and KL is never negative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tunesmith.engine.loss import IGNORE
from tunesmith.objectives.sft import Sample, sample

if TYPE_CHECKING:
    from tunesmith.recipe.schema import Recipe

TEXT = Path(__file__).with_name("neutral.txt")
PASSAGE_TOKENS = 128
"""Tokens of a passage that are read, at most."""
DURING_PASSAGES, DURING_TOKENS = 8, 64
"""What is read during training: two forward passes over 512 tokens a time."""

AnswerLogits = Callable[[Any, list[Sample]], list[torch.Tensor]]
"""`answer_logits` of an engine: [labels, vocabulary] of each row."""


@dataclass(frozen=True, slots=True)
class Moved:
    """One passage, summed over its tokens but the first, in nats."""

    tokens: int
    kl: float
    base_nats: float
    tuned_nats: float


def neutral(tokenizer, passages: int | None = None, tokens: int = PASSAGE_TOKENS) -> list[Sample]:
    """The first passages of the text, each cut to so many tokens, every token but the first being predicted."""
    texts = TEXT.read_text(encoding="utf-8").strip().split("\n\n")[:passages]
    found = [tokenizer(text, add_special_tokens=False)["input_ids"][:tokens] for text in texts]
    return [sample(ids, [False] + [True] * (len(ids) - 1)) for ids in found]


def moved(model, rows: Sequence[Sample], answer_logits: AnswerLogits,
          base: Callable[[int], torch.Tensor] | None = None) -> list[Moved]:
    """How far each row is from the base, which is the model with its adapter switched off, or `base(row)`: log p [T, V]."""
    found = []
    for i, row in enumerate(rows):
        base_TV = base(i) if base else base_logp(model, row, answer_logits)
        tuned_TV = _logp(model, row, answer_logits)
        labels_T = torch.tensor([label for label in row[1] if label != IGNORE], device=tuned_TV.device)[:, None]
        found.append(Moved(len(labels_T), (base_TV.exp() * (base_TV - tuned_TV)).sum().item(),
                           -base_TV.gather(1, labels_T).sum().item(), -tuned_TV.gather(1, labels_T).sum().item()))
    return found


def base_logp(model, row: Sample, answer_logits: AnswerLogits) -> torch.Tensor:
    """Log p [T, V] of the model without its adapter. What is trained stays what is trained: PEFT forgets it."""
    trained = [p.requires_grad for p in model.parameters()]
    with model.disable_adapter():
        logp_TV = _logp(model, row, answer_logits)
    for p, before in zip(model.parameters(), trained, strict=True):
        p.requires_grad_(before)
    return logp_TV


def _logp(model, row: Sample, answer_logits: AnswerLogits) -> torch.Tensor:
    with torch.inference_mode():
        return answer_logits(model, [row])[0].float().log_softmax(-1)


def during_training(recipe: Recipe, model, tokenizer, engine: str) -> Callable[[], dict[str, float]] | None:
    """A function that gives `drift_kl` and `drift_loss` (tuned less base), in nats a token, of the model as it is then.
    None when the recipe does not ask for it.

    Full fine-tuning overwrites the base's own weights: what they say is asked now, before step 1, and kept, 4 bytes for each
    token and word of the vocabulary. Otherwise nothing is kept.
    """
    from tunesmith.engine import fast, plain

    if not recipe.train.drift_every_steps:
        return None
    answer_logits = {"fast": fast, "plain": plain}[engine].answer_logits
    rows = neutral(tokenizer, DURING_PASSAGES, DURING_TOKENS)
    kept = [_logp(model, row, answer_logits) for row in rows] if recipe.method.type == "full" else None

    def measure() -> dict[str, float]:
        found = moved(model, rows, answer_logits, kept.__getitem__ if kept else None)
        tokens = sum(m.tokens for m in found)
        return {"drift_kl": sum(m.kl for m in found) / tokens,
                "drift_loss": sum(m.tuned_nats - m.base_nats for m in found) / tokens}

    return measure
