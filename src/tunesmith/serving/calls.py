"""Calls of tools in an answer's text, read as it grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import regex

from tunesmith.serving.tools import ID, ID_PATTERN, CallFormat


@dataclass(frozen=True, slots=True)
class Said:
    """A stretch of text; or of the arguments of call number `call`, which begins where there is a `name`."""

    text: str = ""
    call: int | None = None
    name: str | None = None


class CallReader:
    """Takes an answer apart: `feed` it pieces, and `finish`.

        text ──trigger──> head ──name──> arguments ──}──> after ──┬── another head
                            └─ not a call after all: text         └── close: the end

    What could still become a call is held back; what was begun and is none is text.
    """

    def __init__(self, form: CallFormat, names: Sequence[str]):
        name = f"(?P<name>{'|'.join(map(regex.escape, names))})"
        self._trigger = form.trigger
        self._head = regex.compile(_pattern(form.open) + name + _pattern(form.middle))
        self._more = regex.compile(_pattern(form.more) + name + _pattern(form.middle)) if form.more is not None else None
        self._close = regex.compile(_pattern(form.close))
        self._state = "text" if form.trigger else "head"
        self._buffer = ""
        self._depth, self._in_string, self._escaped = 0, False, False
        self.calls = 0
        """How many have begun."""

    def feed(self, text: str) -> list[Said]:
        self._buffer += text
        return self._run(False)

    def finish(self) -> list[Said]:
        """What was held back, when no more text comes."""
        return self._run(True)

    def _run(self, final: bool) -> list[Said]:
        said: list[Said] = []
        while self._buffer:
            state, length = self._state, len(self._buffer)
            said += getattr(self, f"_{state}_state")(final)
            if self._state == state and len(self._buffer) == length:
                break
        return [s for s in said if s.text or s.name]

    def _text_state(self, final: bool) -> list[Said]:
        found = self._buffer.find(self._trigger) if self._trigger else -1
        if found >= 0:
            self._state = "head"
            return [Said(self._cut(found).rstrip())]
        keep = 0 if final else self._waiting()
        return [Said(self._cut(len(self._buffer) - keep))]

    def _waiting(self) -> int:
        """Length of the tail that could become a mark, and of the white space before it, which goes with a mark."""
        if not self._trigger:
            return 0
        tail = max((n for n in range(1, len(self._trigger)) if self._buffer.endswith(self._trigger[:n])), default=0)
        return len(self._buffer) - len(self._buffer[: len(self._buffer) - tail].rstrip())

    def _head_state(self, final: bool) -> list[Said]:
        found = self._head.match(self._buffer, partial=True)
        if found and not found.partial:
            return self._begin(found)
        if found and not final:
            return []
        self._state = "text"
        return [Said(self._cut(max(1, len(self._trigger))))]

    def _begin(self, found) -> list[Said]:
        self._cut(found.end())
        self._state, self._depth = "arguments", 0
        self.calls += 1
        return [Said(call=self.calls - 1, name=found["name"])]

    def _arguments_state(self, _final: bool) -> list[Said]:
        for at, character in enumerate(self._buffer):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = character == "\\"
                self._in_string = character != '"'
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if not self._depth:
                    self._state = "after"
                    return [Said(self._cut(at + 1), self.calls - 1)]
        return [Said(self._cut(len(self._buffer)), self.calls - 1)]

    def _after_state(self, final: bool) -> list[Said]:
        more = self._more and self._more.match(self._buffer, partial=True)
        if more and not more.partial:
            return self._begin(more)
        if more and not final:
            return []
        close = self._close.match(self._buffer, partial=True)
        if close and close.partial and not final:
            return []
        self._cut(close.end() if close else 0)
        self._trigger, self._state = "", "text"
        return []

    def _cut(self, length: int) -> str:
        cut, self._buffer = self._buffer[:length], self._buffer[length:]
        return cut


def _pattern(text: str) -> str:
    return "".join(ID_PATTERN if c == ID else regex.escape(c, special_only=False) for c in text)
