"""Who answers, and asking them: the base as it is, the base with help, the tuned model, all on the same items."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass

from tunesmith.data.rows import Message, Row
from tunesmith.evals.items import Item, Outcome, Suite
from tunesmith.evals.metrics import METRICS, Need

Say = Callable[[str], None]
TUNED, ZERO_SHOT, FEW_SHOT = "tuned", "zero_shot", "few_shot"


@dataclass(frozen=True, slots=True)
class System:
    name: str
    adapter: bool
    """Whether the adapter is on."""
    helped: Callable[[Item], list[Message]] | None = None
    """The messages with what this system adds to them; None: the item's own. Likelihoods are measured only then."""


def few_shot(shots: list[Row]) -> System:
    """The base, shown some questions with their answers before each question."""
    shown = [{"role": m["role"], "content": m["content"]} for s in shots for m in s.messages if m["role"] != "system"]

    def helped(item: Item) -> list[Message]:
        system = [m for m in item.messages if m["role"] == "system"]
        return [*system, *shown, *(m for m in item.messages if m["role"] != "system")]

    return System(FEW_SHOT, False, helped)


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
        with nullcontext() if system.adapter else model.disable_adapter():
            said[system.name] = _outcomes(model, tokenizer, suite, system, batch_size, needs)
        say(f"  {system.name}: {len(suite.items)} rows answered")
    return said


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
        prompts = [generation_prompt(tokenizer, system.helped(i) if system.helped else i.messages, i.tools)
                   for i in suite.items]
        said = answers(model, tokenizer, prompts, stop_ids(tokenizer), max_new_tokens=suite.max_new_tokens,
                       batch_size=batch_size)
        for outcome, (text, stopped) in zip(found, said, strict=True):
            outcome.text, outcome.stopped = text, stopped
    if "likelihood" in needs and system.helped is None:
        losses = row_losses(model, [sample(*(i.tokens or _rendered(tokenizer, i, i.reference))) for i in suite.items])
        for outcome, nats, tokens in zip(found, *losses, strict=True):
            outcome.nats, outcome.tokens = nats, tokens
    if "choices" in needs and system.helped is None:
        families = [family(*(_rendered(tokenizer, item, c) for c in item.choices)) for item in suite.items]
        for outcome, nats in zip(found, choice_losses(model, families), strict=True):
            outcome.choices = tuple(-one for one in nats)
    return found


def _rendered(tokenizer, item: Item, answer: str) -> tuple[list[int], list[bool]]:
    """Ids of question and answer, and which are of that answer, its stop token included."""
    from tunesmith.template.render import render

    shown = [m | {"weight": 0} if m["role"] == "assistant" else m for m in item.messages]
    rendered = render(tokenizer, [*shown, {"role": "assistant", "content": answer}], item.tools)
    return rendered.ids, rendered.trained
