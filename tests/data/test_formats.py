"""Preferences, KTO and the older spellings: what each record says as a row, and what is refused.

    python -m pytest tests/data/test_formats.py
"""

from __future__ import annotations

import json

import pytest

from tunesmith.data.formats import detect
from tunesmith.data.normalise import normalise
from tunesmith.data.read import Record
from tunesmith.data.rows import Row, require_sft
from tunesmith.errors import DataError

SYSTEM, USER, GOOD, POOR = ({"role": r, "content": c} for r, c in (
    ("system", "s"), ("user", "q"), ("assistant", "good"), ("assistant", "poor")))
EARLIER = [{"role": "user", "content": "q0"}, {"role": "assistant", "content": "a0"}]
SHOWN = [EARLIER[0], EARLIER[1] | {"weight": 0}]
FUNCTION = {"name": "add", "description": "d", "parameters": {}}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"name": "add", "arguments": {"a": 1}}


def row(value, fmt="auto") -> Row:
    return normalise([Record(value, "f:1")], fmt)[0]


def problem(value, fmt="auto") -> tuple[str, str]:
    with pytest.raises(DataError) as error:
        row(value, fmt)
    found, = error.value.problems
    return found.where.removeprefix("f:1").removeprefix(": "), found.message


def preference(*context, good=(GOOD,), poor=(POOR,), **more):
    return {"input": {"messages": list(context)}, "preferred_output": list(good), "non_preferred_output": list(poor), **more}


# ---- preferences


@pytest.mark.parametrize("value, context", [
    (preference(SYSTEM, USER), [SYSTEM, USER]), (preference(*EARLIER, USER), [*SHOWN, USER]),
    ({"prompt": "q", "chosen": "good", "rejected": "poor"}, [USER]),
    ({"prompt": "q", "chosen": "good", "rejected": "poor", "system": "s"}, [SYSTEM, USER]),
    ({"prompt": [SYSTEM, USER], "chosen": "good", "rejected": [POOR]}, [SYSTEM, USER]),
    ({"prompt": [*EARLIER, USER], "chosen": [GOOD], "rejected": [POOR]}, [*SHOWN, USER]),
    ({"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, POOR]}, [USER]),
    ({"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, POOR]}, [USER]),
    ({"chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, POOR]}, [SYSTEM, USER]),
    ({"chosen": [*EARLIER, USER, GOOD], "rejected": [*EARLIER, USER, POOR]}, [*SHOWN, USER]),
    ({"prompt": "q", "chosen": [*EARLIER, USER, GOOD], "rejected": [*EARLIER, USER, POOR]}, [*SHOWN, USER]),
])
def test_preference_is_a_context_an_answer_and_a_rejected_one(value, context):
    found = row(value)
    assert (found.messages, found.rejected, found.desirable, found.meta) == ([*context, GOOD], [POOR], None, {})


def test_rejected_continuation_may_call_tools_first():
    called = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": CALL}]}
    found = row(preference(USER, poor=[called, {"role": "tool", "content": "2"}, POOR]))
    assert [m["role"] for m in found.rejected] == ["assistant", "tool", "assistant"]


def test_preference_keeps_tools_and_other_keys():
    value = preference(USER, source="x")
    value["input"] |= {"tools": [TOOL], "parallel_tool_calls": False}
    found = row(value)
    assert found.tools == [TOOL] and found.meta == {"source": "x", "parallel_tool_calls": False}
    scored = row({"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, POOR], "messages": [USER], "score_chosen": 7.5})
    assert scored.meta == {"messages": [USER], "score_chosen": 7.5}


@pytest.mark.parametrize("value, field, message", [
    (preference(USER, good=[GOOD, USER, GOOD]), "preferred_output", "3 messages after"),
    (preference(USER, good=[USER]), "preferred_output", "1 messages after"),
    (preference(USER, good=[]), "preferred_output", "an empty list where"),
    (preference(USER, poor=[USER, POOR]), "non_preferred_output", "messages from user, assistant where"),
    (preference(USER, poor=[GOOD]), "non_preferred_output", "the same as preferred_output"),
    (preference(USER, poor=[POOR | {"content": " "}]), "non_preferred_output[0].content", "an empty answer"),
    (preference(USER, poor=[POOR | {"weight": 0}]), "non_preferred_output", "a weight on a rejected answer"),
    (preference(USER, good=[GOOD | {"weight": 0}]), "messages", "every assistant turn has weight 0"),
    (preference(), "input.messages", "an empty list"),
    (preference(USER) | {"input": [USER]}, "input", "a list where a mapping belongs"),
    (preference(USER) | {"input": {"messages": [USER], "tools": {}}}, "input.tools", "a mapping where a list belongs"),
    (preference(USER) | {"input": {"messages": [USER], "n": 1}, "n": 2}, "n", "stands twice"),
    ({"chosen": "good", "rejected": "poor"}, "prompt", "a null where text belongs"),
    ({"prompt": "q", "chosen": None, "rejected": "poor"}, "chosen", "a null where text belongs"),
    ({"prompt": "q", "chosen": "good", "rejected": "good"}, "rejected", "the same as chosen"),
    ({"prompt": "q", "chosen": [USER, GOOD], "rejected": "poor"}, "rejected", "one side is a whole conversation"),
    ({"prompt": "other", "chosen": [USER, GOOD], "rejected": [USER, POOR]}, "prompt", "is not in the conversations"),
    ({"chosen": [*EARLIER, USER, GOOD], "rejected": [USER, POOR]}, "chosen", "4 messages after what both sides share"),
    ({"chosen": [USER, GOOD], "rejected": [USER, GOOD, USER, POOR]}, "rejected", "messages from assistant, user, assistant"),
    ({"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, "rejected", "the same as chosen"),
])
def test_preference_that_prefers_nothing_is_refused(value, field, message):
    found = problem(value)
    assert found[0] == field and found[1].startswith(message)


# ---- KTO


@pytest.mark.parametrize("value, messages", [
    ({"prompt": "q", "completion": "good"}, [USER, GOOD]), ({"messages": [SYSTEM, USER, GOOD]}, [SYSTEM, USER, GOOD]),
    ({"prompt": [*EARLIER, USER], "completion": [GOOD]}, [*SHOWN, USER, GOOD]),
])
@pytest.mark.parametrize("label", [True, False])
def test_kto_row_says_whether_its_answer_is_desirable(value, messages, label):
    found = row(value | {"label": label, "n": 1})
    assert (found.messages, found.desirable, found.rejected, found.meta) == (messages, label, None, {"n": 1})


@pytest.mark.parametrize("label", ["positive", 1, None, "true"])
def test_label_that_is_a_class_stays_in_meta_unless_the_recipe_says_kto(label):
    value = {"prompt": "q", "completion": "good", "label": label}
    assert detect(value) == "prompt_completion" and row(value).meta == {"label": label}
    assert problem(value, "kto")[0] == "label"
    assert row(value | {"label": True}, "prompt_completion").meta == {"label": True}


@pytest.mark.parametrize("value, said", [(preference(USER), "a preferred and a rejected answer"),
                                         ({"prompt": "q", "completion": "good", "label": True}, "KTO rows")])
def test_sft_refuses_rows_that_say_what_to_avoid(value, said):
    chat = row({"messages": [USER, GOOD]})
    require_sft([chat, chat])
    with pytest.raises(DataError) as error:
        require_sft([chat, row(value)])
    assert said in error.value.what and error.value.where == "f:1" and "data convert" in error.value.fix


@pytest.mark.parametrize("value", [preference(USER), {"prompt": "q", "completion": "good", "label": False}])
def test_recipe_of_objective_sft_refuses_them(dataset_of, make_recipe, tmp_path, value):
    recipe = make_recipe()
    (tmp_path / "train.jsonl").write_text(json.dumps(value) + "\n")
    with pytest.raises(DataError, match="cannot be trained with objective sft"):
        dataset_of(recipe)


@pytest.mark.parametrize("value", [preference(USER, n=1), {"prompt": "q", "completion": "good", "label": False},
                                   {"messages": [USER, GOOD], "tools": [TOOL]}], ids=["pair", "kto", "tools"])
def test_row_reads_back_from_what_a_dataset_keeps(value):
    assert Row.from_record(json.loads(json.dumps(row(value).as_record()))) == row(value)


# ---- chat


@pytest.mark.parametrize("value", [
    {"messages": [USER, GOOD]}, {"messages": [SYSTEM, USER, GOOD]}, {"prompt": "q", "completion": "good"},
    {"prompt": [USER], "completion": [GOOD]}, {"instruction": "q", "output": "good"},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}]},
], ids=str)
def test_system_beside_the_conversation_is_its_first_message(value):
    assert row(value | {"system": "s"}).messages == [SYSTEM, USER, GOOD]
    assert row(value | {"system": ""}).meta == {}
    assert problem(value | {"system": 5})[0] == "system"


def test_two_system_messages_are_refused():
    assert problem({"messages": [SYSTEM, USER, GOOD], "system": "other"})[0] == "system"


def test_prompt_of_messages_is_shown_and_the_completion_trained():
    found = row({"prompt": [SYSTEM, *EARLIER, USER], "completion": [GOOD, USER, GOOD]})
    assert found.messages == [SYSTEM, *SHOWN, USER, GOOD, USER, GOOD]
    assert problem({"prompt": [USER], "completion": [USER, GOOD]})[0] == "completion[0]"
    assert problem({"prompt": [], "completion": "a"}) == ("prompt", "a list where text belongs")


def test_older_functions_are_tools_and_their_calls_tool_calls():
    asked = {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 1}'}}
    found = row({"messages": [USER, asked, {"role": "function", "name": "add", "content": "2"}, GOOD], "functions": [FUNCTION],
                 "parallel_tool_calls": False})
    assert found.tools == [TOOL] and found.meta == {"parallel_tool_calls": False}
    called = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]}
    assert found.messages == [USER, called, {"role": "tool", "name": "add", "content": "2"}, GOOD]


def test_tools_in_both_spellings_are_refused():
    value = {"messages": [USER, GOOD], "tools": [TOOL], "functions": [FUNCTION]}
    assert problem(value) == ("functions", "also tools in the same record")


@pytest.mark.parametrize("turns, messages", [
    ([{"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}], [USER, GOOD]),
    ([{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}], [USER, GOOD]),
    ([{"from": "human", "value": "q"}, {"from": "function_call", "value": json.dumps(CALL)},
      {"from": "observation", "value": "2"}, {"from": "gpt", "value": "good"}],
     [USER, {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]},
      {"role": "tool", "content": "2"}, GOOD]),
])
@pytest.mark.parametrize("key", ["conversations", "conversation"])
def test_sharegpt_in_its_spellings(key, turns, messages):
    found = row({key: turns, "tools": json.dumps([FUNCTION]), "id": "x"})
    assert found.messages == messages and found.tools == [TOOL] and found.meta == {"id": "x"}


def test_alpaca_with_history():
    found = row({"instruction": "q", "output": "good", "history": [["q0", "a0"]], "system": "s", "text": "all of it"})
    assert found.messages == [SYSTEM, *EARLIER, USER, GOOD] and found.meta == {"text": "all of it"}
    assert row({"instruction": "q", "output": "good", "history": None}).messages == [USER, GOOD]
    for history, field in (([["q0"]], "history[0]"), ("q0", "history"), ([["q0", 1]], "history[0][1]"), ([["q", " "]],
                                                                                                       "history[0][1]")):
        assert problem({"instruction": "q", "output": "good", "history": history})[0] == field


@pytest.mark.parametrize("message, field, said", [
    (GOOD | {"tool_calls": [{"function": CALL}], "function_call": CALL}, "function_call", "also tool_calls"),
    (GOOD | {"function_call": {"name": "add", "arguments": "{"}}, "function_call.function.arguments", "not JSON"),
    (GOOD | {"tool_calls": [{"function": {"name": "add", "arguments": '{"a": "\\ud800"}'}}]},
     "tool_calls[0].function.arguments", "not JSON"),
    (GOOD | {"tool_calls": [{"function": {"name": "add", "arguments": '{"a": 1, "a": 2}'}}]},
     "tool_calls[0].function.arguments", "not JSON: key 'a' stands twice"),
    (USER | {"tool_calls": [{"function": CALL}]}, "tool_calls", "on a message of role user"),
    (GOOD | {"name": 5}, "name", "a number where text belongs"), (GOOD | {"name": {"a": 1}}, "name", "a mapping where"),
])
def test_message_that_contradicts_itself_is_refused(message, field, said):
    found = problem({"messages": [USER, message, GOOD]})
    assert found[0] == f"messages[1].{field}" and found[1].startswith(said)


def test_nothing_that_a_record_says_is_lost():
    found = row({"messages": [USER | {"id": 7}, GOOD | {"refusal": None, "thinking": "hm"}], "source": "x", "score": None})
    assert found.messages == [USER, GOOD]
    assert found.meta == {"source": "x", "score": None,
                          "message_keys": {"messages[0]": {"id": 7}, "messages[1]": {"thinking": "hm"}}}
    assert problem({"messages": [USER | {"id": 7}, GOOD], "message_keys": {}})[0] == "message_keys"


@pytest.mark.parametrize("value", [{"text": "It was night."}, {"text": "It was night.", "source": "x"}])
def test_raw_text_is_sent_to_where_it_belongs(value):
    with pytest.raises(DataError) as error:
        row(value)
    found, = error.value.problems
    assert found.code == "raw_text" and ".txt" in found.fix


def test_record_with_many_unknown_keys_is_named_by_a_few():
    assert problem({f"k{n:03}": n for n in range(500)})[1].endswith("and 488 more")
