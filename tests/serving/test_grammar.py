"""Answers that are held to a form have it, whatever the model would rather say. The judge is jsonschema.

pytest tests/serving/test_grammar.py
"""

import json

import jsonschema
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tunesmith.errors import UsageError
from tunesmith.models.base import resolve
from tunesmith.models.load import tokenizer_of
from tunesmith.serving.generate import generate
from tunesmith.serving.grammar import MAX_DEPTH, GrammarError, of_json, of_lark
from tunesmith.serving.sampling import Request
from tunesmith.serving.text import decode

STOPS = frozenset({2})
ROWS = 4


@pytest.fixture(scope="module")
def tokenizer(lively_base):
    return tokenizer_of(resolve(str(lively_base)))


def ask(model, tokenizer, grammar, prompt, *, rows=ROWS, n=160, **asked):
    """[(text, finish)] of a hot random model: it says anything that it may."""
    requests = [Request(prompt=prompt, max_new_tokens=n, temperature=1.0, seed=seed, grammar=grammar, **asked)
                for seed in range(rows)]
    ids, finish = [[] for _ in requests], [None] * rows
    for token in generate(model, requests, set(STOPS)):
        assert token.error is None, token.error
        ids[token.row] += [] if token.id is None else [token.id]
        finish[token.row] = token.finish or finish[token.row]
    return [(decode(tokenizer, i), f) for i, f in zip(ids, finish, strict=True)]


NAMES = st.sampled_from(["a", "name", "é🙂", 'qu"ote', "with space", "back\\slash"])
LEAVES = st.one_of(
    st.just({"type": "boolean"}), st.just({"type": "null"}), st.just({"type": "string", "maxLength": 6}),
    st.just({"type": ["string", "null"], "maxLength": 3}), st.just({"type": "string", "pattern": "^[a-c]{1,3}-[0-9]$"}),
    st.just({"type": "string", "format": "date"}), st.just({"type": "number", "minimum": -1.5, "maximum": 2.25}),
    st.tuples(st.integers(-50, 50), st.integers(0, 100)).map(
        lambda b: {"type": "integer", "minimum": b[0], "maximum": b[0] + b[1]}),
    st.integers(2, 7).map(lambda m: {"type": "integer", "minimum": 0, "maximum": 99, "multipleOf": m}),
    st.lists(st.sampled_from(["x", "y z", 5, None, True, 1.5, 'a"b']), min_size=1, max_size=4, unique_by=repr).map(
        lambda e: {"enum": e}),
    st.sampled_from(["fixed", 7, False, {"k": [1]}]).map(lambda c: {"const": c}))


def objects(inner):
    return st.dictionaries(NAMES, inner, max_size=4).flatmap(lambda properties: st.tuples(
        st.just(properties), st.lists(st.sampled_from(sorted(properties)), unique=True) if properties else st.just([]),
        st.sampled_from([{"additionalProperties": False},
                         {"additionalProperties": {"type": "integer", "minimum": 0, "maximum": 9}},
                         {"additionalProperties": {"type": "string", "maxLength": 2}, "maxProperties": 5},
                         {"patternProperties": {"^n": {"type": "boolean"}}, "additionalProperties": False}, {}]))).map(
            lambda made: {"type": "object", "properties": made[0], "required": made[1], **made[2]})


def arrays(inner):
    return st.tuples(inner, st.integers(0, 2), st.integers(0, 2)).map(
        lambda made: {"type": "array", "items": made[0], "minItems": made[1], "maxItems": made[1] + made[2]})


SCHEMAS = st.recursive(LEAVES, lambda inner: st.one_of(
    objects(inner), arrays(inner), st.lists(inner, min_size=1, max_size=3).map(lambda several: {"anyOf": several})),
    max_leaves=6)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(schema=SCHEMAS)
def test_every_answer_that_stops_is_valid(plain_model, tokenizer, prompts, schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    try:
        grammar = of_json(tokenizer, schema, STOPS)
    except UsageError:
        assume(False)
    for text, finish in ask(plain_model, tokenizer, grammar, prompts[1]):
        if finish == "stop":
            jsonschema.validate(json.loads(text), schema)


PERSON = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0},
                                           "tags": {"type": "array", "items": {"enum": ["x", "y"]}, "maxItems": 2}},
          "required": ["name", "age", "tags"], "additionalProperties": False}


def test_most_answers_do_stop_and_without_the_grammar_none_is_valid(plain_model, tokenizer, prompts):
    """The control: the model itself writes no JSON."""
    held = ask(plain_model, tokenizer, of_json(tokenizer, PERSON, STOPS), prompts[1], rows=8, n=300)
    assert sum(finish == "stop" for _, finish in held) >= 4
    for text, _ in ask(plain_model, tokenizer, None, prompts[1], rows=8):
        with pytest.raises(ValueError):
            json.loads(text)


def test_it_holds_under_greedy_and_against_bans_and_penalties(plain_model, tokenizer, prompts):
    grammar = of_json(tokenizer, PERSON, STOPS)
    every = {t: -100 for t in range(len(tokenizer)) if t != 300}
    for asked in ({"logit_bias": every}, {"frequency_penalty": 2.0}, {"repetition_penalty": 1.5}, {"top_k": 1}):
        stopped = [t for t, f in ask(plain_model, tokenizer, grammar, prompts[2], n=400, **asked) if f == "stop"]
        assert stopped, asked
        for text in stopped:
            jsonschema.validate(json.loads(text), PERSON)


def test_a_row_that_is_held_does_not_change_its_companions(plain_model, tokenizer, prompts, greedy):
    held = Request(prompt=prompts[1], max_new_tokens=12, grammar=of_json(tokenizer, {"const": "Oak Street"}, STOPS))
    ids = [[] for _ in range(3)]
    for token in generate(plain_model, [Request(prompt=prompts[2], max_new_tokens=12), held,
                                        Request(prompt=prompts[3], max_new_tokens=12)], set(STOPS)):
        ids[token.row] += [] if token.id is None else [token.id]
    assert decode(tokenizer, ids[1]) == '"Oak Street"'
    assert [ids[0], ids[2]] == [greedy(plain_model, prompts[i], 12, STOPS) for i in (2, 3)]


def test_a_complete_answer_ends_at_once_and_a_short_limit_cuts(plain_model, tokenizer, prompts):
    grammar = of_json(tokenizer, {"const": True}, STOPS)
    needed = len(tokenizer("true")["input_ids"])
    assert {f for _, f in ask(plain_model, tokenizer, grammar, prompts[1], n=needed + 3)} == {"stop"}
    assert {f for _, f in ask(plain_model, tokenizer, grammar, prompts[1], n=1)} == {"length"} and needed > 1


def test_white_space_comes_to_an_end(tokenizer):
    grammar = of_json(tokenizer, {"type": "object"}, STOPS)

    def ids(text):
        return [t for c in text for t in tokenizer(c)["input_ids"]]

    assert grammar.accepts(ids('{"a":' + " " * 64 + "1}")) and grammar.accepts(ids('{\n    "a": [1, 2]\n}'))
    assert not grammar.accepts(ids('{"a":' + " " * 65 + "1}"))
    assert not grammar.accepts(ids('{"a": 1} ')) and not grammar.accepts(ids('{"a": 1'))


@pytest.mark.parametrize("schema, word", [
    ({"not": {"type": "string"}}, "not"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"type": "object", "propertyNames": {"pattern": "a"}}, "propertyNames"),
    ({"if": {}, "then": {}}, "if"),
    ({"type": "string", "format": "int32"}, "int32"),
    ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "oneOf"),
    ({"$ref": "http://example.com/schema.json"}, "example.com"),
    ({"$ref": "#/$defs/none"}, "/$defs/none"),
    ({"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 2}, "minProperties"),
    ({"x-guidance": {"lenient": True}, "not": {}}, "not"),
    ({"type": "objekt"}, "objekt"),
    ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
    ({"type": "integer", "minimum": 10**30}, "JSON"),
])
def test_what_cannot_be_held_is_refused_and_named(tokenizer, schema, word):
    with pytest.raises(UsageError, match=word.replace("$", r"\$")):
        of_json(tokenizer, schema, STOPS)


def test_schemas_have_a_measure(tokenizer):
    deep = {"type": "string"}
    for _ in range(MAX_DEPTH - 1):
        deep = {"type": "array", "items": deep}
    of_json(tokenizer, deep, STOPS)
    for _ in range(3000):
        deep = {"type": "array", "items": deep}
    with pytest.raises(UsageError, match="levels"):
        of_json(tokenizer, deep, STOPS)
    with pytest.raises(UsageError, match="longer"):
        of_json(tokenizer, {"enum": ["x" * 50 + str(i) for i in range(4000)]}, STOPS)


def test_a_name_that_comes_twice_is_not_written_in_two_ways(tokenizer):
    """`a` and its escape are one name, and JSON's readers take the last: it must not hide the first one's value."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
              "additionalProperties": {"type": "string"}}
    grammar = of_json(tokenizer, schema, STOPS)
    spelled = [tokenizer(t)["input_ids"] for t in ('{"a": 1, "b": "x"}', '{"a": 1, "a": "x"}', '{"a": 1, "\\u0061": "x"}')]
    assert [grammar.accepts(ids) for ids in spelled] == [True, False, False]


def test_a_grammar_that_becomes_too_complex_ends_its_own_row_only(plain_model, tokenizer, prompts, greedy):
    """A vocabulary without the letters that it needs is the plainest way there."""
    grammar = of_lark(tokenizer, 'start: "Oak" <[1]> "Elm"', STOPS)
    ended = []
    ids = []
    for token in generate(plain_model, [Request(prompt=prompts[1], max_new_tokens=9, grammar=Stuck(grammar)),
                                        Request(prompt=prompts[2], max_new_tokens=9)], set(STOPS)):
        if token.row == 0:
            ended.append(token.error)
        else:
            ids.append(token.id)
    assert isinstance(ended[-1], GrammarError) and ended[:-1] == [None] * (len(ended) - 1)
    assert ids == greedy(plain_model, prompts[2], 9, STOPS)


class Stuck:
    """A grammar over a vocabulary of which the model has only the first tokens."""

    def __init__(self, grammar):
        self._grammar = grammar

    def begin(self):
        state = self._grammar.begin()
        mask = state.mask

        def narrow(logits_V: torch.Tensor) -> None:
            mask(logits_V[:2])

        state.mask = narrow
        return state
