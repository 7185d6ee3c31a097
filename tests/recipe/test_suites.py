"""Everything that is wrong with suite files, at once, each with its file, its line and what to write instead.

    python -m pytest tests/recipe/test_suites.py
"""

from __future__ import annotations

import json
import re

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.errors import RecipeError
from tunesmith.recipe.load import load
from tunesmith.recipe.suites import Item, load_suites

GOOD = """name: capitals
metrics: [exact_match]
source: written for this test
licence: CC0
system: One word.
items:
  - prompt: What is the capital of Peru?
    reference: Lima
    tags: [america]
  - id: two
    messages:
      - {role: user, content: 'And of Chile?'}
    references: [Santiago, Santiago de Chile]
"""


@pytest.fixture
def suites(tmp_path):
    """Load suite files, given as `name=text`."""

    def made(*named: str, **files: str):
        recipe = {"name": "a", "base": "b", "data": {"train": "x.jsonl"}, "eval": {"suites": list(named)}}
        (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
        for name, text in files.items():
            (tmp_path / name.replace("_", ".")).write_text(text, encoding="utf-8")
        return load_suites(load(tmp_path / "recipe.yaml"))

    return made


@pytest.fixture
def mistakes(suites, tmp_path):
    def found(*named: str, **files: str):
        with pytest.raises(RecipeError) as error:
            suites(*named, **files)
        assert error.value.exit_code == 2
        return [(p.where.removeprefix(f"{tmp_path}/"), p.message, p.fix) for p in error.value.problems]

    return found


# ---- what is good ----------------------------------------------------------------------------------------------------


def test_a_suite_knows_where_each_item_is(suites):
    (one,) = suites("a.yaml", a_yaml=GOOD)
    assert one.where == ["a.yaml:7", "a.yaml:10"] and one.held_out == "a.yaml"
    assert [i.references or [i.reference] for i in one.suite.items] == [["Lima"], ["Santiago", "Santiago de Chile"]]


def test_items_may_stand_in_a_file_of_lines(suites, tmp_path):
    text = GOOD[: GOOD.index("items:")] + "items: q.jsonl\n"
    rows = [{"prompt": "one?", "reference": "1"}, {"prompt": "two?", "regex": "2|two"}]
    (one,) = suites("a.yaml", a_yaml=text, q_jsonl="\n".join(map(json.dumps, rows)) + "\n\n")
    assert one.where == ["q.jsonl:1", "q.jsonl:2"] and one.files == [tmp_path / "a.yaml", tmp_path / "q.jsonl"]
    assert [i.prompt for i in one.suite.items] == ["one?", "two?"]


def test_globs_name_each_file_once_in_order(suites):
    found = suites("*.yml", "b.yml", a_yml=GOOD, b_yml=GOOD.replace("capitals", "others"))
    assert [s.suite.name for s in found] == ["capitals", "others"]


def quoted_by_yaml(text: str) -> bool:
    """PyYAML leaves `1e3` without quotes, and we read that as the number it is elsewhere: then it is a mistake that is told."""
    return not re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", text)


TEXTS = st.text(min_size=1).filter(str.strip).filter(quoted_by_yaml)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=st.lists(st.fixed_dictionaries(
    {"prompt": TEXTS, "reference": TEXTS},
    optional={"tags": st.lists(TEXTS), "regex": st.just("a|b"),
              "json_schema": st.dictionaries(st.text().filter(quoted_by_yaml), st.integers() | st.booleans() | TEXTS)}),
    min_size=1, max_size=4))
def test_yaml_and_lines_say_the_same_whatever_the_text(suites, rows):
    head = {"name": "x", "metrics": ["exact_match"]}
    inline = yaml.safe_dump(head | {"items": rows})
    lines = "".join(json.dumps(r) + "\n" for r in rows)
    ours, theirs = suites("a.yaml", "b.yaml", a_yaml=inline, q_jsonl=lines,
                          b_yaml=yaml.safe_dump(head | {"name": "y", "items": "q.jsonl"}))
    assert ours.suite.items == theirs.suite.items == [Item.model_validate(r) for r in rows]


# ---- what is not -----------------------------------------------------------------------------------------------------


TEXT = "items[0].reference: Input should be a valid string"


@pytest.mark.parametrize("before, after, line, message, fix", [
    ("licence:", "lisence:", 4, "lisence: no such key", "did you mean 'licence'?"),
    ("reference: Lima", "referense: Lima", 8, "items[0].referense: no such key", "did you mean 'reference'?"),
    ("[exact_match]", "[exact_mach]", 2, "metrics[0]: Input should be", None),
    ("reference: Lima", "reference: 42", 8, TEXT + " (got 42)", "put it in quotes"),
    ("reference: Lima", "reference: yes", 8, TEXT + " (got True)", "put it in quotes"),
    ("references: [", "reference: x\n    references: [", 10, "items[1]: give reference, or references: not both", None),
    ("{role: user, content: 'And", "{role: assistant, content: 'And", 10, "items[1]: the last message is not a user's", None),
    ("{role: user,", "{role: usr,", 12, "items[1].messages[0].role: Input should be", None),
    ("prompt: What is the capital of Peru?", "source: x", 7, "items[0]: give prompt, or messages", None),
    ("reference: Lima", "regex: '(Lima'", 8, "items[0].regex: not a pattern", None),
    ("reference: Lima", "choices: [Lima, Lima]\n    correct: Lima", 7, "items[0]: two of the choices are the same", None),
    ("reference: Lima", "choices: [Lima, Cusco]\n    correct: 2", 7, "items[0]: correct is none of the 2 choices", None),
    ("reference: Lima", "choices: [Lima, Cusco]", 7, "items[0]: choices and correct go together", None),
    ("name: capitals", "name: capitals\nname: others", 2, "name is given twice", "keep one of them"),
    ("name: capitals", "name: two words", 1, "name: String should match pattern", None),
])
def test_a_mistake_is_told_with_its_line_and_what_to_do(mistakes, before, after, line, message, fix):
    assert before in GOOD
    found = mistakes("a.yaml", a_yaml=GOOD.replace(before, after))
    assert any(where == f"a.yaml:{line}" and told.startswith(message) and (fix is None or done.startswith(fix))
               for where, told, done in found), found
    assert len(found) == 1, found


def test_every_mistake_of_every_file_is_told_at_once(mistakes):
    rows = ['{"prompt": "a", "refrence": "b"}', "{", '{"prompt": "c", "prompt": "d"}', '{"prompt": 3}']
    head = "name: {}\nmetrics: [exact_match]\nsauce: x\n"
    found = mistakes("a.yaml", "b.yaml", "gone.yaml", a_yaml=head.format("a") + "items: q.jsonl\n", q_jsonl="\n".join(rows),
                     b_yaml=head.format("b") + "items: []\n")
    where = [w for w, _, _ in found]
    assert set(where) == {"recipe.yaml", "a.yaml:3", "b.yaml:3", "b.yaml:4", *(f"q.jsonl:{n}" for n in (1, 2, 3, 4))}
    told = {w: m for w, m, _ in found}
    assert "'prompt' is given twice" in told["q.jsonl:3"] and told["q.jsonl:1"].startswith("refrence: no such key")


@pytest.mark.parametrize("text, message", [
    ("[]", "a suite is a mapping"), ("a: [", "not valid YAML"), ("name: a\nmetrics: [loss]\n", "items: required"),
    ("name: a\nmetrics: [loss]\nitems: none.jsonl\n", "items: 'none.jsonl' does not exist"),
    ("name: a\nmetrics: [loss]\nitems: a.yaml\n", "items: 'a.yaml' is not a .jsonl file"),
    ("name: a\nmetrics: []\nitems: [{prompt: a}]\n", "metrics: List should have at least 1 item"),
    ("name: a\nmetrics: [loss]\nitems: 3\n", "items: Input should be a valid list"),
])
def test_a_file_that_is_no_suite_says_why(mistakes, text, message):
    assert any(told.startswith(message) for _, told, _ in mistakes("a.yaml", a_yaml=text))


def test_two_items_of_one_id_are_told(mistakes):
    assert mistakes("a.yaml", a_yaml=GOOD + "  - {id: two, prompt: Again}\n") == [
        ("a.yaml:14", "id 'two' is also that of a.yaml:10", "rename one of them")]


def test_two_suites_of_one_name_are_told(mistakes):
    assert mistakes("a.yaml", "b.yaml", a_yaml=GOOD, b_yaml=GOOD) == [
        ("b.yaml:1", "name: 'capitals' is also the name of a.yaml", "rename one of them")]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=60) | st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5), lambda s: st.lists(s, max_size=3) | st.dictionaries(
        st.sampled_from([*Item.model_fields, "x"]), s, max_size=3), max_leaves=8)
    .map(lambda items: yaml.safe_dump({"name": "a", "metrics": ["loss"], "items": items})))
def test_no_file_ends_in_a_traceback(suites, text):
    try:
        assert suites("a.yaml", a_yaml=text)
    except RecipeError as error:
        assert error.problems
