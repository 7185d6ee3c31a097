"""Rows of every known format, and a place and a field for everything that is none.

    python -m pytest tests/data/test_normalise.py
"""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.normalise import normalise
from tunesmith.data.read import Record, read_records
from tunesmith.errors import DataError

SYSTEM, USER, ANSWER = ({"role": r, "content": c} for r, c in (("system", "s"), ("user", "q"), ("assistant", "a")))
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}


def rows(*values, fmt="auto"):
    return normalise([Record(v, f"f:{i}") for i, v in enumerate(values, 1)], fmt)


def problems(*values, fmt="auto"):
    with pytest.raises(DataError) as error:
        rows(*values, fmt=fmt)
    assert error.value.exit_code == 2
    return [(p.where, p.message) for p in error.value.problems]


def openai(*messages, **more):
    return {"messages": list(messages), **more}


def sharegpt(*turns, **more):
    return {"conversations": [{"from": who, "value": text} for who, text in turns], **more}


@pytest.mark.parametrize("value, messages", [
    (openai(SYSTEM, USER, ANSWER), [SYSTEM, USER, ANSWER]),
    (openai({"role": "developer", "content": "s"}, USER, ANSWER), [SYSTEM, USER, ANSWER]),
    (openai(USER, ANSWER | {"weight": 0}, USER, ANSWER | {"weight": 1}),
     [USER, ANSWER | {"weight": 0}, USER, ANSWER]),
    (openai(USER | {"content": [{"type": "text", "text": "q"}, {"type": "text", "text": "2"}]}, ANSWER),
     [USER | {"content": "q2"}, ANSWER]),
    (openai(USER | {"name": "Ann"}, ANSWER | {"refusal": None, "audio": None}), [USER | {"name": "Ann"}, ANSWER]),
    ({"prompt": "q", "completion": "a"}, [USER, ANSWER]),
    ({"instruction": "q", "output": "a"}, [USER, ANSWER]),
    ({"instruction": "q", "input": "", "output": "a"}, [USER, ANSWER]),
    ({"instruction": "q", "input": None, "output": "a"}, [USER, ANSWER]),
    ({"instruction": "q", "input": "x", "output": "a", "system": "s"}, [SYSTEM, USER | {"content": "q\n\nx"}, ANSWER]),
    (sharegpt(("human", "q"), ("gpt", "a")), [USER, ANSWER]),
    (sharegpt(("user", "q"), ("model", "a"), system="s"), [SYSTEM, USER, ANSWER]),
    (sharegpt(("system", "s"), ("human", "q"), ("assistant", "a")), [SYSTEM, USER, ANSWER]),
])
def test_row_of_a_known_format_becomes_these_messages(value, messages):
    row, = rows(value)
    assert row.messages == messages and row.where == "f:1" and row.tools is None


def test_tool_calls_keep_their_order_and_their_arguments_become_what_templates_take():
    result = {"role": "tool", "content": "2", "tool_call_id": "c1"}
    asked = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    row, = rows(openai(USER, asked, result, ANSWER, tools=[TOOL]))
    call = CALL | {"function": {"name": "add", "arguments": {"a": 1}}}
    assert row.messages == [USER, {"role": "assistant", "content": "", "tool_calls": [call]}, result, ANSWER]
    assert row.tools == [TOOL]
    assert row.as_record() == {"where": "f:1", "messages": row.messages, "tools": [TOOL]}
    ending, = rows(openai(USER, asked))
    assert ending.messages[-1]["tool_calls"] == [call]


def test_row_knows_its_prompt_answer_and_question():
    row, = rows(openai(SYSTEM, USER, ANSWER, USER | {"content": "q2"}, ANSWER | {"content": "a2"}))
    assert (row.prompt, row.answer) == ("q2", "a2")
    assert row.question == row.messages[:-1]


@pytest.mark.parametrize("value, field, message", [
    (openai(USER | {"content": ["q"]}, ANSWER), "messages[0].content", "a list where text belongs"),
    (openai(USER | {"content": [{"type": "text", "text": 5}]}, ANSWER), "messages[0].content", "a list where text belongs"),
    (openai(USER | {"content": [{"type": "image_url"}]}, ANSWER), "messages[0].content", "a list where text belongs"),
    (openai(USER | {"content": None}, ANSWER), "messages[0].content", "a null where text belongs"),
    (openai({"role": "user"}, ANSWER), "messages[0].content", "a null where text belongs"),
    (openai(USER, ANSWER | {"content": True}), "messages[1].content", "a boolean where text belongs"),
    (openai(USER, ANSWER | {"content": " \n"}), "messages[1].content", "an empty answer"),
    (openai(USER | {"role": "narrator"}, ANSWER), "messages[0].role", "unknown role 'narrator'"),
    (openai(USER | {"role": ["user"]}, ANSWER), "messages[0].role", "unknown role ['user']"),
    (openai({"content": "q"}, ANSWER), "messages[0].role", "unknown role None"),
    (openai("q", ANSWER), "messages[0]", "a text where a message belongs"),
    (openai(), "messages", "an empty list where a list of messages belongs"),
    ({"messages": {"role": "user"}}, "messages", "a mapping where a list of messages belongs"),
    (openai(SYSTEM, USER), "messages", "no assistant turn: there is nothing to learn from"),
    (openai(USER, ANSWER, USER), "messages[2]", "the last message is from user"),
    (openai(USER, ANSWER | {"weight": 0}), "messages", "every assistant turn has weight 0: nothing would be trained"),
    (openai(USER, ANSWER | {"weight": 0.5}), "messages[1].weight", "0.5 on a message of role assistant"),
    (openai(USER, ANSWER | {"weight": True}), "messages[1].weight", "True on a message of role assistant"),
    (openai(USER | {"weight": 0}, ANSWER), "messages[0].weight", "0 on a message of role user"),
    (openai(USER, ANSWER, tools={"a": 1}), "tools", "a mapping where a list belongs"),
    (openai(USER, ANSWER | {"tool_calls": "add(1)"}), "messages[1].tool_calls", "a text where a list of calls belongs"),
    (openai(USER, ANSWER | {"tool_calls": [{"name": "add"}]}), "messages[1].tool_calls[0]", "not a call"),
    (openai(USER, ANSWER | {"tool_calls": [CALL | {"function": {"name": "add", "arguments": "[1]"}}]}),
     "messages[1].tool_calls[0].function.arguments", "a list where a mapping belongs"),
    ({"prompt": "q", "completion": ""}, "completion", "an empty answer"),
    ({"prompt": 1, "completion": "a"}, "prompt", "a number where text belongs"),
    ({"instruction": "q", "output": " "}, "output", "an empty answer"),
    ({"instruction": "q", "input": ["x"], "output": "a"}, "input", "a list where text belongs"),
    ({"instruction": "q", "output": "a", "system": {"a": 1}}, "system", "a mapping where text belongs"),
    (sharegpt(("human", "q"), ("gpt", None)), "conversations[1].value", "a null where text belongs"),
    (sharegpt(("human", "q"), ("gpt", "a"), system=1), "system", "a number where text belongs"),
])
def test_bad_field_is_named_with_its_place(value, field, message):
    good = {"messages": [USER, ANSWER]} if "messages" in value else None
    given = (good, value) if good else (value,)
    assert problems(*given) == [(f"f:{len(given)}: {field}", message)]


def test_all_bad_rows_are_reported_at_once_and_counted():
    bad = openai(USER)
    with pytest.raises(DataError, match="3 of 4 rows cannot be used") as error:
        rows(bad, openai(USER, ANSWER), bad, {"question": "no format"})
    assert [p.where for p in error.value.problems] == ["f:1: messages", "f:3: messages", "f:4"]
    assert error.value.problems[2].message == "none of the known formats: keys are ['question']"


def test_two_formats_in_one_file_are_refused_naming_both_lines():
    """Beside the other bad rows, and each of them."""
    found = problems(openai(USER, ANSWER), {"prompt": "q", "completion": "a"}, openai(USER), {"prompt": 1, "completion": "a"})
    mixed = "one file, two formats: openai at f:1 and prompt_completion here"
    assert found == [("f:2", mixed), ("f:3: messages", "no assistant turn: there is nothing to learn from"), ("f:4", mixed)]


def test_first_record_of_no_format_does_not_decide_which_format_the_file_has():
    assert problems({"question": "q"}, openai(USER, ANSWER)) == [("f:1", "none of the known formats: keys are ['question']")]


@pytest.mark.parametrize("fmt, field", [("openai", "messages"), ("sharegpt", "conversations"), ("alpaca", "instruction"),
                                        ("prompt_completion", "prompt")])
def test_row_that_is_not_of_the_format_the_recipe_names_is_a_problem(fmt, field):
    assert problems({"text": "a"}, fmt=fmt)[0][0] == f"f:1: {field}"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=4) | st.sampled_from(["user", "assistant"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["role", "content", "type", "text", "function", "name", "arguments", "weight"]), inner, max_size=3),
    max_leaves=6)
GOOD = [
    openai(SYSTEM, USER, ANSWER | {"weight": 1}, tools=[TOOL]),
    openai(USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "2"}, ANSWER),
    openai(USER | {"content": [{"type": "text", "text": "q"}]}, ANSWER),
    {"prompt": "q", "completion": "a"},
    {"instruction": "q", "input": "x", "output": "a", "system": "s"},
    sharegpt(("human", "q"), ("gpt", "a"), system="s"),
]


def places(value, path=()):
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in inside:
        yield from places(child, (*path, name))


@st.composite
def spoiled_rows(draw):
    """A good row in which one value, at any depth, is another one or gone."""
    value = copy.deepcopy(draw(st.sampled_from(GOOD)))
    *above, last = draw(st.sampled_from([p for p in places(value) if p]))
    target = value
    for name in above:
        target = target[name]
    if draw(st.booleans()):
        target[last] = draw(JSON)
    else:
        del target[last]
    return value


@settings(max_examples=250, deadline=None, database=None)
@given(value=st.one_of(spoiled_rows(), JSON.filter(lambda v: isinstance(v, dict))), fmt=st.sampled_from(["auto", "openai"]))
def test_spoiled_row_is_a_row_or_a_problem_at_its_place(value, fmt):
    try:
        row, = rows(value, fmt=fmt)
    except DataError as error:
        problem, = error.problems
        assert problem.where.split(": ")[0] == "f:1" and problem.message
    else:
        assert row.answer.strip() or row.messages[-1]["tool_calls"]
        assert all(isinstance(m["content"], str) for m in row.messages)


@st.composite
def spoiled_files(draw):
    """Lines of one format, some of them cut, torn or overwritten."""
    good = json.dumps(draw(st.sampled_from(GOOD)))
    lines = []
    for _ in range(draw(st.integers(1, 6))):
        line = good
        if draw(st.booleans()):
            begin, end = sorted(draw(st.tuples(*[st.integers(0, len(line))] * 2)))
            line = line[:begin] + draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=3)) + line[end:]
        lines.append(line.replace("\n", " "))
    return lines


@settings(max_examples=120, deadline=None, database=None)
@given(lines=spoiled_files())
def test_rows_in_are_rows_out_and_rows_reported(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "spoiled.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8", newline="")
    given_rows = sum(1 for line in lines if line.strip())
    try:
        assert len(normalise(read_records(path, "f"))) == given_rows
    except DataError as error:
        if error.problems:
            assert error.what.startswith(f"{len(error.problems)} of {given_rows} rows")
            assert len({p.where.split(": ")[0] for p in error.problems}) == len(error.problems)
        else:  # the whole file is refused
            assert error.what.startswith(("the file is empty", "not JSON"))
