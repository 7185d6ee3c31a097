"""The form of a call is read off the template, answers are held to it, and it is read back however the text is cut.

pytest tests/serving/test_tools.py
"""

import json

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.serving.templates import FAMILIES, SPEECH, tokenizer_for

from tunesmith.errors import TemplateError, UsageError
from tunesmith.serving.calls import CallReader
from tunesmith.serving.generate import generate
from tunesmith.serving.grammar import of_lark
from tunesmith.serving.sampling import Request
from tunesmith.serving.text import TextStream
from tunesmith.serving.tools import ID, Tool, call_format, grammar_of_calls
from tunesmith.template.render import generation_prompt

STOPS = frozenset({2})
GET = Tool("get", {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["n"],
                   "additionalProperties": False})
ALL = Tool("get_all", {"type": "object", "properties": {"kind": {"enum": ["a", "b"]}, "deep": {"type": "boolean"}},
                       "required": ["kind"], "additionalProperties": False})
SHOWN = [{"type": "function", "function": {"name": t.name, "description": "d", "parameters": t.parameters}} for t in (GET, ALL)]
ASKED = [{"role": "user", "content": "37 Oak Street"}]


@pytest.fixture(scope="module")
def tokenizers(lively_base):
    return {family: tokenizer_for(lively_base, family) for family in FAMILIES}


@pytest.fixture(scope="module", params=list(FAMILIES))
def tokenizer(request, tokenizers):
    return tokenizers[request.param]


@pytest.fixture(scope="module")
def bare(tokenizers):
    """The tokenizer of the base, whose template knows no tools."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizers["hermes"].name_or_path)


def turn(tokenizer, calls, text="") -> str:
    """What the template itself makes of an assistant's turn, up to its end."""
    made = [{"type": "function", "id": f"abcdefgh{i}", "function": {"name": n, "arguments": a}}
            for i, (n, a) in enumerate(calls)]
    whole = tokenizer.apply_chat_template([*ASKED, {"role": "assistant", "content": text, "tool_calls": made}], tools=SHOWN,
                                          tokenize=False)
    before = tokenizer.apply_chat_template(ASKED, tools=SHOWN, tokenize=False, add_generation_prompt=True)
    return whole.removeprefix(before).partition("<|im_end|>")[0].removeprefix("<think>\n\n</think>\n\n")


def read(form, pieces):
    reader, text, calls = CallReader(form, ["get", "get_all"]), "", []
    for piece in [*map(reader.feed, pieces), reader.finish()]:
        for said in piece:
            if said.name:
                assert said.call == len(calls)
                calls.append([said.name, ""])
            if said.call is None:
                text += said.text
            else:
                calls[said.call][1] += said.text
    assert reader.calls == len(calls)
    return text, calls


ARGUMENTS = {"get": [{"n": 5}, {"n": 0}], "get_all": [{"kind": "a", "deep": True}, {"kind": "b"}]}
MANY = [[], [("get", {"n": 5})], [("get_all", {"kind": "b"})], [("get", {"n": 1}), ("get_all", {"kind": "a", "deep": False})],
        [("get_all", {"kind": "a"})] * 3]


def allowed(tokenizer, forced, parallel=True, tools=(GET, ALL), **more):
    form = call_format(tokenizer)
    return of_lark(tokenizer, grammar_of_calls(tokenizer, form, tools, forced=forced, parallel=parallel, **more), STOPS)


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_what_the_template_writes_is_accepted_and_what_is_no_call_is_not(tokenizer):
    form = call_format(tokenizer)
    forced, free, single = allowed(tokenizer, True), allowed(tokenizer, False), allowed(tokenizer, True, parallel=False)
    for calls in MANY:
        if len(calls) > 1 and form.more is None:
            continue
        ids = ids_of(tokenizer, turn(tokenizer, calls, "" if calls else "Hello."))
        assert free.accepts(ids)
        assert forced.accepts(ids) == bool(calls) and single.accepts(ids) == (len(calls) == 1)
    wrong = [turn(tokenizer, [c]) for c in (("get", {"n": "5"}), ("get", {}), ("get", {"n": 100}), ("get_all", {"kind": "c"}))]
    for text in wrong:
        assert not free.accepts(ids_of(tokenizer, text)) and not forced.accepts(ids_of(tokenizer, text))
    unknown = ids_of(tokenizer, turn(tokenizer, [("got", {"n": 5})]))
    assert not forced.accepts(unknown)
    assert free.accepts(unknown) == (not form.trigger), "bare JSON that calls none of the tools is text"


def test_the_forms(tokenizers):
    forms = {family: call_format(tokenizer) for family, tokenizer in tokenizers.items()}
    assert forms["hermes"] == forms["thinking"]
    assert forms["hermes"].trigger == "<tool_call>" and forms["hermes"].close == "}\n</tool_call>"
    assert (forms["llama"].trigger, forms["llama"].middle, forms["llama"].more) == ("", '", "parameters": ', None)
    assert forms["mistral"].trigger == "[TOOL_CALLS]" and forms["mistral"].close == f', "id": "{ID}"}}]'
    assert [f.writes_ids for f in forms.values()] == [False, False, False, True]


def test_templates_without_tools_or_with_unreadable_calls_are_told(bare):
    with pytest.raises(TemplateError, match="no place for tools"):
        call_format(bare)
    bare.chat_template = SPEECH
    with pytest.raises(TemplateError, match="not known here"):
        call_format(bare)
    bare.chat_template = None
    with pytest.raises(TemplateError, match="no chat template"):
        call_format(bare)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_calls_are_read_back_however_the_text_is_cut(tokenizer, data):
    form = call_format(tokenizer)
    strings = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]) | st.sampled_from('"\\{}[]<\n'), max_size=8)
    arguments = st.dictionaries(strings, strings | st.integers(-5, 5) | st.lists(strings, max_size=2), max_size=3)
    calls = data.draw(st.lists(st.tuples(st.sampled_from(["get", "get_all"]), arguments), max_size=3 if form.more else 1))
    texts = ["", "I look.", "a < b <tool", "{", '{"name": "nobody"} ']
    before = data.draw(st.sampled_from(texts if form.trigger or not calls else [""]))
    text = turn(tokenizer, calls) if calls else ""
    whole = before + ("\n" if before and calls else "") + text
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    said, got = read(form, [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)])
    assert [(name, json.loads(given)) for name, given in got] == calls
    assert said == (before if not calls else before.rstrip())


@pytest.mark.parametrize("cut", [1, 9, 20])
def test_what_was_begun_and_is_no_call_is_text(tokenizers, cut):
    form = call_format(tokenizers["hermes"])
    for text in ('<tool_call>\n{"name": "nobody", "arguments": {}}', "<tool_call> is a mark", "<tool_call>"[:cut]):
        assert read(form, [text[:cut], text[cut:]]) == (text, [])


@pytest.mark.parametrize("forced", [True, False])
def test_a_random_model_calls_validly_when_it_calls(tokenizers, lively_base, forced):
    """The model has random weights, and rows for the marks of the families."""
    import torch
    from transformers import AutoModelForCausalLM

    for family, tokenizer in tokenizers.items():
        model = AutoModelForCausalLM.from_pretrained(lively_base, dtype=torch.float32).eval()
        model.resize_token_embeddings(len(tokenizer))
        form = call_format(tokenizer)
        marks = {} if forced else dict.fromkeys(ids_of(tokenizer, form.trigger)[:1], 100.0)
        prompt = generation_prompt(tokenizer, ASKED, SHOWN)
        requests = [Request(prompt=prompt, max_new_tokens=90, temperature=1.0, seed=s, grammar=allowed(tokenizer, forced),
                            logit_bias=marks) for s in range(6)]
        texts, pieces, ends = [TextStream(tokenizer, keep=form.marks(tokenizer)) for _ in requests], [[] for _ in requests], {}
        for token in generate(model, requests, set(STOPS)):
            assert token.error is None, token.error
            pieces[token.row] += [texts[token.row].push(token.id)] if token.id is not None else []
            if token.finish:
                pieces[token.row].append(texts[token.row].finish())
                ends[token.row] = token.finish
        called = 0
        for row, end in ends.items():
            said, calls = read(form, pieces[row])
            called += len(calls)
            if end != "stop":
                continue
            for name, arguments in calls:
                jsonschema.validate(json.loads(arguments), {"get": GET, "get_all": ALL}[name].parameters)
            assert calls and not said if forced else True
        assert called >= 3 or not (forced or form.trigger), family


def test_parameters_that_cannot_be_held_are_named_where_they_must_be_and_any_object_where_not(tokenizers):
    tokenizer, form = tokenizers["hermes"], call_format(tokenizers["hermes"])
    odd = Tool("odd", {"type": "object", "properties": {"l": {"type": "array", "uniqueItems": True}}})
    strict, text = Tool("odd", odd.parameters, strict=True), Tool("odd", {"type": "string"})
    for tool, forced in ((odd, True), (strict, False), (text, True)):
        with pytest.raises(UsageError, match="'odd'"):
            grammar_of_calls(tokenizer, form, [tool], forced=forced, parallel=True)
    grammar = allowed(tokenizer, False, tools=[odd])
    assert grammar.accepts(ids_of(tokenizer, form.open + "odd" + form.middle + '{"l": [1, 1]}' + form.close))


def test_json_or_a_call(tokenizers):
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": False}
    tokenizer = tokenizers["hermes"]
    grammar = allowed(tokenizer, False, otherwise=schema)
    accepted = [grammar.accepts(ids_of(tokenizer, t)) for t in ('{"x": 1}', turn(tokenizer, MANY[1]), "Hello", '{"y": 1}')]
    assert accepted == [True, True, False, False]
    with pytest.raises(UsageError, match="bare JSON"):
        allowed(tokenizers["llama"], False, otherwise=schema)
