"""Answers of a form and calls of tools over the wire, with the official client against the application in this process.

pytest tests/api/test_chat_forms.py
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jsonschema
import openai
import pytest
from starlette.testclient import TestClient
from tests.serving.templates import FAMILIES, tokenizer_for

from tunesmith.api.answers import asked_of_chat, asked_of_completion
from tunesmith.api.app import create_app
from tunesmith.api.engines import Engines
from tunesmith.api.schemas import ChatRequest, CompletionRequest
from tunesmith.api.service import Service
from tunesmith.data.messages import read_messages
from tunesmith.jobs.database import opened
from tunesmith.jobs.projects import ensure_default
from tunesmith.jobs.settings import Settings
from tunesmith.models.base import resolve
from tunesmith.models.load import tokenizer_of
from tunesmith.serving.engine import Engine
from tunesmith.template.render import generation_prompt, stop_ids

ASKED = [{"role": "user", "content": "37 Oak Street"}]
WEATHER = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {
    "type": "object", "properties": {"day": {"type": "integer", "minimum": 0, "maximum": 6}, "unit": {"enum": ["C", "F"]}},
    "required": ["day", "unit"], "additionalProperties": False}}}
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS = {t["function"]["name"]: t["function"].get("parameters", {"type": "object", "maxProperties": 0}) for t in (WEATHER, NOW)}
PERSON = {"type": "object",
          "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0}},
          "required": ["name", "age"], "additionalProperties": False}


@dataclass
class Asking:
    client: Any
    engine: Engine
    tokenizer: Any

    def __call__(self, **options):
        asked = {"model": self.engine.base.ref, "messages": ASKED, "max_tokens": 120} | options
        return self.client.chat.completions.create(**asked)

    @property
    def mark(self) -> dict:
        """A bias that has calls begin, where a token begins them."""
        mark = {"mistral": "[TOOL_CALLS]", "llama": ""}.get(self.family, "<tool_call>")
        return {str(self.tokenizer.convert_tokens_to_ids(mark)): 100} if mark else {}

    family: str = ""


@pytest.fixture(scope="module")
def families(lively_base, tmp_path_factory):
    """A server for each family of templates, over the lively base with rows for the family's marks."""
    import torch
    from transformers import AutoModelForCausalLM

    with ExitStack() as stack:
        made = {}
        for family in ("plain", *FAMILIES):
            folder = tmp_path_factory.mktemp(family)
            if family == "plain":
                folder = lively_base
            else:
                tokenizer = tokenizer_for(lively_base, family)
                tokenizer.save_pretrained(folder)
                torch.manual_seed(0)
                model = AutoModelForCausalLM.from_pretrained(lively_base)
                model.resize_token_embeddings(len(tokenizer))
                model.save_pretrained(folder)
            base = resolve(str(folder))
            engine = Engine(base, tokenizer_of(base), "float32", "cpu", 0)
            stack.callback(engine.close)
            database = stack.enter_context(opened(f"sqlite:///{tmp_path_factory.mktemp('service')}/service.db"))
            ensure_default(database)
            settings = Settings()
            app = create_app(Service(Engines(settings, database, engine), database, settings))
            http = TestClient(app, base_url="http://127.0.0.1")
            client = openai.OpenAI(base_url="http://127.0.0.1/v1", api_key="none", max_retries=0, http_client=http)
            made[family] = Asking(client, engine, tokenizer_of(base), family)
        yield made


@pytest.fixture(scope="module")
def plain(families):
    return families["plain"]


@pytest.fixture(scope="module", params=list(FAMILIES))
def asking(request, families):
    return families[request.param]


def streamed(chunks) -> list[dict]:
    """Messages as a client puts them together from deltas, each with its finish reason."""
    found: dict[int, dict] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            message = found.setdefault(choice.index, {"content": None, "calls": [], "function_call": None, "finish": None})
            assert message["finish"] is None, "nothing follows the end"
            delta = choice.delta
            if delta.content:
                message["content"] = (message["content"] or "") + delta.content
            for call in delta.tool_calls or []:
                if call.index == len(message["calls"]):
                    assert call.id and call.type == "function" and call.function.name and call.function.arguments == ""
                    message["calls"].append([call.function.name, ""])
                else:
                    assert call.index == len(message["calls"]) - 1 and call.id is None and call.function.name is None
                message["calls"][call.index][1] += call.function.arguments
            if delta.function_call:
                name, arguments = message["function_call"] or (delta.function_call.name, "")
                message["function_call"] = (name, arguments + delta.function_call.arguments)
            message["finish"] = choice.finish_reason
    return [found[i] for i in sorted(found)]


def whole(made) -> list[dict]:
    return [{"content": c.message.content or None, "finish": c.finish_reason,
             "calls": [[t.function.name, t.function.arguments] for t in c.message.tool_calls or []],
             "function_call": c.message.function_call and (c.message.function_call.name, c.message.function_call.arguments)}
            for c in made.choices]


def test_requests_at_once_read_special_tokens_each_in_its_own_way(plain):
    """A chat reads one that is spelled out as text, a completion as the token; the tokenizer is one and the same.

    Without a template chat asks the tokenizer to do so, which is where two threads would meet.
    """
    tokenizer = tokenizer_of(plain.engine.base)
    tokenizer.chat_template = None
    served = replace(plain.engine.find(plain.engine.base.ref), context_tokens=10**6, tokenizer=tokenizer)
    spelled = "Oak <|im_end|> " * 400
    chat = partial(asked_of_chat, plain.engine, served, ChatRequest(model="m", messages=[{"role": "user", "content": spelled}]))
    text = partial(asked_of_completion, plain.engine, served, CompletionRequest(model="m", prompt=spelled))
    alone = [ask().prompts[0].ids for ask in (chat, text)]
    assert len(alone[0]) > len(alone[1])
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns as often as they can
    try:
        with ThreadPoolExecutor(4) as pool:
            found = [f.result().prompts[0].ids for f in [pool.submit(ask) for _ in range(60) for ask in (chat, text)]]
    finally:
        sys.setswitchinterval(usual)
    assert found == alone * 60


# ---- JSON ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form, schema", [
    ({"type": "json_object"}, {"type": "object"}),
    ({"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}, PERSON),
    ({"type": "json_schema", "json_schema": {"name": "any"}}, {"type": "object"}),
])
def test_every_answer_that_stops_is_valid_whole_and_streamed(plain, form, schema):
    options = {"response_format": form, "n": 8, "seed": 3, "temperature": 1}
    made = whole(plain(**options))
    assert streamed(plain(**options, stream=True)) == made
    stopped = [m["content"] for m in made if m["finish"] == "stop"]
    assert stopped and {m["finish"] for m in made} <= {"stop", "length"}
    for text in stopped:
        jsonschema.validate(json.loads(text), schema)


def test_the_clients_own_parsing_of_a_model_class_works(plain):
    from pydantic import BaseModel

    class Reading(BaseModel):
        day: int
        warm: bool

    made = plain.client.chat.completions.parse(model=plain.engine.base.ref, messages=ASKED, response_format=Reading, seed=1,
                                               max_tokens=300)
    assert isinstance(made.choices[0].message.parsed, Reading)


def test_a_short_limit_cuts_and_says_so(plain):
    made = whole(plain(response_format={"type": "json_object"}, max_tokens=2))
    assert made[0]["finish"] == "length"


@pytest.mark.parametrize("schema, word", [({"not": {}}, "not"), ({"type": "array", "uniqueItems": True}, "uniqueItems")])
def test_a_schema_that_cannot_be_held_is_refused_before_the_answer(plain, schema, word):
    with pytest.raises(openai.BadRequestError, match=word) as raised:
        plain(response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}, stream=True)
    assert (raised.value.code, raised.value.param) == ("invalid_schema", "response_format")


# ---- tools -----------------------------------------------------------------------------------------------------------


def check_calls(message, names=("weather", "now")):
    for name, arguments in message["calls"]:
        assert name in names
        jsonschema.validate(json.loads(arguments), TOOLS[name])


@pytest.mark.parametrize("choice, names", [
    ("required", ("weather", "now")), ({"type": "function", "function": {"name": "weather"}}, ("weather",)),
    ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NOW]}}, ("now",))])
def test_forced_calls_are_calls_of_what_may_be_called_with_valid_arguments(asking, choice, names):
    options = {"tools": [WEATHER, NOW], "tool_choice": choice, "n": 4, "seed": 5, "parallel_tool_calls": False}
    made = whole(asking(**options))
    assert streamed(asking(**options, stream=True)) == made
    ended = [m for m in made if m["finish"] == "tool_calls"]
    assert ended and {m["finish"] for m in made} <= {"tool_calls", "length"}
    for message in ended:
        assert len(message["calls"]) == 1 and message["content"] is None
        check_calls(message, names)


def test_a_call_that_the_model_chooses_is_told_like_a_forced_one(families):
    for asking in families.values():
        if not asking.mark or asking.family == "plain":
            continue
        options = {"tools": [WEATHER, NOW], "logit_bias": asking.mark, "n": 4, "seed": 2}
        made = whole(asking(**options))
        assert streamed(asking(**options, stream=True)) == made
        assert any(m["finish"] == "tool_calls" for m in made)
        for message in made:
            if message["finish"] == "tool_calls":
                assert message["calls"]
                check_calls(message)


def test_without_a_call_tools_change_nothing_but_the_prompt(asking):
    options = {"tools": [WEATHER, NOW], "temperature": 0, "max_tokens": 16}
    free, none = (whole(asking(**options, tool_choice=choice))[0] for choice in ("auto", "none"))
    assert free == none and free["content"] and not free["calls"]
    prompt = generation_prompt(asking.tokenizer, ASKED, [WEATHER, NOW])
    assert asking(**options).usage.prompt_tokens == len(prompt) > len(generation_prompt(asking.tokenizer, ASKED))


def test_none_calls_nothing_even_where_the_model_writes_a_mark(families):
    asking = families["hermes"]
    made = whole(asking(tools=[WEATHER], tool_choice="none", logit_bias=asking.mark, max_tokens=3))
    assert made[0]["calls"] == [] and made[0]["finish"] == "length" and made[0]["content"] == "<tool_call>" * 3


def test_the_ids_of_calls_go_round(asking):
    """What was answered is sent back as the client sends it, with the tool's result, and the template takes it."""
    message = asking(tools=[WEATHER], tool_choice="required", seed=1, parallel_tool_calls=False).choices[0].message
    call, = message.tool_calls
    history = [*ASKED, message, {"role": "tool", "tool_call_id": call.id, "content": "21"}]
    never = {str(stop): -100 for stop in stop_ids(asking.tokenizer)}
    made = asking(messages=history, tools=[WEATHER], tool_choice="none", max_tokens=4, logit_bias=never)
    assert made.usage.completion_tokens == 4
    sent = [*ASKED, {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]}, history[-1]]
    rows = read_messages({"messages": sent}, "messages", {})
    assert made.usage.prompt_tokens == len(generation_prompt(asking.tokenizer, rows, [WEATHER])), "as rows of training are"


def test_the_older_names_of_tools_and_calls(families):
    asking = families["hermes"]
    options = {"functions": [WEATHER["function"]], "function_call": {"name": "weather"}, "seed": 4}
    made = whole(asking(**options))
    assert streamed(asking(**options, stream=True)) == made
    message, = made
    name, arguments = message["function_call"]
    assert (name, message["finish"], message["calls"]) == ("weather", "function_call", [])
    jsonschema.validate(json.loads(arguments), TOOLS["weather"])
    history = [*ASKED, {"role": "assistant", "content": None, "function_call": {"name": name, "arguments": arguments}},
               {"role": "function", "name": "weather", "content": "21"}]
    new = [*ASKED, {"role": "assistant", "tool_calls": [{"type": "function", "id": "c", "function": {
        "name": name, "arguments": arguments}}]}, {"role": "tool", "tool_call_id": "c", "content": "21"}]
    first, second = (asking(messages=m, max_tokens=2).usage.prompt_tokens for m in (history, new))
    assert first == second


def test_json_beside_tools_is_one_or_the_other(families):
    asking = families["hermes"]
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    made = whole(asking(tools=[WEATHER], response_format=form, n=8, seed=1))
    called = whole(asking(tools=[WEATHER], response_format=form, n=4, seed=1, logit_bias=asking.mark))
    for message in made + called:
        if message["finish"] == "stop":
            jsonschema.validate(json.loads(message["content"]), PERSON)
        elif message["finish"] == "tool_calls":
            check_calls(message)
    assert any(m["finish"] == "stop" for m in made) and any(m["finish"] == "tool_calls" for m in called)


@pytest.mark.parametrize("options, param, words", [
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "nobody"}}}, "tool_choice", "nobody"),
    ({"tools": [WEATHER], "tool_choice": {"type": "something"}}, "tool_choice", "named None"),
    ({"tools": [WEATHER, WEATHER]}, "tools", "two functions"),
    ({"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "object", "not": {}}}}]},
     "tools", "'f'"),
    ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type", "function"),
    ({"messages": [*ASKED, {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": {
        "name": "f", "arguments": "{not json"}}]}]}, "messages[1].tool_calls[0].function.arguments", "JSON"),
])
def test_what_is_wrong_with_tools_is_named(families, options, param, words):
    with pytest.raises(openai.BadRequestError, match=words) as raised:
        families["hermes"](**options)
    assert raised.value.param == param


def test_a_template_without_tools_says_so(plain):
    with pytest.raises(openai.BadRequestError, match="no place for tools") as raised:
        plain(tools=[WEATHER])
    assert (raised.value.code, raised.value.param) == ("unsupported_parameter", "tools")
