"""Training files as OpenAI checks them after they were uploaded, in its words. Read an example at a time.

    fine-tune-chat         {"messages": [...], "tools"?}                                   supervised
    fine-tune-completions  {"prompt": "...", "completion": "..."}                          supervised
    fine-tune-preference   {"input": {"messages"}, "preferred_output", "non_preferred_output"}   dpo

What passes here our own reader takes too: it is asked about each example.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tunesmith.data.audit import identity
from tunesmith.data.formats import read_row
from tunesmith.data.messages import Bad
from tunesmith.data.read import Record, read_records
from tunesmith.errors import DataError, Problem

Which = Literal["training", "validation"]
LEAST = 10
"""Examples of a training file."""
ROLES = ("system", "user", "assistant", "tool", "function", "developer")
OLD_NAMES = {"preferred_completion": "preferred_output", "non_preferred_completion": "non_preferred_output"}
"""What OpenAI's first description of preference files called them."""
FORMATS = {"fine-tune-chat": ("supervised", "openai"), "fine-tune-completions": ("supervised", "prompt_completion"),
           "fine-tune-preference": ("dpo", "openai_preference")}
"""The method that each is for, and what a recipe calls it."""
NO_FORMAT = "Unexpected file format, expected either prompt/completion pairs or chat messages."


class Invalid(DataError):
    """A job that cannot be done as it was asked for: becomes its `error`."""

    def __init__(self, code: str, message: str, param: str | None = None):
        super().__init__(message)
        self.code, self.param = code, param


@dataclass
class Examples:
    """What there is to know of a file before it is trained on."""

    count: int = 0
    kind: str = ""
    """Of FORMATS."""
    old_names: bool = False
    """Whether an example has keys of OLD_NAMES, which our reader does not know."""
    turns: set[bytes] = field(default_factory=set)
    """A hash of each example's turns, the same for those that differ in case, punctuation or white space."""


def look(path: Path, file_id: str, which: Which, method: str) -> Examples:
    """Check a file for a method.

    Raises:
        Invalid: naming the first example that is wrong, or how many there are.
    """
    found, wrong = Examples(), _Wrong(which)
    for record in _records(path, wrong):
        found.count += 1
        if isinstance(record, Problem):
            wrong.add(found.count, record.message)
            continue
        kind = _kind(record.value)
        if kind is None or found.kind not in ("", kind):
            raise wrong.all_of_it(NO_FORMAT if kind is None else f"Example {found.count} is in the {kind} format, and those "
                                  f"before it are in the {found.kind} format.")
        found.kind = kind
        found.old_names |= bool(OLD_NAMES.keys() & record.value.keys())
        if FORMATS[kind][0] != method:
            raise wrong.all_of_it(f"Invalid file format. Input file {file_id} is in the {kind} format, but the specified "
                                  f"fine-tuning job is not using '{FORMATS[kind][0]}' as the training method (provided "
                                  f"method={method}).")
        if (said := _mistake(record.value, kind)) is not None:
            wrong.add(found.count, said)
            continue
        try:
            found.turns.add(identity(read_row(Record(renamed(record.value), record.where), FORMATS[kind][1]))[1])
        except Bad as bad:
            name, message, _fix = bad.args
            wrong.add(found.count, f"{name}: {message}")
    wrong.refuse()
    if found.count < (LEAST if which == "training" else 1):
        raise Invalid("invalid_n_examples", f"{which.capitalize()} file has {found.count} example(s), but must have at least "
                      f"{LEAST if which == 'training' else 1} examples", f"{which}_file")
    return found


def rows_of(path: Path, kind: str) -> Iterator[tuple[dict, bytes]]:
    """Each example of a file that was looked at, with the hash of its turns."""
    for record in read_records(path):
        value = renamed(record.value)
        yield value, identity(read_row(Record(value, record.where), FORMATS[kind][1]))[1]


def renamed(value: dict) -> dict:
    """The example with today's names."""
    return {OLD_NAMES.get(k, k): v for k, v in value.items()}


class _Wrong:
    """What is wrong with a file: the first example of it, and how many more."""

    def __init__(self, which: Which):
        self.which, self.first, self.more = which, "", 0

    def add(self, example: int, what: str) -> None:
        if self.first:
            self.more += 1
        else:
            self.first = f"Invalid file format. Example {example}, {what}"

    def all_of_it(self, what: str) -> Invalid:
        return Invalid(f"invalid_{self.which}_file", f"The job failed due to an invalid {self.which} file. {what}",
                       f"{self.which}_file")

    def refuse(self) -> None:
        if self.first:
            others = f" ({self.more} more example{'s are' if self.more > 1 else ' is'} not valid)" if self.more else ""
            raise self.all_of_it(self.first + others)


def _records(path: Path, wrong: _Wrong) -> Iterator[Record | Problem]:
    try:
        yield from read_records(path)
    except DataError as error:
        if error.what == "the file is empty":
            return  # its number of examples says it
        raise wrong.all_of_it(f"Invalid file format. {error.what}" + (f" ({error.why})" if error.why else "")) from error


def _kind(value: dict) -> str | None:
    keys = renamed(value).keys()
    if "messages" in keys:
        return "fine-tune-chat"
    if {"preferred_output", "non_preferred_output"} & keys:
        return "fine-tune-preference"
    return "fine-tune-completions" if {"prompt", "completion"} <= keys else None


def _mistake(value: dict, kind: str) -> str | None:
    """What is wrong with an example, in OpenAI's words; None where nothing is."""
    value = renamed(value)
    if kind == "fine-tune-completions":
        return next((f"'{k}' must be a string" for k in ("prompt", "completion") if not isinstance(value[k], str)), None)
    if kind == "fine-tune-chat":
        return _messages(value["messages"], "message", ROLES)
    asked = value.get("input")
    if not isinstance(asked, dict) or "messages" not in asked:
        return "'input' must be an object with 'messages'"
    if said := _messages(asked["messages"], "input message", ROLES):
        return said
    for name in ("preferred_output", "non_preferred_output"):
        if name not in value:
            return f"'{name}' is missing"
        if said := _messages(value[name], f"{name} message", ("assistant", "tool")):
            return said
    return None


def _messages(messages: Any, what: str, roles: tuple[str, ...]) -> str | None:
    if not isinstance(messages, list) or not messages:
        return f"{what.removesuffix(' message') if what != 'message' else 'messages'} must be a list of at least one message"
    for number, message in enumerate(messages, 1):
        if said := _message(message, roles):
            return f"{what} {number} {said}"
    return None


def _message(message: Any, roles: tuple[str, ...]) -> str | None:
    if not isinstance(message, dict):
        return "is not an object"
    role = message.get("role")
    if role is None:
        return "Discriminator 'role' is missing in value"
    if role not in roles:
        return f"Unknown role {json.dumps(role)}, expected one of {', '.join(roles)}"
    weight = message.get("weight")
    if weight is not None and (role != "assistant" or isinstance(weight, bool) or weight not in (0, 1)):
        return f"'weight' is {json.dumps(weight)}: it must be 0 or 1, and belongs to messages of the assistant"
    if role == "assistant":
        content = message.get("content")
        if not (message.get("tool_calls") or message.get("function_call")) and (
                not content or isinstance(content, str) and not content.strip()):
            return "Messages of the assistant must have content or tool_calls"
    elif "content" not in message:
        return "'content' is missing"
    return None
