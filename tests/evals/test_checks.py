"""Answers that are right by a rule: JSON, schemas, patterns; and rules that no answer could be held to.

pytest tests/evals/test_checks.py
"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import NotMeasured
from tunesmith.evals.items import Item, Outcome
from tunesmith.evals.metrics import METRICS

VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
                      lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3), max_leaves=8)
ADDRESS = {"type": "object", "required": ["street", "zip"], "additionalProperties": False,
           "properties": {"street": {"type": "string"}, "zip": {"$ref": "#/$defs/zip"}},
           "$defs": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}}}


def score(name: str, answer: str, **check) -> float:
    (hit, one) = METRICS[name].parts(Outcome(answer), Item("f:1", [], check=check))
    assert one == 1.0
    return hit


def refusal(name: str, **check) -> str:
    with pytest.raises(ValueError) as error:
        METRICS[name].check(Item("f:1", [], check=check))
    return str(error.value)


# ---- JSON ------------------------------------------------------------------------------------------------------------


@given(VALUES)
def test_what_json_writes_is_json(value):
    assert score("json_valid", json.dumps(value)) == 1
    assert score("json_valid", f" \n{json.dumps(value, ensure_ascii=False)}\t") == 1
    assert score("json_valid", json.dumps(value) + "}") == 0


@pytest.mark.parametrize("answer", ["", "{", "{'a': 1}", "```json\n{}\n```", "{} and more", "NaN", "[Infinity]", "[-Infinity]",
                                    "[" * 100_000, "1" * 5000, "{a: 1}", "[1,]", "\"\x00\""])
def test_what_is_no_json(answer):
    assert score("json_valid", answer) == 0
    assert score("json_schema", answer, json_schema={}) == 0


# ---- schemas ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer, hit", [
    ('{"street": "Oak", "zip": "52401"}', 1), ('{"street": "Oak", "zip": "5240"}', 0), ('{"street": "Oak", "zip": 52401}', 0),
    ('{"street": "Oak"}', 0), ('{"street": "Oak", "zip": "52401", "x": 1}', 0), ("[]", 0), ("no JSON", 0)])
def test_a_schema_with_references_and_patterns(answer, hit):
    assert score("json_schema", answer, json_schema=ADDRESS) == hit
    METRICS["json_schema"].check(Item("f:1", [], check={"json_schema": ADDRESS}))


@given(VALUES, st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"]))
def test_types_are_those_of_the_specification(value, kind):
    """Against a hand-written table: 1.0 is an integer, true is no number (JSON Schema 2020-12, section 6.1.1)."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    expected = {"null": value is None, "boolean": isinstance(value, bool), "string": isinstance(value, str),
                "array": isinstance(value, list), "object": isinstance(value, dict), "number": number,
                "integer": number and value == int(value)}[kind]
    assert score("json_schema", json.dumps(value), json_schema={"type": kind}) == expected


@pytest.mark.parametrize("schema, words", [
    (None, "no check.json_schema"), ("text", "no check.json_schema"), ({"type": "text"}, "is no JSON schema"),
    ({"required": "street"}, "is no JSON schema"), ({"$ref": "#/$defs/nowhere"}, "refers to '#/$defs/nowhere'"),
    ({"properties": {"a": {"$ref": "https://example.com/schema.json"}}}, "refers to 'https://example.com/schema.json'")])
def test_a_schema_that_is_none_or_stands_elsewhere_is_refused_before_anything_is_generated(schema, words):
    assert words in refusal("json_schema", **({} if schema is None else {"json_schema": schema}))


# ---- patterns --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern, answer, hit", [
    (r"\d{5}", "zip 52401", 1), (r"^\d{5}$", "zip 52401", 0), (r"^\d{5}$", "52401", 1), (r"(?i)oak", "OAK", 1), ("", "", 1),
    (r"(?s)^a.*z$", "a\nz", 1), (r"^\p{Lu}", "Éa", 1), ("x", "", 0)])
def test_a_pattern_is_looked_for(pattern, answer, hit):
    assert score("regex", answer, regex=pattern) == hit


def test_a_pattern_that_does_not_compile_or_is_not_there_is_refused():
    assert "does not compile" in refusal("regex", regex="(a")
    assert "no check.regex" in refusal("regex")
    assert "no check.regex" in refusal("regex", regex=5)


@pytest.mark.parametrize("name, check, answer", [
    ("regex", {"regex": "^(a|aa)+$"}, "a" * 60 + "!"),
    ("json_schema", {"json_schema": {"type": "string", "pattern": "^(a|aa)+$"}}, json.dumps("a" * 60 + "!"))])
def test_endless_backtracking_ends_and_is_no_verdict(name, check, answer):
    """Python's `re` would come back from this after years."""
    with pytest.raises(NotMeasured, match="takes over"):
        score(name, answer, **check)
