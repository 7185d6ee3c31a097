"""Messages and tools as records spell them, to the one way in which rows hold them.

A row's message is {"role", "content"} with role system, user, assistant or tool, and where they say something `weight` 0,
`name`, `tool_call_id` and `tool_calls`, whose arguments are mappings as templates take them. What else a message holds is
kept in the row's meta under `message_keys`, by the message's place in the record.
"""

from __future__ import annotations

from typing import Any

from tunesmith.data.rows import Message
from tunesmith.data.strict import kind_of, parse

ROLES = ("system", "user", "assistant", "tool")
SAME_ROLE = {"developer": "system", "human": "user", "gpt": "assistant", "function": "tool", "model": "assistant",
             "observation": "tool", "function_call": "assistant"}
READ = ("weight", "name", "tool_call_id", "tool_calls", "function_call")


class Bad(Exception):
    """A field that is not as it must be: `(field, message, fix)`."""


def read_messages(value: dict, key: str, meta: dict, within: str = "") -> list[Message]:
    """The messages of the list `value[key]`. Keys of theirs that are not read go to `meta`."""
    found, field = value.get(key), within + key
    if not isinstance(found, list) or not found:
        raise Bad(field, f"{'an empty list' if found == [] else 'a ' + kind_of(found)} where a list of messages belongs", None)
    return [_message(m, f"{field}[{i}]", meta) for i, m in enumerate(found)]


def read_turns(value: dict, key: str, role: str, meta: dict) -> list[Message]:
    """One text as a message of `role`, or a list of messages."""
    found = value.get(key)
    if isinstance(found, list) and any(isinstance(m, dict) and ("role" in m or "from" in m) for m in found):
        return read_messages(value, key, meta)
    return [{"role": role, "content": read_answer(value, key) if role == "assistant" else read_text(value, key)}]


def with_system(value: dict, messages: list[Message]) -> list[Message]:
    """The messages after the record's own `system`, if it has one."""
    if not value.get("system"):
        return messages
    system: Message = {"role": "system", "content": read_text(value, "system")}
    if messages[:1] == [system]:
        return messages
    if messages and messages[0]["role"] == "system":
        raise Bad("system", "another system message than the one that the conversation begins with", "give one of the two")
    return [system, *messages]


def read_tools(value: dict, within: str = "") -> list[dict] | None:
    """Tools, as a list or its JSON text, or OpenAI's older `functions`."""
    tools, functions = (_list_of_mappings(value, key, within) for key in ("tools", "functions"))
    if tools and functions:
        raise Bad(f"{within}functions", "also tools in the same record", "give tools alone")
    return tools or [{"type": "function", "function": f} for f in functions or []] or None


def read_text(value: dict, key: str, within: str = "") -> str:
    """Text, or OpenAI content parts of type text joined."""
    found = value.get(key)
    if isinstance(found, list) and found and all(_is_text_part(p) for p in found):
        return "".join(p["text"] for p in found)
    if not isinstance(found, str):
        raise Bad(f"{within}{key}", f"a {kind_of(found)} where text belongs",
                  'write one string, or parts of the form {"type": "text", "text": "..."}')
    return found


def read_answer(value: dict, key: str, within: str = "") -> str:
    text = read_text(value, key, within)
    if not text.strip():
        raise Bad(f"{within}{key}", "an empty answer", "write the answer, or drop the row")
    return text


def _message(value: Any, field: str, meta: dict) -> Message:
    if not isinstance(value, dict):
        raise Bad(field, f"a {kind_of(value)} where a message belongs", None)
    role_key, text_key = ("from" if "from" in value else "role"), ("value" if "value" in value else "content")
    if "conversation" in field and "role" not in value:  # the key that its error should name
        role_key, text_key = "from", "content" if "content" in value else "value"
    spelled = value.get(role_key)
    role = SAME_ROLE.get(spelled, spelled) if isinstance(spelled, str) else spelled
    if role not in ROLES:
        raise Bad(f"{field}.{role_key}", f"unknown role {role!r}", f"one of {', '.join(ROLES)}")
    if spelled == "function_call":
        return {"role": role, "content": "", "tool_calls": _calls_in_text(value, text_key, field)}
    calls = _calls(value, role, field)
    message: Message = {"role": role}
    if calls and value.get(text_key) is None:
        message["content"] = ""
    elif role == "assistant" and not calls:
        message["content"] = read_answer(value, text_key, f"{field}.")
    else:
        message["content"] = read_text(value, text_key, f"{field}.")
    more = {k: v for k, v in value.items() if k not in (role_key, text_key, *READ) and v is not None}
    if more:
        meta.setdefault("message_keys", {})[field] = more
    return message | _weight(value, role, field) | ({"tool_calls": calls} if calls else {}) | _names(value, field)


def _weight(value: dict, role: str, field: str) -> dict:
    """Weight 0. Weight 1 is what a message has that says nothing."""
    weight = value.get("weight")
    if weight is None:
        return {}
    if role != "assistant" or weight not in (0, 1) or isinstance(weight, bool):
        raise Bad(f"{field}.weight", f"{weight!r} on a message of role {role}",
                  "weight is 0 or 1 and belongs to assistant messages")
    return {"weight": 0} if weight == 0 else {}


def _names(value: dict, field: str) -> dict:
    names = {k: value[k] for k in ("name", "tool_call_id") if value.get(k) is not None}
    for key, name in names.items():
        if not isinstance(name, str):
            raise Bad(f"{field}.{key}", f"a {kind_of(name)} where text belongs", None)
    return names


def _calls(value: dict, role: str, field: str) -> list[dict]:
    """`tool_calls`, or OpenAI's older `function_call`."""
    calls, call = value.get("tool_calls"), value.get("function_call")
    if not calls and not call:
        return []
    key = "tool_calls" if calls else "function_call"
    if calls and call:
        raise Bad(f"{field}.function_call", "also tool_calls in the same message", "give tool_calls alone")
    if role != "assistant":
        raise Bad(f"{field}.{key}", f"on a message of role {role}", "calls belong to assistant messages")
    if calls and not isinstance(calls, list):
        raise Bad(f"{field}.tool_calls", f"a {kind_of(calls)} where a list of calls belongs", None)
    if calls:
        return [_call(c, f"{field}.tool_calls[{i}]") for i, c in enumerate(calls)]
    return [_call({"type": "function", "function": call}, f"{field}.function_call")]


def _call(call: Any, field: str) -> dict:
    """A call as templates take it: OpenAI writes the arguments as JSON text, templates write JSON themselves."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Bad(field, "not a call", 'write {"type": "function", "function": {"name", "arguments"}}')
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _parsed(arguments, f"{field}.function.arguments")
    if not isinstance(arguments, dict):
        raise Bad(f"{field}.function.arguments", f"a {kind_of(arguments)} where a mapping belongs", None)
    return call | {"function": function | {"arguments": arguments}}


def _calls_in_text(value: dict, key: str, field: str) -> list[dict]:
    """ShareGPT's turn of calls: one {"name", "arguments"} as JSON text, or a list of them."""
    calls = _parsed(read_text(value, key, f"{field}."), f"{field}.{key}")
    calls = calls if isinstance(calls, list) else [calls]
    if not calls:
        raise Bad(f"{field}.{key}", "no call", 'write {"name": "...", "arguments": {...}}')
    return [_call({"type": "function", "function": c}, f"{field}.{key}") for c in calls]


def _list_of_mappings(value: dict, key: str, within: str) -> list[dict] | None:
    found, field = value.get(key), within + key
    if found is None or found == "":
        return None
    if isinstance(found, str):
        found = _parsed(found, field)
    if not isinstance(found, list):
        raise Bad(field, f"a {kind_of(found)} where a list belongs", None)
    for i, tool in enumerate(found):
        if not isinstance(tool, dict):
            raise Bad(f"{field}[{i}]", f"a {kind_of(tool)} where a mapping belongs", None)
    return found


def _parsed(text: str, field: str) -> Any:
    try:
        return parse(text)
    except (ValueError, RecursionError) as error:
        raise Bad(field, f"not JSON: {error}", None) from error


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
