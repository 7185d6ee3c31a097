"""A row as a record of any format: the other direction of `data.formats`.

Each writer says the row or refuses to, naming what its format has no place for. Whatever it wrote is read back and must be
the same row: nothing is lost that nobody thought of.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tunesmith.data.formats import FORMATS, detect, read_row
from tunesmith.data.messages import Bad
from tunesmith.data.read import Record
from tunesmith.data.rows import Message, Row

SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


def write_row(row: Row, fmt: str) -> dict:
    """The record of format `fmt` that reads back as `row`.

    Raises:
        Bad: the format cannot say this row; with the field of the row that it has no place for.
    """
    _refuse_another_kind(row, fmt)
    record = _WRITERS[fmt](row)
    meta = dict(row.meta)
    if fmt == "openai_preference" and "parallel_tool_calls" in meta:
        record["input"]["parallel_tool_calls"] = meta.pop("parallel_tool_calls")
    if twice := record.keys() & meta.keys():
        raise Bad(f"meta.{min(twice)}", f"means something else in {fmt}", "give it another name")
    record |= meta
    if not _reads_back(record, row, fmt):
        raise Bad("", f"{fmt} would read it back as another row", "keep it in the format it has")
    return record


def _reads_back(record: dict, row: Row, fmt: str) -> bool:
    try:
        return detect(record) == fmt and read_row(Record(record, row.where), fmt) == row
    except Bad:
        return False


def _refuse_another_kind(row: Row, fmt: str) -> None:
    pairs = fmt in ("openai_preference", "chosen_rejected")
    if pairs and row.rejected is None:
        raise Bad("", f"has no rejected answer, which {fmt} compares with", "give preference data")
    if not pairs and row.rejected is not None:
        raise Bad("rejected", f"a rejected answer, which {fmt} has no place for", "convert to a preference format or to chat")
    if fmt == "kto" and row.desirable is None:
        raise Bad("", "has no label that says whether its answer is desirable", "give KTO data")
    if fmt != "kto" and row.desirable is not None:
        raise Bad("desirable", f"a label, which {fmt} has no place for", "convert to kto")


def _openai(row: Row) -> dict:
    return {"messages": [_spelled(m) for m in row.messages]} | _tools(row)


def _prompt_completion(row: Row) -> dict:
    """The completion is what is trained: from the first trained answer on, and nothing before it may be."""
    begin = next(i for i, m in enumerate(row.messages) if m["role"] == "assistant" and m.get("weight", 1) != 0)
    shown = [i for i, m in enumerate(row.messages[begin:], begin) if m.get("weight", 1) == 0]
    if shown:
        raise Bad(f"messages[{shown[0]}].weight", "0 after an answer that is trained", "a completion is trained as a whole")
    prompt, completion = _context(row.messages[:begin], "prompt_completion"), row.messages[begin:]
    return {"prompt": _text_or_list(prompt, "user"), "completion": _text_or_list(completion, "assistant")} | _tools(row)


def _kto(row: Row) -> dict:
    """A prompt and its completion where that says the row, messages where several answers are trained."""
    plain = replace(row, desirable=None, meta={})
    try:
        said = _prompt_completion(plain)
        if not _reads_back(said, plain, "prompt_completion"):
            said = _openai(plain)
    except Bad:
        said = _openai(plain)
    return said | {"label": row.desirable}


def _alpaca(row: Row) -> dict:
    if row.tools:
        raise Bad("tools", "alpaca has no place for tools", "convert to openai")
    messages = [_only(m, {"role", "content"}, f"messages[{i}]", "alpaca") for i, m in enumerate(row.messages)]
    system = messages[:1] if messages[0]["role"] == "system" else []
    turns = messages[len(system) :]
    if [m["role"] for m in turns] != ["user", "assistant"] * (len(turns) // 2):
        raise Bad("messages", "are not questions and answers in turn, as alpaca has them", "convert to openai")
    *history, (ask, answer) = [[a["content"], b["content"]] for a, b in zip(turns[::2], turns[1::2], strict=True)]
    said = {"system": system[0]["content"]} if system else {}
    return said | {"instruction": ask, "input": "", "output": answer} | ({"history": history} if history else {})


def _sharegpt(row: Row) -> dict:
    turns = [_turn(m, f"messages[{i}]") for i, m in enumerate(row.messages)]
    return {"conversations": turns} | ({"tools": _json(row.tools)} if row.tools else {})


def _turn(message: Message, field: str) -> dict:
    calls = message.get("tool_calls")
    _only(message, {"role", "content", "tool_calls"}, field, "sharegpt")
    if not calls:
        return {"from": SHAREGPT[message["role"]], "value": message["content"]}
    if message["content"]:
        raise Bad(f"{field}.content", "text beside calls, which sharegpt has no place for", "convert to openai")
    if any(c.keys() - {"type", "function"} for c in calls):
        raise Bad(f"{field}.tool_calls", "ids of calls, which sharegpt has no place for", "convert to openai")
    functions = [c["function"] for c in calls]
    return {"from": "function_call", "value": _json(functions[0] if len(functions) == 1 else functions)}


def _openai_preference(row: Row) -> dict:
    context = _context(row.question, "openai_preference")
    return {"input": {"messages": context} | _tools(row), "preferred_output": [_spelled(row.messages[-1])],
            "non_preferred_output": [_spelled(m) for m in row.rejected]}


def _chosen_rejected(row: Row) -> dict:
    prompt = _context(row.question, "chosen_rejected")
    sides = [prompt, row.messages[-1:], row.rejected]
    texts = [_text_or_list(side, role) for side, role in zip(sides, ("user", "assistant", "assistant"), strict=True)]
    if not all(isinstance(t, str) for t in texts):
        texts = [[_spelled(m) for m in side] for side in sides]
    return dict(zip(("prompt", "chosen", "rejected"), texts, strict=True)) | _tools(row)


_WRITERS: dict[str, Callable[[Row], dict]] = {
    "openai": _openai, "prompt_completion": _prompt_completion, "alpaca": _alpaca, "sharegpt": _sharegpt, "kto": _kto,
    "openai_preference": _openai_preference, "chosen_rejected": _chosen_rejected}
assert _WRITERS.keys() == FORMATS.keys()


def _context(messages: list[Message], fmt: str) -> list[Message]:
    """What comes before the trained part. Its answers are not trained in `fmt`, so they must not be in the row."""
    trained = [i for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("weight", 1) != 0]
    if trained:
        raise Bad(f"messages[{trained[0]}]", f"an earlier answer that is trained, which {fmt} only shows",
                  "give it weight 0, or convert to openai")
    return [_spelled({k: v for k, v in m.items() if k != "weight"}) for m in messages]


def _text_or_list(messages: list[Message], role: str) -> str | list[dict]:
    if len(messages) == 1 and messages[0].keys() == {"role", "content"} and messages[0]["role"] == role:
        return messages[0]["content"]
    return [_spelled(m) for m in messages]


def _only(message: Message, keys: set[str], field: str, fmt: str) -> Message:
    if more := message.keys() - keys:
        raise Bad(f"{field}.{min(more)}", f"{fmt} has no place for it", "convert to openai")
    return message


def _spelled(message: Message) -> dict:
    """As OpenAI spells it: the arguments of calls are JSON text."""
    calls = [c | {"function": c["function"] | {"arguments": _json(c["function"]["arguments"])}}
             for c in message.get("tool_calls", ())]
    return message | ({"tool_calls": calls} if calls else {})


def _tools(row: Row) -> dict:
    return {"tools": row.tools} if row.tools else {}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
