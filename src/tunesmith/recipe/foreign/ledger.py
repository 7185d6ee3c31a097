"""The account of an import: each key of the source, once, and what the recipe says because of it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.errors import Problem
from tunesmith.recipe.foreign.rules import Bad, Copy, Joint, NoEqual, Tool
from tunesmith.recipe.load import dotted

MOST_SHOWN = 200
"""Nodes of a value that a report shows; an alias can make a small file mean a huge one."""
NOT_SET = "not set"
Key = str | tuple
"""A top-level name, or the path of a nested one: ("datasets", 0, "path")."""


@dataclass
class Entry:
    """One value of the recipe, and the comment that says where it is from."""

    value: Any
    comments: dict[str, list[str]]
    """What is said about it, and the keys that it is said of."""


@dataclass
class Ledger:
    tool: Tool
    path: Path
    given: dict[str, Any]
    """The source, its keys as text."""
    lines: dict[tuple, int]
    folder: Path
    """What the recipe's paths are relative to."""
    recipe: dict[str, Entry] = field(default_factory=dict)
    """By dotted key."""
    mapped: list[dict] = field(default_factory=list)
    unsupported: list[dict] = field(default_factory=list)
    ignored: list[dict] = field(default_factory=list)
    added: list[dict] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    """What one rule measured and another one needs."""

    def get(self, key: str, read=None, default: Any = None) -> Any:
        """The value of a top-level key as `read` reads it; `default` when it is not set. Raises Bad, with the key."""
        value = self.given.get(key)
        if unset(value):
            return default
        return value if read is None else self.read(key, value, read)

    def read(self, key: Key, value: Any, read) -> Any:
        try:
            return read(value)
        except Bad as error:
            self.bad(key, f"{dotted(_path(key))}: {error} (got {shown(value)})")
            raise Stop from error

    def line(self, key: Key) -> int:
        path = _path(key)
        while path not in self.lines and path:
            path = path[:-1]
        return self.lines.get(path, 1)

    def where(self, key: Key) -> str:
        return f"{self.path}:{self.line(key)}"

    def value(self, key: Key) -> Any:
        found: Any = self.given
        for part in _path(key):
            found = found.get(part) if isinstance(found, dict) else found[part]
        return found

    def has(self, key: str) -> bool:
        return not unset(self.given.get(key))

    def maps(self, key: Key, to: str, value: Any, note: str = "") -> None:
        """The recipe says the same. A key that is not set is passed over, so that a rule need not ask."""
        if self._unset(key):
            return
        self.mapped.append({"from": dotted(_path(key)), "to": to, "value": plain(value), "line": self.line(key), "note": note})
        self._write(to, value, note, dotted(_path(key)))

    def refuses(self, key: Key, why: str, consequence: str, fix: str, to: str | None = None, value: Any = None) -> None:
        """Nothing in a recipe says the same; `to` and `value` are the nearest."""
        if self._unset(key):
            return
        self.unsupported.append({"key": dotted(_path(key)), "value": told(key, self.value(key)), "line": self.line(key),
                                 "where": self.where(key), "why": why, "consequence": consequence, "fix": fix,
                                 "instead": None if to is None else {"to": to, "value": plain(value)}})
        if to is not None:
            self._write(to, value, "the nearest", f"NOT {dotted(_path(key))} {shown(self.value(key), 40)}")

    def remarks(self, key: str, value: Any, where: str, why: str, consequence: str, fix: str) -> None:
        """Something without an equal that stands in another file than the source."""
        self.unsupported.append({"key": key, "value": plain(value), "line": None, "where": where, "why": why,
                                 "consequence": consequence, "fix": fix, "instead": None})

    def ignores(self, key: Key, why: str) -> None:
        if not self._unset(key):
            self.ignored.append({"key": dotted(_path(key)), "value": told(key, self.value(key)), "line": self.line(key),
                                 "why": why})

    def adds(self, to: str, value: Any, why: str) -> None:
        """A value that no key of the source gave."""
        if to not in self.recipe:
            self.added.append({"to": to, "value": plain(value), "why": why})
            self._write(to, value, why)

    def takes_back(self, to: str, why: str) -> None:
        """A value that another key has made meaningless is not written after all."""
        if self.recipe.pop(to, None) is None:
            return
        for told_ in [m for m in self.mapped if m["to"] == to]:
            self.mapped.remove(told_)
            self.ignored.append({"key": told_["from"], "value": told_["value"], "line": told_["line"], "why": why})
        self.added = [a for a in self.added if a["to"] != to]

    def bad(self, key: Key, message: str, fix: str | None = None) -> None:
        self.problems.append(Problem(code="bad_value", where=self.where(key), message=message, fix=fix))

    def _write(self, to: str, value: Any, note: str, key: str | None = None) -> None:
        entry = self.recipe.setdefault(to, Entry(value, {}))
        entry.value = value
        entry.comments.setdefault(note, []).extend([key] if key else [])

    def _unset(self, key: Key) -> bool:
        return isinstance(key, str) and not self.has(key)

    def settle(self) -> None:
        """Apply the tool's tables to every key. Nested keys are settled by the rule of their top-level key."""
        rules = self.tool.rules()
        for key, value in self.given.items():
            rule = rules.get(key)
            if rule is None:
                near = nearest(key, list(rules))
                self.unsupported.append({
                    "key": key, "value": told(key, value), "line": self.line(key), "where": self.where(key), "instead": None,
                    "why": f"{self.tool.title} {self.tool.version} has no such key",
                    "consequence": "it says nothing to the recipe",
                    "fix": f"did you mean {near!r}?" if near else "take it out, or set what it meant in the recipe by hand"})
            elif unset(value):
                self.ignored.append({"key": key, "value": None, "line": self.line(key), "why": NOT_SET})
            elif isinstance(rule, Copy):
                self._try(lambda key=key, value=value, rule=rule: self.maps(
                    key, rule.to, self.read(key, value, rule.read), rule.note))
            elif isinstance(rule, NoEqual):
                if any(value is off or (type(value) is not bool and not isinstance(off, bool) and value == off)
                       for off in rule.off):
                    self.ignores(key, "off, or the same as here")
                else:
                    self.refuses(key, rule.why, rule.consequence, rule.fix)
            elif not isinstance(rule, Joint):
                self.ignores(key, rule.why)
        for joint in self.tool.joints:
            self._try(lambda joint=joint: joint.read(self))

    def _try(self, step) -> None:
        try:
            step()
        except Stop:
            return  # the problem is on the list; the next rule may find more


class Stop(Exception):
    """A rule met a value it cannot read, and has said so."""


def nearest(key: str, known: list[str]) -> str | None:
    """The known name most like it; one that it holds, or that holds it, before others."""
    kin = [k for k in known if min(len(k), len(key)) > 5 and (k in key or key in k)]
    found = difflib.get_close_matches(key, kin, n=1, cutoff=0) or difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return found[0] if found else None


def told(key: Key, value: Any) -> Any:
    """The value as a report may show it: not when the key is of a secret."""
    name = str(_path(key)[-1]).lower()
    return "***" if name.endswith(("api_key", "hub_token", "auth_token", "_secret", "webhook_url")) else plain(value)


def unset(value: Any) -> bool:
    return value is None or value in ("", [], {})


def plain(value: Any, budget: list[int] | None = None) -> Any:
    """The value as JSON can say it, and not longer than a reader wants."""
    budget = budget if budget is not None else [MOST_SHOWN]
    budget[0] -= 1
    if budget[0] < 0:
        return "..."
    if isinstance(value, dict):
        return {_short(k): plain(v, budget) for k, v in list(value.items())[:MOST_SHOWN]}
    if isinstance(value, list):
        return [plain(v, budget) for v in value[:MOST_SHOWN]]
    if value is None or isinstance(value, bool) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    if isinstance(value, float) and value - value == 0:
        return value
    return _short(value)


def shown(value: Any, most: int = 60) -> str:
    """One line of it, for a message or a comment."""
    line = repr(plain(value))
    return line if len(line) <= most else line[: most - 3] + "..."


def _short(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
        return f"a number of {value.bit_length()} bits"
    line = str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    return line if len(line) <= 2000 else line[:2000] + "..."


def _path(key: Key) -> tuple:
    return key if isinstance(key, tuple) else (key,)
