"""What a table can say about a key of another tool, and how its values are read.

    Copy      one key, one key of the recipe
    Joint     several keys that mean something only together; a function reads them
    NoEqual   nothing in a recipe does it: what it would have done, and how to get near
    Skip      it changes nothing here, whatever its value
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Bad(ValueError):
    """A value that cannot be read. The text says what belongs there."""


def number(value: Any) -> float:
    """A float from a number, or from text that is one: other tools take `"2e-4"` too. Raises Bad."""
    if not isinstance(value, bool) and isinstance(value, int | float | str):
        try:
            found = float(value)
        except (ValueError, OverflowError):
            found = float("nan")
        if found - found == 0:  # neither nan nor infinite
            return found
    raise Bad("a number belongs here")


def whole(value: Any) -> int:
    found = number(value)
    if found != int(found):
        raise Bad("a whole number belongs here")
    return int(found)


def count(value: Any) -> int:
    if (found := whole(value)) < 1:
        raise Bad("a whole number from 1 belongs here")
    return found


def flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise Bad("true or false belongs here")


def text(value: Any) -> str:
    if isinstance(value, str) and value.strip():
        return value
    raise Bad("text belongs here")


def names(value: Any) -> list[str]:
    """A list of texts, or one text with commas."""
    parts = value.split(",") if isinstance(value, str) else value
    if isinstance(parts, list) and parts and all(isinstance(p, str) and p.strip() for p in parts):
        return [p.strip() for p in parts]
    raise Bad("a name or a list of names belongs here")


@dataclass(frozen=True, slots=True)
class Copy:
    to: str
    read: Callable[[Any], Any]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Joint:
    keys: str
    """Names, separated by white space."""
    to: str
    """Keys of the recipe, for the reference; empty when it only decides."""
    how: str
    read: Callable


@dataclass(frozen=True, slots=True)
class NoEqual:
    keys: str
    why: str
    """What it would have done."""
    fix: str
    off: tuple = (False, 0)
    """Values with which it does nothing."""
    consequence: str = "the recipe trains without it"


@dataclass(frozen=True, slots=True)
class Skip:
    keys: str
    why: str


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    title: str
    version: str
    copies: dict[str, Copy]
    joints: tuple[Joint, ...]
    no_equal: tuple[NoEqual, ...]
    skipped: tuple[Skip, ...]
    signs: frozenset[str]
    """Keys by which its files are known."""

    def rules(self) -> dict[str, Copy | Joint | NoEqual | Skip]:
        """The one rule of every key. Raises AssertionError when a table names a key twice."""
        found: dict[str, Copy | Joint | NoEqual | Skip] = {}
        for key, rule in [*self.copies.items(), *((k, r) for r in (*self.joints, *self.no_equal, *self.skipped)
                                                  for k in r.keys.split())]:
            assert key not in found, f"{self.name}: {key} has two rules"
            found[key] = rule
        return found
