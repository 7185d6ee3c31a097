"""How a base calls tools: read off its chat template, which is what its adapters were trained with.

A probe call is rendered and taken apart; no model is known by its name.

    Hermes, Qwen   <tool_call>\\n{"name": "NAME", "arguments": ARGS}\\n</tool_call>
    Llama 3        {"name": "NAME", "parameters": ARGS}
    Mistral        [TOOL_CALLS] [{"name": "NAME", "arguments": ARGS, "id": "ID"}]
                   ──open──────────────      ──middle──────      ──close──────
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tunesmith.errors import TemplateError, UsageError
from tunesmith.serving.grammar import check, inline, of_json
from tunesmith.serving.text import special_tokens
from tunesmith.template.render import stop_token

ID = "\x00"
"""Where a template writes the id of a call."""
ID_PATTERN = "[a-zA-Z0-9]{9}"
"""Nine letters and digits, as Mistral's templates ask; others take any."""
PROBE_IDS = ("probe0001", "probe0002")
PROBE_ARGUMENTS = {"probed_key": "probed_value"}
NAMES = ("probed_one", "probed_two")
TEXT = "TEXT: /(?s:.*)/ | ~/(?s:.*)/"
"""Anything, half a character too: a model that calls nothing is not disturbed."""


@dataclass(frozen=True, slots=True)
class CallFormat:
    """`open NAME middle ARGS [more NAME middle ARGS]... close`."""

    trigger: str
    """The mark that begins calls wherever it comes in an answer; empty where a call can only be a whole answer."""
    open: str
    middle: str
    more: str | None
    """Between two calls; None where the template shows one call a turn."""
    close: str

    @property
    def writes_ids(self) -> bool:
        return ID in self.open + self.middle + (self.more or "") + self.close

    def marks(self, tokenizer: Any) -> frozenset[int]:
        """Special tokens among the marks, which are to be read as text."""
        written = self.open + self.middle + (self.more or "") + self.close
        return frozenset(i for i, text in special_tokens(tokenizer).items() if text and text in written)


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    parameters: dict
    """JSON schema of the arguments, an object."""
    strict: bool = False


def call_format(tokenizer: Any) -> CallFormat:
    """How this template writes calls.

    Raises:
        TemplateError: it shows no tools, no calls, or writes calls in another form than name before arguments in JSON.
    """
    if not tokenizer.chat_template:
        raise TemplateError("the base has no chat template, and so no tools")
    return _call_format(tokenizer, json.dumps(tokenizer.chat_template))


@lru_cache(maxsize=32)
def _call_format(tokenizer: Any, _template: str) -> CallFormat:
    asked = [{"role": "user", "content": "q"}]
    tools = [{"type": "function", "function": {"name": n, "description": "d", "parameters": {
        "type": "object", "properties": {"probed_key": {"type": "string"}}, "required": ["probed_key"]}}} for n in NAMES]
    if NAMES[0] not in _rendered(tokenizer, asked, tools, True):
        raise TemplateError("the base's chat template has no place for tools", fix="use a base whose template shows them")
    one = _turn(tokenizer, asked, tools, 1)
    open_, middle, end = _taken_apart(one, NAMES[0], 0)
    stop = tokenizer.decode([stop_token(tokenizer)])
    close = _without_ids(one[end:].partition(stop)[0]).rstrip("\n")
    more = None
    try:
        two = _turn(tokenizer, asked, tools, 2)
        first = _taken_apart(two, NAMES[0], 0)
        between, middle_two, end_two = _taken_apart(two, NAMES[1], first[2])
        if first[:2] == (open_, middle) and middle_two == middle and \
                _without_ids(two[end_two:].partition(stop)[0]).rstrip("\n") == close:
            more = between
    except TemplateError:  # one call a turn, then
        pass
    trigger = re.match(r"[^\s{\x00]*", open_)[0].rstrip("[")
    return CallFormat(trigger, open_, middle, more, close)


def _rendered(tokenizer: Any, messages: list, tools: list, prompt: bool) -> str:
    from jinja2 import TemplateError as JinjaError

    try:
        return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=prompt)
    except (JinjaError, TypeError, ValueError) as error:
        raise TemplateError("the base's chat template takes no tools or calls", why=str(error)) from error


def _turn(tokenizer: Any, asked: list, tools: list, calls: int) -> str:
    """What a template makes of an assistant's turn of calls, without what a prompt ends with, thoughts left out."""
    made = [{"type": "function", "id": id_, "function": {"name": name, "arguments": PROBE_ARGUMENTS}}
            for id_, name in list(zip(PROBE_IDS, NAMES, strict=True))[:calls]]
    before = re.sub(r"<think>\s*$", "", _rendered(tokenizer, asked, tools, True))
    whole = _rendered(tokenizer, [*asked, {"role": "assistant", "content": "", "tool_calls": made}], tools, False)
    if not whole.startswith(before):
        raise TemplateError("the base's chat template writes calls in a form that is not known here")
    return re.sub(r"^\s*(<think>.*?</think>\s*)?", "", whole[len(before) :], flags=re.DOTALL)


def _taken_apart(turn: str, name: str, begin: int) -> tuple[str, str, int]:
    """(text before the name, text between name and arguments, where the arguments end)."""
    at = turn.find(name, begin)
    for brace in re.finditer("{", turn[at + len(name) :]) if at >= 0 else ():
        start = at + len(name) + brace.start()
        try:
            arguments, end = json.JSONDecoder().raw_decode(turn, start)
        except ValueError:
            continue
        if arguments == PROBE_ARGUMENTS:
            return _without_ids(turn[begin:at]), _without_ids(turn[at + len(name) : start]), end
    raise TemplateError("the base's chat template writes calls in a form that is not known here",
                        why="a call is known by its name, and arguments in JSON behind it")


def _without_ids(text: str) -> str:
    for probe in PROBE_IDS:
        text = text.replace(probe, ID)
    return text


def grammar_of_calls(tokenizer: Any, form: CallFormat, tools: Sequence[Tool], *, forced: bool, parallel: bool,
                     otherwise: dict | None = None) -> str:
    """A Lark grammar of answers: calls of these tools if `forced`, else also text, or JSON of the schema `otherwise`.

    Text goes on until the format's mark comes; from there on it is a call, and behind calls comes the end.

    Raises:
        UsageError: a tool's parameters cannot be held, and it is strict or forced.
    """
    rules = [f"call: {' | '.join(f'head{i} arguments{i}' for i in range(len(tools)))}"]
    for i, tool in enumerate(tools):
        rules += [f"head{i}: {_literal(tokenizer, tool.name + form.middle)}",
                  f"arguments{i}: {inline(_held(tokenizer, tool, forced))}"]
    more = f" ({_literal(tokenizer, form.more)} call)*" if parallel and form.more is not None else ""
    close = f" {_literal(tokenizer, form.close)}" if form.close else ""
    ended = f"{more}{close}"
    rules += [f"calls: call{ended}", f"IDENTITY: /{ID_PATTERN}/"]
    opened = f"{_literal(tokenizer, form.open)} calls" if form.open else "calls"
    if forced:
        return "\n".join([f"start: {opened}", *rules])
    if otherwise is not None:
        if not form.trigger:
            raise UsageError("tools beside a response_format of JSON are not supported where calls are bare JSON, as in this "
                             "base's chat template")
        return "\n".join([f"start: answer | {opened}", f"answer: {inline(otherwise)}", *rules])
    rest = form.open[len(form.trigger) :]
    rest = f"{_literal(tokenizer, rest)} calls" if rest else "calls"
    if not form.trigger:  # a whole head is what tells a call from text, and so has to be one lexeme
        heads = [form.open + t.name + form.middle for t in tools]
        first = " | ".join(f"({_literal(tokenizer, head)} arguments{i})" for i, head in enumerate(heads))
        begun = f"BEGUN: /{'|'.join(map(_escaped, heads))}/ TEXT"
        return "\n".join(["start: OTHER | first" + ended, f"first: {first}", TEXT, begun, "OTHER: ~BEGUN", *rules])
    if any(mark in form.trigger for mark in special_tokens(tokenizer).values() if mark):
        return "\n".join([f"start: TEXT | TEXT {_literal(tokenizer, form.trigger)} {rest}", TEXT, *rules])
    begun = f"BEGUN: TEXT /{_escaped(form.trigger)}/"
    return "\n".join([f"start: TEXT | begun {rest}", "begun[lazy]: BEGUN", TEXT, begun, *rules])


def _held(tokenizer: Any, tool: Tool, forced: bool) -> dict:
    """The schema that a tool's arguments are held to: its own, or any object where that cannot be held and need not."""
    try:
        if tool.parameters.get("type", "object") != "object":
            raise UsageError("the parameters of a function are an object")
        schema = {"type": "object"} | tool.parameters
        check(schema)
        of_json(tokenizer, schema, frozenset({stop_token(tokenizer)}))
    except UsageError as error:
        if forced or tool.strict:
            raise UsageError(f"the parameters of function '{tool.name}' cannot be held: {error.what}") from error
        return {"type": "object"}
    return schema


def _literal(tokenizer: Any, text: str) -> str:
    """Text as symbols of Lark: strings, special tokens, and the id of a call."""
    special = {text: i for i, text in special_tokens(tokenizer).items() if text}
    marks = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
    parts = [p for p in re.split(f"({marks}|{ID})" if marks else f"({ID})", text) if p]
    return " ".join("IDENTITY" if p == ID else f"<[{special[p]}]>" if p in special else json.dumps(p, ensure_ascii=False)
                    for p in parts)


def _escaped(text: str) -> str:
    """Text as a regular expression of Lark."""
    return "".join(ID_PATTERN if c == ID else c if c.isalnum() or ord(c) > 127 else f"\\x{ord(c):02x}" for c in text)
