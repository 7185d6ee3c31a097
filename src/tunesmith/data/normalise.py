"""Any known row format to chat rows. One file has one format.

    openai              {"messages": [{"role", "content", "weight"?}], "tools"?}
    prompt_completion   {"prompt", "completion"}
    alpaca              {"instruction", "input"?, "output", "system"?}
    sharegpt            {"conversations": [{"from": human|gpt|system, "value"}]}
"""

from __future__ import annotations

from collections.abc import Iterable

from tunesmith.data.read import SHOWN_PROBLEMS, Record, kind_of
from tunesmith.data.rows import Message, Row
from tunesmith.errors import DataError, Problem

ROLES = ("system", "user", "assistant", "tool")
SAME_ROLE = {"developer": "system", "human": "user", "gpt": "assistant", "function": "tool", "model": "assistant"}
FORMATS = {
    "openai": ({"messages"}, "messages"),
    "sharegpt": ({"conversations"}, "conversations"),
    "alpaca": ({"instruction", "output"}, "instruction and output"),
    "prompt_completion": ({"prompt", "completion"}, "prompt and completion"),
}


class _Bad(Exception):
    """A field that is not as it must be: `(field, message, fix)`."""


def detect(value: dict) -> str | None:
    return next((name for name, (keys, _) in FORMATS.items() if keys <= value.keys()), None)


def normalise(records: Iterable[Record], fmt: str = "auto") -> list[Row]:
    """Chat rows of one file.

    Raises:
        DataError: listing each bad row as `file:line: field`, or the first two rows whose formats differ.
    """
    rows: list[Row] = []
    problems: list[Problem] = []
    first: tuple[str, str] | None = None
    for record in records:
        found = detect(record.value) if fmt == "auto" else fmt
        if found is None:
            problems.append(Problem(code="unknown_format", where=record.where,
                                    message=f"none of the known formats: keys are {sorted(record.value)}",
                                    fix="give " + "; or ".join(text for _, text in FORMATS.values())))
            continue
        if first is None:
            first = (found, record.where)
        if found != first[0]:
            raise DataError(f"one file, two formats: {first[0]} at {first[1]} and {found} here", where=record.where,
                            fix="put them into two files")
        try:
            rows.append(_READERS[found](record))
        except _Bad as bad:
            field, message, fix = bad.args
            problems.append(Problem(code="bad_row", where=f"{record.where}: {field}", message=message, fix=fix))
    if problems:
        shown = problems[:SHOWN_PROBLEMS]
        more = f" (the first {len(shown)} are shown)" if len(problems) > len(shown) else ""
        raise DataError(f"{len(problems)} of {len(problems) + len(rows)} rows cannot be used{more}", problems=shown)
    return rows


def _openai(record: Record) -> Row:
    messages = _list(record.value, "messages")
    tools = record.value.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise _Bad("tools", f"a {kind_of(tools)} where a list belongs", None)
    return _row([_message(m, f"messages[{i}]", "role", "content") for i, m in enumerate(messages)], record, tools)


def _sharegpt(record: Record) -> Row:
    turns = _list(record.value, "conversations")
    messages = [_message(m, f"conversations[{i}]", "from", "value") for i, m in enumerate(turns)]
    system = record.value.get("system")
    return _row(([{"role": "system", "content": system}] if system else []) + messages, record)


def _alpaca(record: Record) -> Row:
    value = record.value
    ask, extra = _text(value, "instruction"), value.get("input") or ""
    if not isinstance(extra, str):
        raise _Bad("input", f"a {kind_of(extra)} where text belongs", None)
    messages = [{"role": "user", "content": f"{ask}\n\n{extra}" if extra else ask},
                {"role": "assistant", "content": _text(value, "output")}]
    system = value.get("system")
    return _row(([{"role": "system", "content": system}] if system else []) + messages, record)


def _prompt_completion(record: Record) -> Row:
    value = record.value
    return _row([{"role": "user", "content": _text(value, "prompt")},
                 {"role": "assistant", "content": _text(value, "completion")}], record)


_READERS = {"openai": _openai, "sharegpt": _sharegpt, "alpaca": _alpaca, "prompt_completion": _prompt_completion}


def _row(messages: list[Message], record: Record, tools: list | None = None) -> Row:
    answers = [m for m in messages if m["role"] == "assistant"]
    if not answers:
        raise _Bad("messages", "no assistant turn: there is nothing to learn from", "add the answer, or drop the row")
    if all(m.get("weight", 1) == 0 for m in answers):
        raise _Bad("messages", "every assistant turn has weight 0: nothing would be trained",
                   "give at least one of them weight 1, or drop the row")
    if messages[-1]["role"] != "assistant":
        raise _Bad(f"messages[{len(messages) - 1}]", f"the last message is from {messages[-1]['role']}",
                   "a training row ends with the assistant's answer")
    return Row(messages, record.where, tools or None)


def _message(value, field: str, role_key: str, text_key: str) -> Message:
    if not isinstance(value, dict):
        raise _Bad(field, f"a {kind_of(value)} where a message belongs", None)
    role = value.get(role_key)
    role = SAME_ROLE.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise _Bad(f"{field}.{role_key}", f"unknown role {role!r}", f"one of {', '.join(ROLES)}")
    message: Message = {"role": role}
    calls = value.get("tool_calls")
    content = value.get(text_key)
    message["content"] = "" if content is None and calls else _content(content, f"{field}.{text_key}")
    if role == "assistant" and not calls and not message["content"].strip():
        raise _Bad(f"{field}.{text_key}", "an empty answer", "write the answer, or drop the row")
    if "weight" in value:
        if role != "assistant" or value["weight"] not in (0, 1) or isinstance(value["weight"], bool):
            raise _Bad(f"{field}.weight", f"{value['weight']!r} on a {role} message",
                       "weight is 0 or 1 and belongs to assistant messages")
        message["weight"] = value["weight"]
    return message | {k: value[k] for k in ("name", "tool_calls", "tool_call_id") if value.get(k) is not None}


def _content(value, field: str) -> str:
    """Text, or OpenAI content parts of type text joined."""
    if isinstance(value, list) and value and all(isinstance(p, dict) and p.get("type") == "text" for p in value):
        value = "".join(p.get("text") or "" for p in value)
    if not isinstance(value, str):
        raise _Bad(field, f"a {kind_of(value)} where text belongs",
                   'write one string, or parts of the form {"type": "text", "text": "..."}')
    return value


def _text(value: dict, field: str) -> str:
    return _content(value.get(field), field)


def _list(value: dict, field: str) -> list:
    if not isinstance(value[field], list) or not value[field]:
        raise _Bad(field, f"{'an empty list' if value[field] == [] else 'a ' + kind_of(value[field])} where a list of "
                   "messages belongs", None)
    return value[field]
