"""Is an export what it was made from? What its runtime said, beside the reference and beside what rounding does (ADR 14).

    rounding    the reference model again, its prompts in a batch, and in the export's dtype where that is another
    allowed     TIMES as much, in the logits; KL goes with their square
    refused     another prompt | an end that is not known | logits that differ by more | a text that parts at a clear choice

A merge rounds every weight once more, and a runtime has kernels of its own: each does what a batch does to the sums, and more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from tunesmith.exports.probe import Difference, Question, Said, ask, difference, parting

if TYPE_CHECKING:
    from tunesmith.exports.job import Job

TIMES = 8.0
"""How many times the rounding that was measured an export may differ from the reference in its logits."""
NUMBERS = ("max_abs_logit_diff", "mean_kl", "top1_agreement")
"""Of a Difference, what every export says of itself first."""
BATCH = 4
"""Prompts computed together, to see what that does."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a runtime did with the questions, in their order."""

    runtime: str
    """Its name and version."""
    prompts: list[list[int]]
    """Token ids that it made of the messages."""
    said: list[Said]
    """`answer` as it was generated, a stop token at its end left out; one in its middle is kept."""
    ends: list[int] | None = None
    """The tokens that it stops at, where it says so."""


@dataclass(frozen=True, slots=True)
class Allowed:
    max_abs_logit_diff: float
    mean_kl: float
    """Nats a token."""
    margin: float
    """Nats between two tokens that rounding may decide."""


def rounding(job: Job, model, asked: Sequence[Question], reference: Sequence[Said]) -> Difference:
    """How far the reference is from itself computed otherwise: `model` with its prompts in batches, and in `job.dtype`.

    The larger of the two, number by number.
    """
    import torch

    found = difference(reference, _in_batches(model, asked, reference))
    if job.dtype != job.trained_dtype:
        other = model.to(getattr(torch, job.dtype)) if job.method not in ("qlora",) else job.adapted(job.dtype)
        along = ask(other, job.tokenizer, asked, along=reference, new_tokens=1)
        found = _larger(found, difference(reference, [_with(said, a.logits) for said, a in zip(reference, along, strict=True)]))
    return found


def _in_batches(model, asked: Sequence[Question], reference: Sequence[Said]) -> list[Said]:
    """Logits along the reference's answers, BATCH rows at a time, padded on the right with the mask that says so."""
    import torch

    device, found = next(model.parameters()).device, []
    rows = [q.prompt + s.answer for q, s in zip(asked, reference, strict=True)]
    for first in range(0, len(rows), BATCH):
        some = rows[first:first + BATCH]
        longest = max(map(len, some)) + 1
        ids = torch.tensor([r + [0] * (longest - len(r)) for r in some], device=device)
        mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in some], device=device)
        with torch.inference_mode():
            logits_BTV = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        for row, question, said in zip(logits_BTV, asked[first:], reference[first:], strict=False):
            begin = len(question.prompt) - 1
            found.append(_with(said, row[begin:begin + len(said.answer) + said.stopped].float().cpu()))
    return found


def _with(said: Said, logits) -> Said:
    return Said(said.text, said.answer, said.stopped, logits)


def _larger(a: Difference, b: Difference) -> Difference:
    """Number by number the one that is further from "the same"."""
    def worse(name: str):
        x, y = getattr(a, name), getattr(b, name)
        return min(x, y) if name in ("top1_agreement", "same_texts") else max(x, y)

    return Difference(**{f.name: worse(f.name) for f in fields(Difference) if f.name != "parted"}, parted=[])


def allowed(job: Job, reference: Sequence[Said]) -> Allowed:
    """What may differ, by `job.rounding` and one unit in the last place of the largest logit, of the coarser of the dtypes."""
    import torch

    eps = max(torch.finfo(getattr(torch, name)).eps for name in (job.dtype, job.trained_dtype))
    unit = eps * max(float((s.logits - s.logits.mean(-1, keepdim=True)).abs().max()) for s in reference if len(s.logits))
    logits = TIMES * max(job.rounding.max_abs_logit_diff if job.rounding else 0.0, unit)
    kl = TIMES**2 * max(job.rounding.mean_kl if job.rounding else 0.0, unit**2)
    return Allowed(logits, kl, 2 * logits)


def judge(job: Job, asked: Sequence[Question], reference: Sequence[Said], found: Found) -> dict:
    """`{verdict, message, fix, runtime, questions, same_prompts, stops{}, same_texts, parted[], allowed{}, failed[]}`, and
    `difference{}` with its first numbers where the runtime gave logits along the reference's answers."""
    limit, failed = allowed(job, reference), []
    same_prompts = sum(p == q.prompt for p, q in zip(found.prompts, asked, strict=True))
    result = {"runtime": found.runtime, "questions": len(asked), "same_prompts": same_prompts}
    if same_prompts < len(asked):
        at = next(i for i, (p, q) in enumerate(zip(found.prompts, asked, strict=True)) if p != q.prompt)
        failed.append(("template", f"its prompt for {asked[at].id} has other tokens than in training "
                       f"({_first_other(job, asked[at].prompt, found.prompts[at])})"))
    missing = [] if found.ends is None else [t for t in job.stops if t not in found.ends]
    ran_on = [i for i, s in enumerate(found.said) if set(s.answer) & set(job.stops)]
    result["stops"] = {"asked": job.stops, "known": found.ends, "stopped": sum(s.stopped for s in found.said),
                       "reference_stopped": sum(s.stopped for s in reference), "ran_on": len(ran_on)}
    if missing or ran_on:
        names = ", ".join(repr(job.tokenizer.decode([t])) for t in missing or job.stops)
        failed.append(("stops", f"it does not stop at {names}" if missing else
                       f"{len(ran_on)} of {len(asked)} answers go on after {names}"))
    far = None
    if all(s.logits is not None for s in found.said):
        far = difference(reference, found.said)
        parted = far.parted
        result |= {"difference": far.as_dict()} | {k: getattr(far, k) for k in NUMBERS}
        if far.max_abs_logit_diff > limit.max_abs_logit_diff or far.mean_kl > limit.mean_kl:
            failed.append(("logits", f"its logits differ by up to {far.max_abs_logit_diff:.2g} (rounding: at most "
                           f"{limit.max_abs_logit_diff:.2g}), KL {far.mean_kl:.2g} nats a token (at most {limit.mean_kl:.2g})"))
    else:
        places = [(i, parting(r, s)) for i, (r, s) in enumerate(zip(reference, found.said, strict=True))]
        parted = [{"question": i, **place} for i, place in places if place]
    clear = [p for p in parted if p["margin"] is not None and p["margin"] > limit.margin]
    if clear and not ran_on and same_prompts == len(asked):
        failed.append(("texts", f"{len(clear)} of {len(asked)} answers part where the reference was sure, by up to "
                       f"{max(p['margin'] for p in clear):.2g} nats (rounding: at most {limit.margin:.2g})"))
    result |= {"same_texts": 1 - len(parted) / len(asked), "parted": parted, "allowed": asdict(limit),
               "failed": [name for name, _ in failed]}
    if failed:
        return result | {"verdict": "fail", "message": f"{found.runtime}: " + "; ".join(said for _, said in failed),
                         "fix": FIXES[failed[0][0]]}
    logits = f"logits within {far.max_abs_logit_diff:.2g}, KL {far.mean_kl:.2g} nats a token, " if far else ""
    return result | {"verdict": "pass", "message": f"{found.runtime}: the same prompts and stops, {logits}"
                     f"{len(asked) - len(parted)} of {len(asked)} greedy answers the same"
                     + (f" and {len(parted)} that part at a tie" if parted else "")}


FIXES = {"template": "the runtime must be given the chat template of the release: compare chat_template.jinja",
         "stops": "the stop tokens must be in the runtime's generation config: compare generation_config.json",
         "logits": "it is not the model that was evaluated: compare the adapter's settings, the base and the dtype",
         "texts": "it is not the model that was evaluated: compare the adapter's settings, the base and the dtype"}


def _first_other(job: Job, ours: list[int], theirs: list[int]) -> str:
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))

    def shown(ids: list[int]) -> str:
        return repr(job.tokenizer.decode(ids[at:at + 4])) if at < len(ids) else "the end"

    return f"token {at}: {shown(theirs)}, trained {shown(ours)}"
