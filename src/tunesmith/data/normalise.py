"""Any known row format to chat rows. One file has one format.

    openai              {"messages": [{"role", "content", "weight"?}], "tools"?}
    prompt_completion   {"prompt", "completion"}
    alpaca              {"instruction", "input"?, "output", "system"?}
    sharegpt            {"conversations": [{"from": human|gpt|system, "value"}]}
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tunesmith.data.read import Record, kind_of
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


def normalise(records: Iterable[Record | Problem], fmt: str = "auto") -> list[Row]:
    """Chat rows of one file. Every record is a row or a problem.

    Raises:
        DataError: listing each bad row as `file:line: field`, or the first two rows whose formats differ.
    """
    rows: list[Row] = []
    problems: list[Problem] = []
    first: tuple[str, str] | None = None
    for record in records:
        if isinstance(record, Problem):
            problems.append(record)
            continue
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
        raise DataError(f"{len(problems)} of {len(problems) + len(rows)} rows cannot be used", problems=problems)
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
    return _row(_system(record.value) + messages, record)


def _alpaca(record: Record) -> Row:
    value = record.value
    ask, extra = _text(value, "instruction"), "" if value.get("input") is None else _text(value, "input")
    messages = [{"role": "user", "content": f"{ask}\n\n{extra}" if extra else ask},
                {"role": "assistant", "content": _answer(value, "output")}]
    return _row(_system(value) + messages, record)


def _system(value: dict) -> list[Message]:
    return [{"role": "system", "content": _text(value, "system")}] if value.get("system") else []


def _prompt_completion(record: Record) -> Row:
    value = record.value
    return _row([{"role": "user", "content": _text(value, "prompt")},
                 {"role": "assistant", "content": _answer(value, "completion")}], record)


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
    calls = _tool_calls(value["tool_calls"], f"{field}.tool_calls") if value.get("tool_calls") else None
    if calls and value.get(text_key) is None:
        message["content"] = ""
    elif role == "assistant" and not calls:
        message["content"] = _answer(value, text_key, f"{field}.")
    else:
        message["content"] = _text(value, text_key, f"{field}.")
    if "weight" in value:
        if role != "assistant" or value["weight"] not in (0, 1) or isinstance(value["weight"], bool):
            raise _Bad(f"{field}.weight", f"{value['weight']!r} on a message of role {role}",
                       "weight is 0 or 1 and belongs to assistant messages")
        message["weight"] = value["weight"]
    kept = {k: value[k] for k in ("name", "tool_call_id") if value.get(k) is not None}
    return message | ({"tool_calls": calls} if calls else {}) | kept


def _tool_calls(calls, field: str) -> list[dict]:
    """Calls as templates take them: OpenAI writes the arguments as JSON text, templates write JSON themselves."""
    if not isinstance(calls, list):
        raise _Bad(field, f"a {kind_of(calls)} where a list of calls belongs", None)
    read = []
    for i, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise _Bad(f"{field}[{i}]", "not a call", 'write {"type": "function", "function": {"name", "arguments"}}')
        arguments = function.get("arguments", {})
        try:
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        except (ValueError, RecursionError) as error:
            raise _Bad(f"{field}[{i}].function.arguments", f"not JSON: {error}", None) from error
        if not isinstance(arguments, dict):
            raise _Bad(f"{field}[{i}].function.arguments", f"a {kind_of(arguments)} where a mapping belongs", None)
        read.append(call | {"function": function | {"arguments": arguments}})
    return read


def _text(value: dict, key: str, within: str = "") -> str:
    """Text, or OpenAI content parts of type text joined."""
    found = value.get(key)
    if isinstance(found, list) and found and all(_is_text_part(p) for p in found):
        return "".join(p["text"] for p in found)
    if not isinstance(found, str):
        raise _Bad(f"{within}{key}", f"a {kind_of(found)} where text belongs",
                   'write one string, or parts of the form {"type": "text", "text": "..."}')
    return found


def _is_text_part(part) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _answer(value: dict, key: str, within: str = "") -> str:
    text = _text(value, key, within)
    if not text.strip():
        raise _Bad(f"{within}{key}", "an empty answer", "write the answer, or drop the row")
    return text


def _list(value: dict, key: str) -> list:
    found = value.get(key)
    if not isinstance(found, list) or not found:
        raise _Bad(key, f"{'an empty list' if found == [] else 'a ' + kind_of(found)} where a list of messages belongs", None)
    return found
