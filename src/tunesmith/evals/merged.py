"""Is the merged model the adapter on its base? It is written to disk, loaded from there, and asked the same (ADR 14).

    reference   the adapter on its base, in the dtype that it was trained and evaluated in
    rounding    the adapter on its base again, not merged, in the merged model's dtype and with the questions in batches
    merged      loaded from the files that the merge wrote

Rounding is the yardstick: what computing the very same thing in that dtype and in another order does to the logits. A merged
model is as far away as that or a few times, for its weights are rounded once more; a wrong one is hundreds of times as far in
float32, whatever the model. In 16 bits rounding itself is coarse, so that there is a limit in nats beside it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.errors import AdapterError
from tunesmith.exports.probe import Question, Said, ask, difference, questions
from tunesmith.models.base import Base
from tunesmith.recipe.evaluation import MergeGate
from tunesmith.store.home import home
from tunesmith.training.run import Run, tokenizer_for

Say = Callable[[str], None]
BATCH = 4
"""Questions that are computed together to see what rounding does."""


@dataclass(frozen=True, slots=True)
class Subject:
    """An adapter, its base, and what it is asked."""

    base: Base
    adapter: Path
    tokenizer: Any
    items: Sequence
    """Anything with `id`, `messages` and `tools`."""
    dtype: str
    """The base's under the adapter, in training and evaluation."""
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Reference:
    """What the adapter on its base said."""

    subject: Subject
    asked: list[Question]
    said: list[Said]
    stops: set[int]
    new_tokens: int


def measure_run(run: Run, items: Sequence, rule: MergeGate, say: Say = lambda _line: None) -> dict:
    """`measure` of a run's adapter. `{not_measured: {reason, fix}}` where its method has no merged form."""
    state = run.state
    subject = Subject(run.base(), run.adapter, tokenizer_for(run.base(), run.recipe()), items, state["dtype"], state["device"])
    try:
        return measure(subject, rule, say)
    except AdapterError as error:
        reason = error.what + (f": {error.why}" if error.why else "")
        return {"not_measured": {"reason": reason, "fix": error.fix or "see `tunesmith verify merge RUN`"}}


def measure(subject: Subject, rule: MergeGate, say: Say = lambda _line: None) -> dict:
    """Merge into every dtype of the rule, under QLoRA onto both bases, in a directory that is removed again.

    `{method, onto, tied, untied[], reference{dtype, questions, tokens, new_tokens}, rounding{dtype: difference}, models[{dtype,
    onto, chosen, bytes, seconds, ratio, broken[], **difference}]}`; a difference is `probe.Difference` and `max_margin`, the
    most nats by which the reference prefers its own token where a text parts. `onto` is the base whose merge is closer.

    Raises:
        AdapterError: the adapter cannot be merged.
    """
    from tunesmith.exports.merge import merge
    from tunesmith.exports.merging.changes import mergeable

    bases = ("dequantised", "original") if mergeable(subject.adapter) == "qlora" else (None,)
    reference = reference_of(subject, rule)
    rounding, models, facts = {}, [], {}
    for dtype in rule.dtypes:
        say(f"what rounding does in {dtype}")
        rounding[dtype] = rounding_of(reference, dtype)
        for onto in bases:
            say(f"merging into {dtype}" + (f", onto the {onto} base" if onto else "") + ", and asking it again")
            began = time.monotonic()
            home().mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".merge.", dir=home()) as scratch:
                facts = merge(subject.base.path, subject.adapter, Path(scratch) / "merged", dtype=dtype, onto=onto)
                seconds = time.monotonic() - began
                found = compared(reference, Path(scratch) / "merged", dtype)
            models.append({"dtype": dtype, "onto": onto, "bytes": facts["bytes"], "seconds": round(seconds, 2)}
                          | judged(found, rounding[dtype], rule))
    nearest = min(bases, key=lambda onto: sum(m["mean_kl"] for m in models if m["onto"] == onto))
    return {"method": facts["method"], "onto": nearest, "tied": facts["tied"], "untied": facts["untied"],
            "reference": {"dtype": subject.dtype, "questions": len(reference.asked), "new_tokens": rule.new_tokens,
                          "tokens": models[0]["tokens"]},
            "rounding": rounding, "models": [m | {"chosen": m["onto"] == nearest} for m in models]}


def reference_of(subject: Subject, rule: MergeGate) -> Reference:
    """Load the adapter on its base, and ask it. Raises AdapterError: it does not fit."""
    from tunesmith.template.render import stop_ids

    asked = questions(subject.tokenizer, subject.items, rule.questions)
    said = ask(_adapted(subject, subject.dtype), subject.tokenizer, asked, new_tokens=rule.new_tokens)
    return Reference(subject, asked, said, stop_ids(subject.tokenizer), rule.new_tokens)


def compared(reference: Reference, path: Path, dtype: str) -> dict:
    """How far the merged model at `path` is, loaded in this dtype. Raises BaseModelError: it does not load."""
    import torch

    from tunesmith.models.load import model_of

    model = model_of(Base(str(path), "", path), getattr(torch, dtype), reference.subject.device)
    return _difference(reference, ask(model, reference.subject.tokenizer, reference.asked, along=reference.said,
                                      new_tokens=reference.new_tokens))


def rounding_of(reference: Reference, dtype: str) -> dict:
    """How far the adapter on its base is from itself, in this dtype and with the questions in batches; at least one unit in the
    last place of the largest logit."""
    import torch

    model, said = _adapted(reference.subject, dtype), []
    for first in range(0, len(reference.asked), BATCH):
        batch = slice(first, first + BATCH)
        said += _together(model, reference.asked[batch], reference.said[batch], reference)
    largest = max((float(s.logits.abs().max()) for s in reference.said if len(s.logits)), default=0.0)
    found = _difference(reference, said)
    return found | {"mean_abs_logit_diff": max(found["mean_abs_logit_diff"], torch.finfo(getattr(torch, dtype)).eps * largest)}


def judged(found: dict, rounding: dict, rule: MergeGate) -> dict:
    """The difference, `ratio` to rounding, and `broken`: what keeps it from being the same model, in words; empty: it is."""
    ratio = found["mean_abs_logit_diff"] / rounding["mean_abs_logit_diff"]
    said = [f"its logits are {ratio:,.3g} times as far away as rounding puts them, {rule.max_ratio:g} times is allowed"
            ] if not ratio <= rule.max_ratio else []
    if not found["mean_kl"] <= rule.max_kl:
        said.append(f"mean KL is {found['mean_kl']:.2g} nats a token, {rule.max_kl:g} is allowed")
    if not found["top1_agreement"] >= rule.min_top1:
        said.append(f"{found['top1_agreement']:.1%} of tokens have the same likeliest one, {rule.min_top1:.1%} is asked for")
    if not found["max_margin"] <= rule.max_margin:
        said.append(f"a text parts where the adapter prefers its own token by {found['max_margin']:.2g} nats, "
                    f"{rule.max_margin:g} is allowed")
    return found | {"ratio": ratio, "broken": said}


def _adapted(subject: Subject, dtype: str):
    """The adapter on its base in this dtype, modules that were trained whole as well."""
    import torch

    from tunesmith import methods
    from tunesmith.models.load import model_of

    model = methods.load(model_of(subject.base, getattr(torch, dtype), subject.device), subject.adapter)
    whole = methods.kind(subject.adapter) == "full"
    for name, p in model.named_parameters():
        if whole or ".modules_to_save." in name:
            p.data = p.data.to(getattr(torch, dtype))
    return model.eval()


def _together(model, asked: list[Question], along: list[Said], reference: Reference) -> list[Said]:
    """Greedy answers, and logits along those of `along`, of questions that are computed in one batch."""
    import torch

    from tunesmith.serving.generate import Request, generate

    answers: list[list[int]] = [[] for _ in asked]
    stopped = [False] * len(asked)
    requests = [Request(prompt=q.prompt, max_new_tokens=reference.new_tokens) for q in asked]
    for token in generate(model, requests, reference.stops):
        if token.id is not None:
            answers[token.row].append(token.id)
        stopped[token.row] |= token.finish == "stop"
    rows = [q.prompt + s.answer for q, s in zip(asked, along, strict=True)]
    width, device = max(map(len, rows)), next(model.parameters()).device
    with torch.inference_mode():
        ids_BL = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
        mask_BL = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        logits_BLV = model(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).logits
    found = []
    for b, (question, path) in enumerate(zip(asked, along, strict=True)):
        first = len(question.prompt) - 1
        logits_AV = logits_BLV[b, first : first + len(path.answer) + path.stopped].float().cpu()
        found.append(Said("", answers[b], stopped[b], logits_AV))
    return found


def _difference(reference: Reference, other: Sequence[Said]) -> dict:
    """`probe.difference` with `max_margin`. An answer that ends where the reference goes on has the likeliest stop's margin."""
    found = difference(reference.said, other)
    parted = []
    for place in found.parted:
        if place["margin"] is None:
            logits_V = reference.said[place["question"]].logits[place["at"]].double()
            place = place | {"margin": float(logits_V.max() - logits_V[sorted(reference.stops)].max())}
        parted.append(place)
    return replace(found, parted=parted).as_dict() | {"max_margin": max((p["margin"] for p in parted), default=0.0)}

