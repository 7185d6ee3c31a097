"""Is the merged model the adapter on its base? It is written to disk, loaded from there, and asked the same (ADR 14).

    reference   the adapter on its base, in the dtype that it was trained and evaluated in
    unmerged    the adapter on its base, in the merged model's dtype: alone, and once more with the questions in batches
    merged      loaded from the files that the merge wrote

KL, likeliest tokens and texts are against the reference: that is what the report is about. Whether the merge is right is seen
more sharply within one dtype: how far the merged model is from the unmerged one, over how far rounding puts that one from
itself: when it is computed in another order, and in 16 bits instead of 32. A right merge is about as far; a wrong one is
thousands of times as far in float32, whatever the model and whatever dtype it was trained in.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import AdapterError
from tunesmith.exports.probe import Question, Said, ask, difference, questions
from tunesmith.models.base import Base
from tunesmith.recipe.evaluation import MergeGate
from tunesmith.store.files import read_json
from tunesmith.store.home import home
from tunesmith.training.run import Run, tokenizer_for

if TYPE_CHECKING:
    import torch

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


@dataclass(frozen=True, slots=True)
class Unmerged:
    """The adapter on its base in a merged model's dtype."""

    dtype: str
    said: list[Said]
    """Each question alone: logits along the reference's answers."""
    rounding: dict
    """With the questions in batches: the difference to the reference, and `same_dtype`, what rounding does in this dtype."""


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
    onto, chosen, bytes, seconds, ratio, broken[], **difference}]}`. A difference is `probe.Difference` to the reference;
    `max_margin`, the most nats by which the reference prefers its own token where a text parts; and `same_dtype`, the
    difference of logits and KL to the unmerged model. `onto` is the base whose merge is closer.

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
        unmerged = unmerged_in(reference, dtype)
        rounding[dtype] = unmerged.rounding
        for onto in bases:
            say(f"merging into {dtype}" + (f", onto the {onto} base" if onto else "") + ", and asking it again")
            began = time.monotonic()
            home().mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".merge.", dir=home()) as scratch:
                facts = merge(subject.base.path, subject.adapter, Path(scratch) / "merged", dtype=dtype, onto=onto)
                seconds = time.monotonic() - began
                found = compared(reference, unmerged, Path(scratch) / "merged")
            models.append({"dtype": dtype, "onto": onto, "bytes": facts["bytes"], "seconds": round(seconds, 2)}
                          | judged(found, rounding[dtype], rule))
    nearest = min(bases, key=lambda onto: sum(m["same_dtype"]["mean_kl"] for m in models if m["onto"] == onto))
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


def unmerged_in(reference: Reference, dtype: str) -> Unmerged:
    """Ask the adapter on its base again, in this dtype.

    What rounding does is the larger of two: the questions in batches, and in 16 bits this dtype against float32. In float32 it
    is at least one unit in the last place of the largest logit.
    """
    import torch

    asked, said = reference.asked, reference.said
    model = _adapted(reference.subject, dtype)
    alone = _alone(model, reference)
    batched = []
    for first in range(0, len(asked), BATCH):
        some = slice(first, first + BATCH)
        batched += [replace(own, logits=logits_AV) for own, logits_AV in zip(
            _answers(model, asked[some], reference), _logits(model, asked[some], said[some]), strict=True)]
    found = _difference(reference, alone, batched)
    if dtype == "float32":
        largest = max((float(s.logits.abs().max()) for s in alone if len(s.logits)), default=1.0)
        coarse = torch.finfo(torch.float32).eps * largest
    else:
        del model
        coarse = difference(alone, _alone(_adapted(reference.subject, "float32"), reference)).mean_abs_logit_diff
    found["same_dtype"]["mean_abs_logit_diff"] = max(found["same_dtype"]["mean_abs_logit_diff"], coarse)
    return Unmerged(dtype, alone, found)


def compared(reference: Reference, unmerged: Unmerged, path: Path) -> dict:
    """How far the merged model at `path` is, loaded in the unmerged one's dtype. Raises BaseModelError: it does not load."""
    import torch

    from tunesmith.models.load import model_of

    model = model_of(Base(str(path), "", path), getattr(torch, unmerged.dtype), reference.subject.device)
    said = ask(model, reference.subject.tokenizer, reference.asked, along=reference.said, new_tokens=reference.new_tokens)
    return _difference(reference, unmerged.said, said)


def judged(found: dict, rounding: dict, rule: MergeGate) -> dict:
    """The difference, `ratio` to rounding, and `broken`: what keeps it from being the same model, in words; empty: it is."""
    ratio = found["same_dtype"]["mean_abs_logit_diff"] / rounding["same_dtype"]["mean_abs_logit_diff"]
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
    """The adapter on its base in this dtype, modules that were trained whole as well. Under QLoRA the base is what 4 bits made
    of it in training, with the codes of that dtype."""
    import torch

    from tunesmith import methods
    from tunesmith.methods import lora
    from tunesmith.models.load import model_of

    kind, to = methods.kind(subject.adapter), getattr(torch, dtype)
    base = model_of(subject.base, to, subject.device)
    if kind == "qlora" and dtype != subject.dtype:
        _through_4_bits(base, subject)
        model = lora.load(base, subject.adapter)
    else:
        model = methods.load(base, subject.adapter)
    for name, p in model.named_parameters():
        if kind == "full" or ".modules_to_save." in name:
            p.data = p.data.to(to)
    return model.eval()


def _through_4_bits(model, subject: Subject) -> None:
    """Every linear layer's weight as QLoRA had it in training, in the model's dtype, in place."""
    import torch

    from tunesmith.methods import QUANTISATION_FILE
    from tunesmith.methods.qlora import dense, quantise
    from tunesmith.methods.targets import linear_layers
    from tunesmith.models.load import model_of

    settings = read_json(subject.adapter / QUANTISATION_FILE)
    trained = model_of(subject.base, getattr(torch, subject.dtype), subject.device)
    quantise(trained, settings["block_size"], settings["double_quant"])
    for name, layer in linear_layers(model).items():
        layer.weight.data = dense(trained.get_submodule(name)).weight.data.to(model.dtype)


def _alone(model, reference: Reference) -> list[Said]:
    """The reference's answers with this model's logits along them, each question by itself."""
    return [replace(path, logits=_logits(model, [question], [path])[0])
            for question, path in zip(reference.asked, reference.said, strict=True)]


def _answers(model, asked: list[Question], reference: Reference) -> list[Said]:
    """Greedy answers to questions that are computed together, without logits."""
    from tunesmith.serving.generate import generate
    from tunesmith.serving.sampling import Request

    answers: list[list[int]] = [[] for _ in asked]
    stopped = [False] * len(asked)
    requests = [Request(prompt=q.prompt, max_new_tokens=reference.new_tokens) for q in asked]
    for token in generate(model, requests, reference.stops):
        if token.id is not None:
            answers[token.row].append(token.id)
        stopped[token.row] |= token.finish == "stop"
    return [Said("", ids, end) for ids, end in zip(answers, stopped, strict=True)]


def _logits(model, asked: list[Question], along: list[Said]) -> list[torch.Tensor]:
    """[A, V] float32 of each question, as in `probe.Said`, all of them computed together."""
    import torch

    rows = [q.prompt + s.answer for q, s in zip(asked, along, strict=True)]
    width, device = max(map(len, rows)), next(model.parameters()).device
    with torch.inference_mode():
        ids_BL = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
        mask_BL = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        logits_BLV = model(input_ids=ids_BL, attention_mask=mask_BL if len(rows) > 1 else None, use_cache=False).logits
    firsts = [len(q.prompt) - 1 for q in asked]
    return [logits_BLV[b, first : first + len(s.answer) + s.stopped].float().cpu()
            for b, (first, s) in enumerate(zip(firsts, along, strict=True))]


def _difference(reference: Reference, unmerged: Sequence[Said], other: Sequence[Said]) -> dict:
    """As `measure` says. An answer that ends where the reference goes on has the margin of the likeliest stop token."""
    found, near = difference(reference.said, other), difference(unmerged, other)
    parted = []
    for place in found.parted:
        if place["margin"] is None:
            logits_V = reference.said[place["question"]].logits[place["at"]].double()
            place = place | {"margin": float(logits_V.max() - logits_V[sorted(reference.stops)].max())}
        parted.append(place)
    return replace(found, parted=parted).as_dict() | {
        "max_margin": max((p["margin"] for p in parted), default=0.0),
        "same_dtype": {k: getattr(near, k) for k in ("max_abs_logit_diff", "mean_abs_logit_diff", "mean_kl")}}
