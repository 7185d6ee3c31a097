"""Items of suite files as rows, so that leaks into training are looked for in them as in any held-out row."""

from __future__ import annotations

from tunesmith.data.rows import Message, Row
from tunesmith.recipe.suites import Item, LoadedSuite, Suite


def messages_of(suite: Suite, item: Item) -> list[Message]:
    """What is asked, after the suite's system message unless the item has one of its own."""
    asked = [m.model_dump() for m in item.messages] if item.messages else [{"role": "user", "content": item.prompt}]
    if suite.system and asked[0]["role"] != "system":
        return [{"role": "system", "content": suite.system}, *asked]
    return asked


def references_of(item: Item) -> tuple[str, ...]:
    """Right answers, the one that readers are shown first."""
    return tuple(item.references or ([item.reference] if item.reference is not None else ()))


def rows_of_suite(loaded: LoadedSuite) -> list[Row]:
    """Each item with its first right answer. One that only a checker judges has an empty answer: its question is looked for."""
    rows = []
    for where, item in zip(loaded.where, loaded.suite.items, strict=True):
        answer = next(iter(references_of(item)), item.answer or "")
        rows.append(Row([*messages_of(loaded.suite, item), {"role": "assistant", "content": answer}], where))
    return rows
