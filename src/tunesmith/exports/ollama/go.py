"""Go's text/template, as much of it as our Ollama templates use, and an error for the rest.

    {{- ... }}                                        white space before it goes, as `-}}` takes what follows
    "text"   .Content   $.System   $name              written out
    $name := true      $name = false                  variables
    if, else if, else, end    range .Messages         of `eq a b`, or of a value: false and "" are false

It is written from the language's documentation (https://pkg.go.dev/text/template), and beside Go itself in the tests, where
that is installed. What Ollama does before: a system message is `.System`, and stays among `.Messages`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

ACTION = re.compile(r"\{\{(-(?=\s))?\s*(.*?)\s*((?<=\s)-)?\}\}", re.DOTALL)
WORD = re.compile(r'\s*("(?:[^"\\]|\\.)*"|\$[A-Za-z_]*(?:\.[A-Za-z]+)*|(?:\.[A-Za-z]+)+|[A-Za-z]+|:=|=)')


def render(source: str, messages: list[dict]) -> str:
    """The text that the template writes of a conversation, as Ollama gives it one.

    Raises:
        ValueError: it has something that is not done here.
    """
    data = {"System": "\n\n".join(m["content"] for m in messages if m["role"] == "system"),
            "Messages": [{"Role": m["role"], "Content": m["content"]} for m in messages]}
    steps = list(_lexed(source))
    block, rest = _block(steps, 0)
    if rest != len(steps):
        raise ValueError("an end without a beginning")
    written: list[str] = []
    _run(block, data, data, {}, written)
    return "".join(written)


@dataclass(frozen=True, slots=True)
class _Node:
    kind: str
    words: list[str]
    body: list[_Node] = field(default_factory=list)
    other: list[_Node] = field(default_factory=list)


def _lexed(source: str) -> Iterator[tuple[str, Any]]:
    """("text", str) and ("action", words)."""
    at, trim = 0, False
    for match in ACTION.finditer(source):
        text = source[at:match.start()]
        text = text.lstrip(" \t\r\n") if trim else text
        if text := text.rstrip(" \t\r\n") if match[1] else text:
            yield "text", text
        yield "action", _words(match[2])
        at, trim = match.end(), bool(match[3])
    text = source[at:].lstrip(" \t\r\n") if trim else source[at:]
    if "{{" in text:
        raise ValueError("an action without an end")
    if text:
        yield "text", text


def _words(action: str) -> list[str]:
    found, at = [], 0
    while at < len(action):
        match = WORD.match(action, at)
        if not match:
            raise ValueError(f"not done here: {action!r}")
        found.append(match[1])
        at = match.end()
    return found


def _block(steps: list, at: int) -> tuple[list[_Node], int]:
    """(nodes up to the `end` or `else` that closes them, its place)."""
    nodes = []
    while at < len(steps):
        kind, value = steps[at]
        if kind == "text":
            nodes.append(_Node("text", [value]))
        elif value[0] in ("end", "else"):
            return nodes, at
        elif value[0] in ("if", "range"):
            node, at = _branches(steps, at)
            nodes.append(node)
        else:
            nodes.append(_Node("set" if value[1:2] in ([":="], ["="]) else "write", value))
        at += 1
    return nodes, at


def _branches(steps: list, at: int) -> tuple[_Node, int]:
    """(an if or a range with its branches, the place of its end)."""
    kind, *words = steps[at][1]
    body, at = _block(steps, at + 1)
    other: list[_Node] = []
    if at < len(steps) and steps[at][1][0] == "else":
        if steps[at][1][1:]:  # else if ...: it shares our end
            node, at = _branches([*steps[:at], ("action", steps[at][1][1:]), *steps[at + 1:]], at)
            return _Node(kind, words, body, [node]), at
        other, at = _block(steps, at + 1)
    if at >= len(steps) or steps[at][1] != ["end"]:
        raise ValueError(f"{kind} without an end")
    return _Node(kind, words, body, other), at


def _run(nodes: list[_Node], dot: Any, root: dict, variables: dict, written: list[str]) -> None:
    for node in nodes:
        if node.kind == "text":
            written.append(node.words[0])
        elif node.kind == "write":
            value = _value(node.words, dot, root, variables)
            if not isinstance(value, str):
                raise ValueError(f"not done here: writing {node.words}")
            written.append(value)
        elif node.kind == "set":
            name, sign, *value = node.words
            if sign == "=" and name not in variables:
                raise ValueError(f"{name} is not declared")
            variables[name] = _value(value, dot, root, variables)
        elif node.kind == "if":
            _run(node.body if _value(node.words, dot, root, variables) else node.other, dot, root, variables, written)
        else:
            items = _value(node.words, dot, root, variables)
            for item in items:
                _run(node.body, item, root, variables, written)
            if not items:
                _run(node.other, dot, root, variables, written)


def _value(words: list[str], dot: Any, root: dict, variables: dict) -> Any:
    if words[0] == "eq" and len(words) == 3:
        return _value(words[1:2], dot, root, variables) == _value(words[2:], dot, root, variables)
    if len(words) != 1:
        raise ValueError(f"not done here: {' '.join(words)}")
    word = words[0]
    if word.startswith('"'):
        return json.loads(word)  # the escapes that we write are the same in Go
    if word in ("true", "false"):
        return word == "true"
    name, *fields = word.split(".")
    value = dot if name == "" else root if name == "$" else variables.get(name)
    for one in fields:
        if not isinstance(value, dict) or one not in value:
            raise ValueError(f"no {word} here")
        value = value[one]
    if value is None:
        raise ValueError(f"no {word} here")
    return value
