"""Models that judge: asked through an engine that serves them, several prompts at once.

    score   the model writes under a grammar: a number of the grader's range, and nothing else can come
    label   the model writes nothing: each label is weighed as the whole answer, its stop token included, and the likeliest is
            taken. That is what decoding under a grammar of these labels looks for, and every answer is a label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tunesmith.errors import TunesmithError
from tunesmith.serving.grammar import of_json
from tunesmith.serving.interface import BaseEngine, Served
from tunesmith.serving.sampling import Request
from tunesmith.serving.text import decode
from tunesmith.template.render import generation_prompt, stop_token

LONGEST_SCORE = 16
"""Tokens of a judge's number, unless the grader says how many: a fraction that would go on is cut there."""
Find = Callable[[str], tuple[BaseEngine, Served]]
"""A model by its name. Raises NotFoundError."""


@dataclass(slots=True)
class Usage:
    """Tokens that a model read and wrote."""

    calls: int = 0
    prompt: int = 0
    completion: int = 0

    def add(self, other: Usage) -> None:
        self.calls, self.prompt = self.calls + other.calls, self.prompt + other.prompt
        self.completion += other.completion

    def as_dict(self, model: str) -> dict:
        """As a run's `per_model_usage` has it."""
        return {"model_name": model, "invocation_count": self.calls, "prompt_tokens": self.prompt,
                "completion_tokens": self.completion, "total_tokens": self.prompt + self.completion, "cached_tokens": 0}


@dataclass(frozen=True, slots=True)
class Said:
    text: str | None
    """None: it could not be asked, and `problem` says why."""
    problem: str | None = None
    finish: str = "stop"
    usage: Usage = field(default_factory=Usage)
    weights: dict[str, float] | None = None
    """Of labels: the share of each among all of them."""


def answers(find: Find, model: str, conversations: Sequence[list[dict]], *, max_tokens: int | None = None,
            temperature: float = 0.0, top_p: float = 1.0, seeds: Sequence[int] | None = None,
            default: int, schema: dict | None = None) -> list[Said]:
    """What the model says to each. Prompts that do not fit, or that its template refuses, are problems of their own.

    `default`: how many tokens an answer may have when `max_tokens` is None, or fewer where the context ends before.
    `schema`: answers are JSON that is valid against it.

    Raises:
        UsageError: a schema that answers cannot be held to.
        NotFoundError: nothing is served by that name.
        TunesmithError: the engine stops.
    """
    engine, served = find(model)
    grammar = None if schema is None else of_json(served.tokenizer, schema, served.stop_ids)
    said: list[Said | None] = [None] * len(conversations)
    asked: list[tuple[int, Request]] = []
    for at, messages in enumerate(conversations):
        try:
            ids = generation_prompt(served.tokenizer, messages)
        except TunesmithError as error:
            said[at] = Said(None, f"{error.what}: {error.why}" if error.why else error.what)
            continue
        room, wanted = served.context_tokens - len(ids), max_tokens or 1
        if room < wanted:
            said[at] = Said(None, f"This model's maximum context length is {served.context_tokens} tokens. However, you "
                                  f"requested {len(ids) + wanted} tokens ({len(ids)} in the prompt).")
            continue
        asked.append((at, Request(prompt=ids, max_new_tokens=max_tokens or min(room, default), temperature=temperature,
                                  top_p=top_p, seed=seeds[at] if seeds else 0, grammar=grammar)))
    for (at, request), tokens in zip(asked, engine.ask(served, [r for _, r in asked]), strict=True):
        if tokens[-1].error:
            said[at] = Said(None, f"{tokens[-1].error.what}: {tokens[-1].error.why}")
            continue
        ids = [t.id for t in tokens if t.id is not None]
        said[at] = Said(decode(served.tokenizer, ids), None, tokens[-1].finish or "stop",
                        Usage(1, len(request.prompt), len(ids)))
    return [s for s in said if s is not None]


def labels(find: Find, model: str, conversations: Sequence[list[dict]], names: Sequence[str]) -> list[Said]:
    """The likeliest of the labels as an answer to each. Raises as `answers`."""
    engine, served = find(model)
    ends = [[*served.tokenizer(name, add_special_tokens=False)["input_ids"], stop_token(served.tokenizer)] for name in names]
    said: list[Said | None] = [None] * len(conversations)
    asked: list[tuple[int, list[Request]]] = []
    for at, messages in enumerate(conversations):
        try:
            ids = generation_prompt(served.tokenizer, messages)
        except TunesmithError as error:
            said[at] = Said(None, f"{error.what}: {error.why}" if error.why else error.what)
            continue
        if len(ids) + max(map(len, ends)) > served.context_tokens:
            said[at] = Said(None, f"the prompt has {len(ids)} tokens, the model's context {served.context_tokens}")
            continue
        asked.append((at, [Request(prompt=ids + end, max_new_tokens=0, logprobs=0, echo=True) for end in ends]))
    streams = iter(engine.ask(served, [r for _, requests in asked for r in requests]))
    for at, requests in asked:
        nats = [math.fsum(s.logprob for s in next(streams)[-1].scores[-len(end):]) for end in ends]
        best = max(nats)
        shares = [math.exp(n - best) for n in nats]
        total = math.fsum(shares)
        usage = Usage(1, sum(len(r.prompt) for r in requests), 0)
        said[at] = Said(names[nats.index(best)], None, "stop", usage,
                        {name: share / total for name, share in zip(names, shares, strict=True)})
    return [s for s in said if s is not None]


def number(said: Said, low: float, high: float) -> float | None:
    """The score that a judge wrote. None: it was cut off inside a whole number, or is not in the range."""
    try:
        value = float(said.text or "")
    except ValueError:
        return None
    whole = said.finish == "stop" or "." in (said.text or "")
    return value if whole and low <= value <= high else None
