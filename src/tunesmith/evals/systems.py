"""Who answers, and asking them: the base as it is, the base with help, the tuned model, all on the same items."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

from tunesmith.data.rows import Message, Row
from tunesmith.errors import DataError, Problem
from tunesmith.evals.items import Item, Outcome, Suite
from tunesmith.evals.metrics import METRICS, Need
from tunesmith.evals.retrieval import Library, Passage, with_passages

Say = Callable[[str], None]
TUNED, ZERO_SHOT, FEW_SHOT, RETRIEVAL, TUNED_RETRIEVAL = "tuned", "zero_shot", "few_shot", "retrieval", "tuned_retrieval"
HELPED_KINDS = ("test", "suite")
"""Kinds of suites that baselines with help are measured on: examples of the task say nothing of other behaviour."""
SHOWN_PROBLEMS = 5


@dataclass(frozen=True, slots=True)
class System:
    name: str
    adapter: bool
    """Whether an adapter is on."""
    helped: Callable[[Item], list[Message]] | None = None
    """The messages with what this system adds to them; None: the item's own. The loss is measured only then."""
    offer: Callable[[Item], Sequence] | None = None
    """What is added: the shots, or the passages that were found, the most useful first."""
    put: Callable[[Item, Sequence], list[Message]] | None = None
    """The item's messages with some of the offer."""
    what: str = ""
    """What it calls them: `examples`, `passages`."""
    temperature: float = 0.0
    """0: greedy, as everything is measured but noise."""
    seed: int = 0
    carrier: str | None = None
    """Name of its own adapter inside the model, of a composed adapter's parent; None: the run's."""


def helped_by(name: str, adapter: bool, what: str, offer: Callable[[Item], Sequence],
              put: Callable[[Item, Sequence], list[Message]]) -> System:
    return System(name, adapter, lambda item: put(item, offer(item)), offer, put, what)


def few_shot(shots: list[Row]) -> System:
    """The base, shown some questions with their answers before each question."""

    def put(item: Item, some: Sequence[Row]) -> list[Message]:
        shown = [{"role": m["role"], "content": m["content"]} for s in some for m in s.messages if m["role"] != "system"]
        system = [m for m in item.messages if m["role"] == "system"]
        return [*system, *shown, *(m for m in item.messages if m["role"] != "system")]

    return helped_by(FEW_SHOT, False, "examples", lambda _item: shots, put)


def retrieval(library: Library, adapter: bool) -> System:
    """The base, or the tuned model, shown the passages that fit the question best."""

    def put(item: Item, some: Sequence[tuple[Passage, float]]) -> list[Message]:
        return with_passages(item, [passage for passage, _ in some])

    name = TUNED_RETRIEVAL if adapter else RETRIEVAL
    return helped_by(name, adapter, "passages", lambda item: library.best(item.prompt), put)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A system whose prompts fit the base's context, for one suite."""

    system: System
    shown: list[Sequence]
    """What each item is shown: all of the offer, or as much as fits."""
    fewer: int
    """Items that are shown less than there was to show."""
    prompt_tokens: float
    """Mean length of a prompt."""


def fit(tokenizer, suite: Suite, system: System, context: int | None) -> Fitted:
    """Each item with as much of the system's help as leaves room for an answer in `context` tokens (None: without limit).

    Raises:
        DataError: an item that does not fit with even one example or passage, or not by itself.
    """
    from tunesmith.template.render import generation_prompt

    room = (context or 10**9) - suite.max_new_tokens
    shown, lengths, problems, fewer = [], [], [], 0
    for item in suite.items:
        offer = list(system.offer(item)) if system.offer else []
        some, tokens = offer, 0
        while True:
            messages = system.put(item, some) if system.put else item.messages
            tokens = len(generation_prompt(tokenizer, messages, item.tools))
            if tokens <= room or len(some) <= 1:
                break
            some = some[:-1]
        # What has no help to leave out is answered as far as the context reaches: only a prompt that fills it is refused.
        if tokens > (room if some else (context or 10**9) - 1):
            alone = f"with one of its {system.what}" if some else "by itself"
            problems.append(Problem(code="context", where=item.id, message=f"{tokens} tokens {alone}; the context takes "
                                    f"{context}, up to {suite.max_new_tokens} of them for the answer"))
        fewer += len(some) < len(offer)
        shown.append(some)
        lengths.append(tokens)
    if problems:
        fix = (f"take {system.name} out of eval.baselines, or give shorter {system.what}" if system.offer
               else "take the items out, or a base with a longer context")
        raise DataError(f"{len(problems)} of {len(suite.items)} prompts of {system.name} on {suite.name!r} do not fit the "
                        "base's context", fix=fix, problems=problems[:SHOWN_PROBLEMS])
    if system.put:
        by_id = {item.id: some for item, some in zip(suite.items, shown, strict=True)}
        system = replace(system, helped=lambda item, put=system.put: put(item, by_id[item.id]))
    return Fitted(system, shown, fewer, sum(lengths) / max(1, len(lengths)))


def systems_for(suite: Suite, systems: list[System]) -> list[System]:
    """Those that are asked about a suite: with help, and parents, only where it is the task that is measured."""
    return [s for s in systems if (s.offer is None and s.carrier is None) or suite.kind in HELPED_KINDS]


def shots_from(rows: Iterable[Row], count: int, seed: int) -> list[Row]:
    """Training rows to show: one question and its answer each, the same for every question."""
    rows = [r for r in rows
            if r.desirable is not False and [m["role"] for m in r.messages if m["role"] != "system"] == ["user", "assistant"]]
    return random.Random(f"{seed}/shots").sample(rows, min(count, len(rows)))


def ask(model, tokenizer, suite: Suite, systems: list[System], *, batch_size: int, known: dict[str, list[dict]],
        say: Say = lambda _line: None) -> dict[str, list[Outcome]]:
    """{system: an outcome for each item}, as far as the suite's metrics need. Systems in `known` are not asked again."""
    said, needs = {}, {METRICS[name].needs for name in suite.metrics}
    for system in systems:
        if system.name in known:
            said[system.name] = [Outcome(**o) for o in known[system.name]]
            say(f"  {system.name}: {len(suite.items)} rows answered before")
            continue
        with carried_by(model, system.carrier) if system.adapter else model.disable_adapter():
            said[system.name] = _outcomes(model, tokenizer, suite, system, batch_size, needs)
        say(f"  {system.name}: {len(suite.items)} rows answered")
    return said


@contextmanager
def carried_by(model, name: str | None) -> Iterator[None]:
    """The model with this adapter instead of the run's."""
    if name is None:
        yield
        return
    model.set_adapter(name)
    try:
        yield
    finally:
        model.set_adapter("default")


def remembered(said: dict[str, list[Outcome]]) -> dict[str, list[dict]]:
    """What can be given as `known` the next time: everything but the tuned model's."""
    return {name: [asdict(o) for o in outcomes] for name, outcomes in said.items() if not name.startswith(TUNED)}


def _outcomes(model, tokenizer, suite: Suite, system: System, batch_size: int, needs: set[Need]) -> list[Outcome]:
    from tunesmith.evals.likelihood import choice_losses, row_losses
    from tunesmith.objectives.families import family
    from tunesmith.objectives.sft import sample
    from tunesmith.serving.generate import answers
    from tunesmith.template.render import generation_prompt, stop_ids

    found = [Outcome() for _ in suite.items]
    if "answer" in needs:
        prompts = [i.begun or generation_prompt(tokenizer, system.helped(i) if system.helped else i.messages, i.tools)
                   for i in suite.items]
        said = answers(model, tokenizer, prompts, stop_ids(tokenizer), max_new_tokens=suite.max_new_tokens,
                       batch_size=batch_size, temperature=system.temperature, seed=system.seed)
        for outcome, (text, stopped) in zip(found, said, strict=True):
            outcome.text, outcome.stopped = text, stopped
    if "likelihood" in needs and system.helped is None:
        losses = row_losses(model, [sample(*(i.tokens or _rendered(tokenizer, i, i.reference))) for i in suite.items])
        for outcome, nats, tokens in zip(found, *losses, strict=True):
            outcome.nats, outcome.tokens = nats, tokens
    if "choices" in needs:
        messages = [system.helped(item) if system.helped else None for item in suite.items]
        families = [family(*(_rendered(tokenizer, item, c, m) for c in item.choices))
                    for item, m in zip(suite.items, messages, strict=True)]
        for outcome, nats in zip(found, choice_losses(model, families), strict=True):
            outcome.choices = tuple(-one for one in nats)
    return found


def _rendered(tokenizer, item: Item, answer: str, messages: list[Message] | None = None) -> tuple[list[int], list[bool]]:
    """Ids of question and answer, and which are of that answer, its stop token included."""
    from tunesmith.template.render import render

    shown = [m | {"weight": 0} if m["role"] == "assistant" else m for m in messages or item.messages]
    rendered = render(tokenizer, [*shown, {"role": "assistant", "content": answer}], item.tools)
    return rendered.ids, rendered.trained
