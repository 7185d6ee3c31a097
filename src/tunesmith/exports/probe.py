"""The same questions to the adapter on its base and to what was made of it, and how far their answers are apart (ADR 14).

    asked = questions(tokenizer, items)
    reference = ask(adapted, tokenizer, asked)              greedy answers, and the logits along them
    other = ask(merged, tokenizer, asked, along=reference)  its own greedy answers, and its logits along the reference's
    difference(reference, other)

Shapes: Q = questions, A = tokens of an answer, and one more for its end when it stopped, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tunesmith.data.rows import Message

if TYPE_CHECKING:
    import torch

QUESTIONS = 16
NEW_TOKENS = 48


@dataclass(frozen=True, slots=True)
class Question:
    id: str
    messages: list[Message]
    tools: list[dict] | None
    prompt: list[int]
    """As the training side renders it, the generation prompt at its end."""


@dataclass(frozen=True, slots=True)
class Said:
    """What one model said to one question."""

    text: str
    """Its greedy answer."""
    answer: list[int]
    """Its tokens, without the stop token."""
    stopped: bool
    """It ended by a stop token rather than at the limit."""
    logits: torch.Tensor | None = None
    """[A, V] float32, before each token of the reference's answer and its end. None where the runtime gives none."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How far one model is from the reference, over all questions."""

    questions: int
    tokens: int
    max_abs_logit_diff: float
    mean_abs_logit_diff: float
    mean_kl: float
    """KL(reference || other), nats a token."""
    max_kl: float
    top1_agreement: float
    """Share of tokens at which both find the same one the likeliest."""
    same_texts: float
    """Share of questions with the same greedy answer, token by token."""
    parted: list[dict]
    """Where they are not the same: {question, at, reference, other, margin}; margin: nats by which the reference prefers its
    own token there to the other's, None without logits or where the other ends. Near 0: a tie, decided by rounding."""

    def as_dict(self) -> dict:
        return asdict(self)


def questions(tokenizer, items: Sequence, count: int = QUESTIONS) -> list[Question]:
    """The first `count` items (anything with `id`, `messages` and `tools`), rendered."""
    from tunesmith.template.render import generation_prompt

    return [Question(i.id, i.messages, i.tools, generation_prompt(tokenizer, i.messages, i.tools)) for i in items[:count]]


def ask(model, tokenizer, asked: Sequence[Question], *, along: Sequence[Said] | None = None,
        new_tokens: int = NEW_TOKENS) -> list[Said]:
    """Each question alone, greedily. The logits are along the answers of `along`, or along the model's own."""
    import torch

    from tunesmith.serving.generate import generate
    from tunesmith.serving.sampling import Request
    from tunesmith.serving.text import decode
    from tunesmith.template.render import stop_ids

    stops, device, found = stop_ids(tokenizer), next(model.parameters()).device, []
    for number, question in enumerate(asked):
        tokens = list(generate(model, [Request(prompt=question.prompt, max_new_tokens=new_tokens)], stops))
        own, stopped = [t.id for t in tokens if t.id is not None], tokens[-1].finish == "stop"
        path, ends = (along[number].answer, along[number].stopped) if along else (own, stopped)
        with torch.inference_mode():
            ids = torch.tensor([question.prompt + path], device=device)
            logits_AV = model(input_ids=ids, use_cache=False).logits[0, len(question.prompt) - 1:].float().cpu()
        found.append(Said(decode(tokenizer, own), own, stopped, logits_AV[:len(path) + ends]))
    return found


def difference(reference: Sequence[Said], other: Sequence[Said]) -> Difference:
    """How far `other` is from `reference`, both asked the same; logits of both along the reference's answers.

    Raises:
        ValueError: not the same questions, or one of them without logits.
    """
    import torch

    diffs, kls, same, parted = [], [], 0, []
    for number, (ours, theirs) in enumerate(zip(reference, other, strict=True)):
        if ours.logits is None or theirs.logits is None or ours.logits.shape != theirs.logits.shape:
            raise ValueError(f"question {number}: no logits along the same answer")
        x_AV, y_AV = (s.logits.double() for s in (ours, theirs))
        diffs.append(((x_AV - x_AV.mean(-1, keepdim=True)) - (y_AV - y_AV.mean(-1, keepdim=True))).abs())
        p_AV, q_AV = x_AV.log_softmax(-1), y_AV.log_softmax(-1)
        kls.append((p_AV.exp() * (p_AV - q_AV)).sum(-1).clamp(min=0))
        same += int((x_AV.argmax(-1) == y_AV.argmax(-1)).sum())
        if (place := parting(ours, theirs)) is not None:
            parted.append({"question": number, **place})
    diff_NV, kl_N = torch.cat(diffs), torch.cat(kls)
    return Difference(
        questions=len(reference), tokens=len(kl_N), max_abs_logit_diff=float(diff_NV.max()),
        mean_abs_logit_diff=float(diff_NV.mean()), mean_kl=float(kl_N.mean()), max_kl=float(kl_N.max()),
        top1_agreement=same / len(kl_N), same_texts=1 - len(parted) / len(reference), parted=parted)


def parting(reference: Said, other: Said) -> dict | None:
    """Where two greedy answers part: `{at, reference, other, margin}`, tokens None for the end of an answer; None: nowhere."""
    ours, theirs = ([*s.answer, *([None] if s.stopped else [])] for s in (reference, other))
    length = min(len(ours), len(theirs))
    at = next((i for i in range(length) if ours[i] != theirs[i]), None)
    if at is None:
        return None
    margin = None
    if reference.logits is not None:
        logits_V = reference.logits[at].double().log_softmax(-1)
        best = float(logits_V.max()) if ours[at] is None else float(logits_V[ours[at]])
        if theirs[at] is not None:
            margin = best - float(logits_V[theirs[at]])
    return {"at": at, "reference": ours[at], "other": theirs[at], "margin": margin}
