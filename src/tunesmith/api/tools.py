"""Tools of a request: what the template shows, what may be called, and how calls are told."""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.api.errors import BadParameter
from tunesmith.api.schemas import UNSUPPORTED, ChatRequest
from tunesmith.errors import TemplateError, UsageError
from tunesmith.serving.calls import CallReader, Said
from tunesmith.serving.grammar import Grammar, of_json, of_lark
from tunesmith.serving.interface import Served
from tunesmith.serving.tools import CallFormat, Tool, call_format, grammar_of_calls

NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
"""Arguments of a function without parameters."""


@dataclass(frozen=True, slots=True)
class Calling:
    shown: list[dict] | None = None
    """Tools as the request has them, for the template."""
    tools: tuple[Tool, ...] = ()
    """Which of them may be called; empty: none."""
    forced: bool = False
    parallel: bool = True
    legacy: bool = False
    """They came as `functions`, and calls are told as `function_call`."""
    form: CallFormat | None = None

    def reader(self) -> CallReader | None:
        return CallReader(self.form, [t.name for t in self.tools]) if self.form and self.tools else None

    def new_id(self) -> str:
        letters = string.ascii_letters + string.digits
        if self.form and self.form.writes_ids:
            return "".join(secrets.choice(letters) for _ in range(9))
        return "call_" + "".join(secrets.choice(letters) for _ in range(24))

    def whole(self, said: Sequence[Said]) -> dict:
        """Keys of a message."""
        text = "".join(s.text for s in said if s.call is None)
        calls: list[dict] = []
        for s in said:
            if s.name:
                calls.append({"id": self.new_id(), "type": "function", "function": {"name": s.name, "arguments": ""}})
            if s.call is not None:
                calls[s.call]["function"]["arguments"] += s.text
        if not calls:
            return {"content": text}
        return {"content": text or None} | ({"function_call": calls[0]["function"]} if self.legacy else {"tool_calls": calls})

    def delta(self, said: Said) -> dict:
        """Keys of a chunk's delta."""
        if said.call is None:
            return {"content": said.text}
        function = ({"name": said.name} if said.name else {}) | {"arguments": said.text}
        if self.legacy:
            return {"function_call": function}
        begun = {"id": self.new_id(), "type": "function"} if said.name else {}
        return {"tool_calls": [{"index": said.call} | begun | {"function": function}]}

    def finish(self, finish: str, calls: int) -> str:
        if finish != "stop" or not calls:
            return finish
        return "function_call" if self.legacy else "tool_calls"


def calling(body: ChatRequest, served: Served) -> Calling:
    """Raises BadParameter: the template has no place for tools, or the choice is not among them."""
    legacy = bool(body.functions)
    shown = [{"type": "function", "function": f} for f in body.functions or []] or body.tools or []
    choice = body.function_call if legacy else body.tool_choice
    param = "function_call" if legacy else "tool_choice"
    if not shown:
        if choice not in (None, "none", "auto"):
            raise BadParameter(f"'{param}' is only allowed when '{'functions' if legacy else 'tools'}' are specified.", param)
        return Calling()
    tools = {}
    for tool in (t["function"] for t in shown):
        if tool["name"] in tools:
            raise BadParameter(f"two functions are named '{tool['name']}'", "functions" if legacy else "tools")
        tools[tool["name"]] = Tool(tool["name"], tool.get("parameters") or NOTHING, bool(tool.get("strict")))
    try:
        form = call_format(served.tokenizer)
    except TemplateError as error:
        raise BadParameter(f"tools are not supported by this model: {error.what}", "functions" if legacy else "tools",
                           UNSUPPORTED) from error
    mode, names = _choice(choice, list(tools), param)
    may = () if mode == "none" else tuple(tools[n] for n in names)
    parallel = body.parallel_tool_calls is not False and not legacy and not (mode == "required" and len(names) == 1)
    return Calling(shown, may, mode == "required", parallel, legacy, form)


def _choice(choice: Any, names: list[str], param: str) -> tuple[str, list[str]]:
    """(none, auto or required; the names that may be called)."""
    if choice is None or isinstance(choice, str):
        return choice or "auto", names
    if param == "function_call":
        mode, chosen = "required", [choice.get("name")]
    elif choice.get("type") == "allowed_tools" and isinstance(allowed := choice.get("allowed_tools"), dict):
        mode = allowed.get("mode")
        given = allowed.get("tools")
        chosen = [_name(t) for t in given] if isinstance(given, list) else []
    else:
        mode, chosen = "required", [_name(choice)]
    if mode not in ("auto", "required") or not chosen:
        raise BadParameter(f"{param}: not a choice of tools", param)
    for name in chosen:
        if name not in names:
            raise BadParameter(f"{param}: no function named {name!r} among the tools", param)
    return mode, list(dict.fromkeys(chosen))


def _name(tool: Any) -> Any:
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    return function.get("name") if isinstance(function, dict) else None


def grammar_of(body: ChatRequest, served: Served, called: Calling) -> Grammar | None:
    """What answers are held to, or None. Raises BadParameter for a schema that cannot be held."""
    schema = body.response_format.schema_of_answers if body.response_format else None
    if not called.tools and schema is None:
        return None
    if body.ignore_eos or body.min_tokens:
        name = "ignore_eos" if body.ignore_eos else "min_tokens"
        raise BadParameter(f"`{name}` does not go with an answer that is held to a form", name, UNSUPPORTED)
    param = "response_format"
    try:
        answers = of_json(served.tokenizer, schema, served.stop_ids) if schema is not None else None
        if not called.tools:
            return answers
        param = "functions" if called.legacy else "tools"
        lark = grammar_of_calls(served.tokenizer, called.form, called.tools, forced=called.forced, parallel=called.parallel,
                                otherwise=schema)
        return of_lark(served.tokenizer, lark, served.stop_ids)
    except UsageError as error:
        raise BadParameter(f"Invalid schema for {param}: {error.what}", param, "invalid_schema") from error
