"""Suite files as suites: what a user wrote in YAML, in the shape that everything is measured in."""

from __future__ import annotations

from tunesmith.data.suites import messages_of, references_of
from tunesmith.errors import RecipeError
from tunesmith.evals.items import Item, Suite
from tunesmith.recipe import suites as files
from tunesmith.recipe.load import Loaded

CHECKS = ("regex", "json_schema")
"""Keys of an item that go to its `check`."""


def suites_of_files(loaded: Loaded, taken: list[str]) -> list[Suite]:
    """The suites that `eval.suites` names. `taken` are names of test sets.

    Raises:
        RecipeError: every mistake in them at once, or a suite that is called like a test set.
    """
    found = files.load_suites(loaded)
    for one in found:
        if one.suite.name in taken:
            raise RecipeError(f"suite {one.suite.name!r} has the name of a test set", where=f"{one.name}:1",
                              fix="give it another `name`")
    return [_suite(one, loaded.recipe.eval.max_new_tokens) for one in found]


def _suite(one: files.LoadedSuite, max_new_tokens: int) -> Suite:
    said = one.suite
    source = one.name + (f": {said.source}" if said.source else "") + (f" ({said.licence})" if said.licence else "")
    items = [_item(said, item, where) for where, item in zip(one.where, said.items, strict=True)]
    return Suite(said.name, said.kind, items, tuple(dict.fromkeys(said.metrics)), source, said.max_new_tokens or max_new_tokens)


def _item(suite: files.Suite, item: files.Item, where: str) -> Item:
    choices = tuple(item.choices or ())
    return Item(id=f"{suite.name}/{item.id}" if item.id else where, messages=messages_of(suite, item),
                references=references_of(item), choices=choices, correct=choices.index(item.answer) if choices else None,
                check={k: v for k in CHECKS if (v := getattr(item, k)) is not None}, tags=tuple(dict.fromkeys(item.tags)),
                source=item.source)
