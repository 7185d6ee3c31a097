"""What a client sees when it asks for something that cannot be: OpenAI's error shape, and which parameter it was.

pytest tests/api/test_errors.py
"""

import json

import httpx2
import openai
import pytest

QUESTION = [{"role": "user", "content": "5003 Oak Street"}]
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
CALLS = [*QUESTION, {"role": "assistant", "content": None, "tool_calls": [
    {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}]
TOOL = {"type": "function", "function": {"name": "f"}}


def raised(call, kind, **options):
    with pytest.raises(kind) as found:
        call(**options)
    error = found.value
    assert error.body.keys() == {"message", "type", "param", "code"}, "all four of OpenAI's keys, and no others"
    assert error.body["message"]
    return error


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_is_not_found(client, base, stream):
    for call, asked in ((client.chat.completions.create, {"messages": QUESTION}), (client.completions.create, {"prompt": "x"})):
        error = raised(call, openai.NotFoundError, model="gpt-4o", stream=stream, **asked)
        assert error.code == "model_not_found"
        assert "`gpt-4o` does not exist" in error.message
    assert raised(client.models.retrieve, openai.NotFoundError, model=base + "x").code == "model_not_found"


@pytest.mark.parametrize("param, options", [
    ("messages", {"messages": []}),
    ("messages", {"messages": "hello"}),
    ("messages[0].role", {"messages": [{"role": "narrator", "content": "x"}]}),
    ("messages[0].role", {"messages": [{"content": "x"}]}),
    ("messages[1].content", {"messages": [*QUESTION, {"role": "user", "content": 5}]}),
    ("messages[0].content", {"messages": [{"role": "user", "content": None}]}),
    ("messages[0].content", {"messages": [{"role": "user"}]}),
    ("temperature", {"temperature": 2.5}),
    ("temperature", {"temperature": "warm"}),
    ("top_p", {"top_p": 0}),
    ("n", {"n": 0}),
    ("n", {"n": 1000}),
    ("max_tokens", {"max_tokens": 0}),
    ("max_completion_tokens", {"max_completion_tokens": -1}),
    ("stop", {"stop": ["a", "b", "c", "d", "e"]}),
    ("stop", {"stop": 5}),
    ("seed", {"seed": 2**63}),
    ("top_logprobs", {"logprobs": True, "top_logprobs": 21}),
    ("stream_options", {"stream_options": {"include_usage": True}}),
    ("frequency_penalty", {"frequency_penalty": 2.5}),
    ("presence_penalty", {"presence_penalty": -2.1}),
    ("logit_bias", {"logit_bias": {"5": 101}}),
    ("logit_bias", {"logit_bias": {"five": 1}}),
    ("logit_bias", {"logit_bias": {"100000": 1}}),
    ("tool_choice", {"tool_choice": "required"}),
    ("tool_choice", {"tool_choice": "perhaps"}),
    ("tools[0].function.name", {"tools": [{"type": "function", "function": {"name": "with space"}}]}),
    ("response_format.type", {"response_format": {"type": "xml"}}),
    ("response_format.json_schema", {"response_format": {"type": "json_schema"}}),
    ("response_format", {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"not": {}}}}}),
    ("min_tokens", {"extra_body": {"min_tokens": 6}, "max_tokens": 5}),
    ("ignore_eos", {"extra_body": {"ignore_eos": True}, "response_format": {"type": "json_object"}}),
    ("messages[1].tool_calls[0]", {"messages": [*QUESTION, {"role": "assistant", "tool_calls": [{"id": "c"}]}]}),
    ("stream_options.include_usage", {"stream": True, "stream_options": {"include_usage": "perhaps"}}),
])
def test_a_wrong_parameter_is_a_bad_request_that_names_it(client, base, param, options):
    error = raised(client.chat.completions.create, openai.BadRequestError, **{"model": base, "messages": QUESTION} | options)
    assert error.param == param
    assert error.message and param in error.body["message"]
    assert error.type == "invalid_request_error"


@pytest.mark.parametrize("param, options", [
    ("prompt", {"prompt": ""}),
    ("prompt", {"prompt": []}),
    ("prompt", {"prompt": [[1, 2], []]}),
    ("prompt", {"prompt": [1, 10**6]}),
    ("prompt", {"prompt": [-1]}),
    ("prompt", {"prompt": 5}),
    ("prompt", {"prompt": [1, "two"]}),
    ("max_tokens", {"prompt": "x", "max_tokens": 0}),
    ("max_tokens", {"prompt": "x", "max_tokens": -1, "echo": True}),
    ("logprobs", {"prompt": "x", "logprobs": 21}),
    ("logprobs", {"prompt": "x", "logprobs": -1}),
])
def test_a_wrong_prompt_is_a_bad_request_that_names_it(client, base, param, options):
    error = raised(client.completions.create, openai.BadRequestError, model=base, **options)
    assert error.param == param


@pytest.mark.parametrize("path, missing", [("chat/completions", "messages"), ("completions", "prompt")])
def test_a_missing_parameter_is_named(server, base, path, missing):
    for body, param in (({"model": base}, missing), ({missing: QUESTION if missing == "messages" else "x"}, "model")):
        answer = httpx2.post(f"{server.url}/{path}", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"] == {"message": f"{param}: Field required", "type": "invalid_request_error",
                                          "param": param, "code": "missing_required_parameter"}


@pytest.mark.parametrize("param, options", [
    ("tools", {"tools": [TOOL]}),
    ("tools", {"tools": [TOOL], "tool_choice": "none"}),
    ("functions", {"functions": [{"name": "f"}]}),
    ("top_logprobs", {"top_logprobs": 2}),
    ("audio", {"audio": {"voice": "alloy", "format": "mp3"}}),
    ("modalities", {"modalities": ["text", "audio"]}),
    ("web_search_options", {"web_search_options": {}}),
    ("messages", {"messages": IMAGE}),
    ("messages", {"messages": CALLS}),
])
def test_what_would_change_the_answer_and_is_not_supported_is_refused(client, base, param, options):
    error = raised(client.chat.completions.create, openai.BadRequestError, **{"model": base, "messages": QUESTION} | options)
    assert (error.code, error.param) == ("unsupported_parameter", param)
    assert "not supported by this" in error.message


def test_a_suffix_is_refused_unless_it_is_empty(client, base):
    error = raised(client.completions.create, openai.BadRequestError, model=base, prompt="x", suffix=" end")
    assert (error.code, error.param) == ("unsupported_parameter", "suffix")
    assert client.completions.create(model=base, prompt="x", suffix="", max_tokens=1).choices


@pytest.mark.parametrize("param, body", [
    ("temprature", {"temprature": 0}),
    ("guided_json", {"guided_json": {}}),
    ("messages[0].mood", {"messages": [{"role": "user", "content": "x", "mood": "good"}]}),
])
def test_an_unknown_parameter_is_refused_in_openais_words(client, base, param, body):
    error = raised(client.chat.completions.create, openai.BadRequestError, model=base,
                   messages=body.pop("messages", QUESTION), extra_body=body)
    assert (error.code, error.param) == ("unknown_parameter", param)
    assert error.body["message"] == f"Unknown parameter: '{param}'."


@pytest.mark.parametrize("text", ["\ud800", {"a": ["\udfff"]}])
def test_half_a_character_is_no_text(server, base, text):
    answer = httpx2.post(f"{server.url}/completions", content=json.dumps({"model": base, "prompt": "x", "user": text}).encode(),
                         headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert "surrogate" in answer.json()["error"]["message"]


def test_a_prompt_longer_than_the_context_says_so(client, base, tokenizer):
    chat = raised(client.chat.completions.create, openai.BadRequestError, model=base,
                  messages=[{"role": "user", "content": "Main " * 600}])
    assert (chat.code, chat.param) == ("context_length_exceeded", "messages")
    assert "512 tokens" in chat.message
    text = raised(client.completions.create, openai.BadRequestError, model=base, prompt=[5] * 512)
    assert (text.code, text.param) == ("context_length_exceeded", "prompt")
    fits = raised(client.completions.create, openai.BadRequestError, model=base, prompt=[5] * 500, max_tokens=13)
    assert "requested 513 tokens (500 in the prompt)" in fits.message
    assert client.completions.create(model=base, prompt=[5] * 500, max_tokens=12, temperature=0).usage.total_tokens <= 512


@pytest.mark.parametrize("content, words", [
    (b'{"model": "x", "messages": [', "not JSON"),
    (b"model=x", "not JSON"),
    (b"", "JSON object"),
    (b"[]", "JSON object"),
    (b'"text"', "JSON object"),
])
def test_a_body_that_is_no_json_object_is_a_bad_request(server, content, words):
    answer = httpx2.post(f"{server.url}/chat/completions", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert words in error["message"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, None)


def test_a_body_that_is_not_sent_as_json_is_a_bad_request(server):
    answer = httpx2.post(f"{server.url}/chat/completions", content=b"{}", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("method, path, status", [("GET", "nothing", 404), ("POST", "embeddings", 404), ("GET", "", 404),
                                                  ("GET", "chat/completions", 405), ("POST", "models", 405)])
def test_an_unknown_path_or_method_answers_in_the_same_shape(server, method, path, status):
    answer = httpx2.request(method, f"{server.url}/{path}")
    assert answer.status_code == status
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}


def test_an_unknown_path_through_the_client(client):
    assert raised(client.embeddings.create, openai.NotFoundError, model="m", input="x").status_code == 404


def test_healthz(server, base):
    answer = httpx2.get(server.url.removesuffix("/v1") + "/healthz")
    assert answer.status_code == 200
    assert answer.json().items() >= {"status": "ok", "base": base, "models": 4}.items()
    assert answer.json().keys() == {"status", "base", "models", "running", "waiting"}
