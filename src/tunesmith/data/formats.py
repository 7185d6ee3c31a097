"""The formats that training data comes in, each read into a row. Keys that a format does not know go to the row's meta.

    openai              {"messages": [{"role", "content", "weight"?}], "system"?, "tools"?}
    sharegpt            {"conversations": [{"from": human|gpt|system|function_call|observation, "value"}], "system"?, "tools"?}
    alpaca              {"instruction", "input"?, "output", "system"?, "history"?: [[question, answer]]}
    prompt_completion   {"prompt", "completion"}: texts, or lists of messages of which the completion is trained
    openai_preference   {"input": {"messages", "tools"?}, "preferred_output": [message], "non_preferred_output": [message]}
    chosen_rejected     {"prompt"?, "chosen", "rejected"}: texts, answers as messages, or whole conversations
    kto                 {"prompt", "completion", "label": true|false}, or {"messages", "label"}

Where a format trains the last answer alone, earlier answers get weight 0.
"""

from __future__ import annotations

from collections.abc import Callable

from tunesmith.data.messages import (
    Bad,
    read_answer,
    read_messages,
    read_text,
    read_tools,
    read_turns,
    with_system,
)
from tunesmith.data.read import Record
from tunesmith.data.rows import Message, Row
from tunesmith.data.strict import kind_of

TOOLS = {"tools", "functions"}
FORMATS = {
    "openai": "messages",
    "sharegpt": "conversations",
    "alpaca": "instruction and output",
    "prompt_completion": "prompt and completion",
    "openai_preference": "input, preferred_output and non_preferred_output",
    "chosen_rejected": "prompt, chosen and rejected",
    "kto": "prompt, completion and label",
}
"""The keys of each, in words."""


def detect(value: dict) -> str | None:
    """The format of a record by its keys. A label that is neither true nor false is a class, not KTO's."""
    def has(*keys: str) -> bool:
        return set(keys) <= value.keys()

    labelled = isinstance(value.get("label"), bool)
    if has("preferred_output", "non_preferred_output"):
        return "openai_preference"
    if has("chosen", "rejected"):
        return "chosen_rejected"
    if has("messages"):
        return "kto" if labelled else "openai"
    if has("conversations") or has("conversation"):
        return "sharegpt"
    if has("instruction", "output"):
        return "alpaca"
    if has("prompt", "completion"):
        return "kto" if labelled else "prompt_completion"
    return None


def read_row(record: Record, fmt: str) -> Row:
    """Raises Bad when the record is not a row of the format."""
    value, kept = record.value, {}
    fields, used = _READERS[fmt](value, kept)
    meta = {k: v for k, v in value.items() if k not in used}
    if twice := kept.keys() & meta.keys():
        raise Bad(min(twice), "stands twice: in the record, and within it", "give it one of the two names")
    _check(fields["messages"])
    return Row(where=record.where, meta=meta | kept, **fields)


def _check(messages: list[Message]) -> None:
    answers = [m for m in messages if m["role"] == "assistant"]
    if not answers:
        raise Bad("messages", "no assistant turn: there is nothing to learn from", "add the answer, or drop the row")
    if all(m.get("weight", 1) == 0 for m in answers):
        raise Bad("messages", "every assistant turn has weight 0: nothing would be trained",
                  "give at least one of them weight 1, or drop the row")
    if messages[-1]["role"] != "assistant":
        raise Bad(f"messages[{len(messages) - 1}]", f"the last message is from {messages[-1]['role']}",
                  "a training row ends with the assistant's answer")


def _openai(value: dict, kept: dict) -> tuple[dict, set[str]]:
    messages = with_system(value, read_messages(value, "messages", kept))
    return {"messages": messages, "tools": read_tools(value)}, {"messages", "system"} | TOOLS


def _sharegpt(value: dict, kept: dict) -> tuple[dict, set[str]]:
    key = "conversations" if "conversations" in value else "conversation" if "conversation" in value else "conversations"
    messages = with_system(value, read_messages(value, key, kept))
    tools = [t if "function" in t or "name" not in t else {"type": "function", "function": t} for t in read_tools(value) or []]
    return {"messages": messages, "tools": tools or None}, {key, "system"} | TOOLS


def _alpaca(value: dict, kept: dict) -> tuple[dict, set[str]]:
    ask, extra = read_text(value, "instruction"), "" if value.get("input") is None else read_text(value, "input")
    asked = [{"role": "user", "content": f"{ask}\n\n{extra}" if extra else ask},
             {"role": "assistant", "content": read_answer(value, "output")}]
    return ({"messages": with_system(value, _history(value) + asked), "tools": read_tools(value)},
            {"instruction", "input", "output", "system", "history"} | TOOLS)


def _history(value: dict) -> list[Message]:
    pairs = value.get("history") or []
    if not isinstance(pairs, list):
        raise Bad("history", f"a {kind_of(pairs)} where a list of pairs belongs", "write [[question, answer], ...]")
    messages: list[Message] = []
    for i, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            raise Bad(f"history[{i}]", "not a pair", "write [question, answer]")
        said = {f"[{i}][{n}]": text for n, text in enumerate(pair)}
        messages += [{"role": "user", "content": read_text(said, f"[{i}][0]", "history")},
                     {"role": "assistant", "content": read_answer(said, f"[{i}][1]", "history")}]
    return messages


def _prompt_completion(value: dict, kept: dict) -> tuple[dict, set[str]]:
    prompt, completion = read_turns(value, "prompt", "user", kept), read_turns(value, "completion", "assistant", kept)
    if completion[0]["role"] != "assistant":
        raise Bad("completion[0]", f"the completion begins with a message from {completion[0]['role']}",
                  "put it into the prompt")
    messages = with_system(value, _shown(prompt) + completion)
    return {"messages": messages, "tools": read_tools(value)}, {"prompt", "completion", "system"} | TOOLS


def _kto(value: dict, kept: dict) -> tuple[dict, set[str]]:
    if not isinstance(value.get("label"), bool):
        raise Bad("label", f"a {kind_of(value.get('label'))} where true or false belongs",
                  "true for an answer to learn, false for one to avoid")
    fields, used = (_openai if "messages" in value else _prompt_completion)(value, kept)
    return fields | {"desirable": value["label"]}, used | {"label"}


def _openai_preference(value: dict, kept: dict) -> tuple[dict, set[str]]:
    asked = value.get("input")
    if not isinstance(asked, dict):
        raise Bad("input", f"a {kind_of(asked)} where a mapping belongs", 'write {"messages": [...]}')
    kept |= {k: v for k, v in asked.items() if k not in {"messages"} | TOOLS}
    context = _shown(read_messages(asked, "messages", kept, "input."))
    chosen, rejected = (read_messages(value, key, kept) for key in ("preferred_output", "non_preferred_output"))
    return (_pair(context, chosen, rejected, ("preferred_output", "non_preferred_output"))
            | {"tools": read_tools(asked, "input.")}), {"input", "preferred_output", "non_preferred_output"}


def _chosen_rejected(value: dict, kept: dict) -> tuple[dict, set[str]]:
    chosen, rejected = (read_turns(value, key, "assistant", kept) for key in ("chosen", "rejected"))
    lists = all(isinstance(value[key], list) for key in ("chosen", "rejected"))
    alone = value.get("prompt") is None and lists
    prompt = [] if alone else read_turns(value, "prompt", "user", kept)
    whole = [alone or turns[0]["role"] != "assistant" for turns in (chosen, rejected)]
    if whole[0] != whole[1]:
        raise Bad("rejected", "one side is a whole conversation, the other an answer", "give both the same way")
    if whole[0]:
        shared = _shared(chosen, rejected)
        context, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        _refuse_lost_prompt(prompt, context)
    else:
        context = prompt
    fields = _pair(with_system(value, _shown(context)), chosen, rejected, ("chosen", "rejected"))
    return fields | {"tools": read_tools(value)}, {"prompt", "chosen", "rejected", "system"} | TOOLS


def _refuse_lost_prompt(prompt: list[Message], context: list[Message]) -> None:
    """A prompt beside whole conversations repeats their beginning, or the question."""
    if prompt and context[: len(prompt)] != prompt and not (len(prompt) == 1 and prompt[0] in context):
        raise Bad("prompt", "is not in the conversations of chosen and rejected",
                  "give the answers alone in chosen and rejected, or leave the prompt out")


def _shared(chosen: list[Message], rejected: list[Message]) -> int:
    """How many messages both begin with; an answer is left on each side."""
    most = min(len(chosen), len(rejected)) - 1
    return next((i for i in range(most) if chosen[i] != rejected[i]), most)


def _pair(context: list[Message], chosen: list[Message], rejected: list[Message], keys: tuple[str, str]) -> dict:
    """A preference: two continuations of one context, of which the preferred is one answer."""
    if len(chosen) != 1 or chosen[0]["role"] != "assistant":
        raise Bad(keys[0], f"{len(chosen)} messages after what both sides share, where one answer belongs",
                  "the two sides may differ in their last answer only")
    roles = [m["role"] for m in rejected]
    if {roles[0], roles[-1]} != {"assistant"} or {"system", "user"} & set(roles):
        raise Bad(keys[1], f"messages from {', '.join(roles)} where an answer belongs", "give what the assistant said instead")
    if any("weight" in m for m in rejected):
        raise Bad(keys[1], "a weight on a rejected answer", "remove it: it is not trained but compared")
    if chosen == rejected:
        raise Bad(keys[1], f"the same as {keys[0]}", "drop the row: it prefers nothing")
    return {"messages": context + chosen, "rejected": rejected}


def _shown(messages: list[Message]) -> list[Message]:
    """A context: its answers are not trained."""
    return [m | {"weight": 0} if m["role"] == "assistant" else m for m in messages]


_READERS: dict[str, Callable[[dict, dict], tuple[dict, set[str]]]] = {
    "openai": _openai, "sharegpt": _sharegpt, "alpaca": _alpaca, "prompt_completion": _prompt_completion, "kto": _kto,
    "openai_preference": _openai_preference, "chosen_rejected": _chosen_rejected}
