"""JSON that says one thing only, and that can be written again.

Python's reader takes more than JSON: the last of two equal keys, NaN, numbers that become infinite, half a surrogate pair,
and nesting so deep that nothing can write it. Each of them would change or break a row later, far from its line.
"""

from __future__ import annotations

import json
import math
from typing import Any

DEEPEST = 64
"""Lists and mappings within each other. Tool schemas have about ten."""


def parse(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, or one of the above. RecursionError: nested thousands deep.
    """
    value = _DECODER.decode(text)
    if text.count("[") + text.count("{") > DEEPEST:
        _refuse_deep(value)
    if "\\ud" in text.lower():  # JSON can spell half of a surrogate pair; no tokenizer and no file takes one
        json.dumps(value, ensure_ascii=False).encode()
    return value


def kind_of(value: Any) -> str:
    names = {list: "list", str: "text", type(None): "null", bool: "boolean", dict: "mapping"}
    return names.get(type(value), "number")


def _object(pairs: list[tuple[str, Any]]) -> dict:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [k for k, _ in pairs]
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r} stands twice in one object")
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number that JSON and a computer can both hold")
    return number


def _refuse_deep(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level if isinstance(outer, dict | list)
                 for inner in (outer.values() if isinstance(outer, dict) else outer)]
    if any(isinstance(inner, dict | list) for inner in level):
        raise ValueError(f"lists and mappings more than {DEEPEST} deep in each other")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_finite, parse_constant=_finite)
