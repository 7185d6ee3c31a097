"""Answers that are right by a rule rather than by a reference: JSON, a JSON schema, a pattern.

Rules are `Item.check`: {"json_schema": {...}}, {"regex": "..."}; for all rows of a test set they are the recipe's `eval.check`.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from tunesmith.errors import NotMeasured
from tunesmith.evals.items import Item, Outcome
from tunesmith.store.files import canonical_json

PATTERN_SECONDS = 1.0
"""A pattern that takes longer on one answer is backtracking without end."""


def json_valid(outcome: Outcome, _item: Item) -> tuple[float, float]:
    """1 when the whole answer is one JSON value. NaN and Infinity are none (RFC 8259), a fence of backticks is no JSON."""
    return float(_parsed(outcome.text or "")[0]), 1.0


def json_schema(outcome: Outcome, item: Item) -> tuple[float, float]:
    """1 when the answer is JSON that the item's schema allows. `format` is not checked, as is the schema language's default."""
    valid, value = _parsed(outcome.text or "")
    return float(valid and _obeys(value, item)), 1.0


def regex(outcome: Outcome, item: Item) -> tuple[float, float]:
    """1 when the item's pattern is found in the answer; `^...$` for all of it. Raises NotMeasured after PATTERN_SECONDS."""
    return float(_found(item.check["regex"], outcome.text or "", item.id)), 1.0


def needs_schema(item: Item) -> None:
    """Raises ValueError: no schema, or one that is none; or that refers to what is not in it."""
    from jsonschema.exceptions import SchemaError

    if not isinstance(schema := item.check.get("json_schema"), dict | bool):
        raise ValueError("it has no check.json_schema")
    try:
        validator(canonical_json(schema))
    except SchemaError as error:
        raise ValueError(f"check.json_schema is no JSON schema: {error.message}") from error


def needs_pattern(item: Item) -> None:
    """Raises ValueError: no pattern, or one that does not compile."""
    import regex as engine

    if not isinstance(pattern := item.check.get("regex"), str):
        raise ValueError("it has no check.regex")
    try:
        engine.compile(pattern)
    except engine.error as error:
        raise ValueError(f"check.regex does not compile: {error}") from error


def _found(pattern: str, text: str, where: str) -> bool:
    import regex as engine

    try:
        return engine.search(pattern, text, timeout=PATTERN_SECONDS) is not None
    except TimeoutError:
        raise NotMeasured(f"the pattern {pattern!r} takes over {PATTERN_SECONDS:g} s on one answer", where=where,
                          why="nested repetitions try every way to split the text",
                          fix="write it without a repetition inside a repetition") from None


def _parsed(text: str) -> tuple[bool, Any]:
    try:
        return True, json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False, None


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _obeys(value: Any, item: Item) -> bool:
    try:
        return validator(canonical_json(item.check["json_schema"])).is_valid(value)
    except RecursionError:
        return False


@lru_cache(maxsize=1024)
def validator(schema: str):
    """Of a schema as JSON. Nothing is fetched: a reference to another document is an error, here and now.

    Raises:
        SchemaError: not a schema.
        ValueError: it refers to what is not there.
    """
    from jsonschema.exceptions import ValidationError
    from jsonschema.validators import Draft202012Validator, extend, validator_for
    from referencing import Registry, Resource
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    value = json.loads(schema)
    kind = validator_for(value, default=Draft202012Validator)
    kind.check_schema(value)
    resolver = Registry().resolver_with_root(Resource.from_contents(value, default_specification=DRAFT202012))
    for reference in _references(value):
        try:
            resolver.lookup(reference)
        except Unresolvable as error:
            raise ValueError(f"check.json_schema refers to {reference!r}, which is not in it") from error

    def pattern(_validator, wanted, instance, _schema):
        if isinstance(instance, str) and not _found(wanted, instance, "check.json_schema"):
            yield ValidationError(f"{instance!r} does not match {wanted!r}")

    return extend(kind, {"pattern": pattern})(value, registry=Registry())


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [r for v in value.values() for r in _references(v)]
    return [r for v in value for r in _references(v)] if isinstance(value, list) else []
