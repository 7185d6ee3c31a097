"""Training files are refused in OpenAI's words, and what passes our own reader takes.

pytest tests/jobs/test_examples.py
"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.api.jobs_live import jsonl, rows

from tunesmith.jobs.examples import Invalid, look, rows_of

PAIR = {"input": {"messages": [{"role": "user", "content": "hi"}]},
        "preferred_output": [{"role": "assistant", "content": "Hello, how are you?"}],
        "non_preferred_output": [{"role": "assistant", "content": "what"}]}


def pairs(count: int) -> list[dict]:
    return [PAIR | {"input": {"messages": [{"role": "user", "content": f"hi {n}"}]}} for n in range(count)]


def message(**changes) -> dict:
    """An example whose answer has other keys; None takes one away."""
    answer = {"role": "assistant", "content": "yes"} | changes
    return {"messages": [{"role": "user", "content": "well?"}, {k: v for k, v in answer.items() if v is not None}]}


@pytest.fixture
def looked(tmp_path):
    def look_at(content: bytes | list[dict], method: str = "supervised", which: str = "training"):
        path = tmp_path / "train.jsonl"
        path.write_bytes(content if isinstance(content, bytes) else jsonl(content))
        return look(path, "file-abc", which, method)

    return look_at


@pytest.mark.parametrize("content, method", [
    (rows(10), "supervised"), (pairs(10), "dpo"),
    (b"\xef\xbb\xbf" + jsonl(rows(10)).replace(b"\n", b"\r\n") + b"\r\n", "supervised"),
    ([{"prompt": f"say {n}", "completion": "yes"} for n in range(10)], "supervised"),
    ([message(weight=1), message(weight=None), *rows(8)], "supervised"),
    ([message(content=None, tool_calls=[{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]),
      *rows(9)], "supervised")])
def test_what_openai_takes_is_taken(looked, content, method):
    assert looked(content, method).count == 10


def test_the_old_names_of_preferences_are_read(looked, tmp_path):
    old = [{"input": p["input"], "preferred_completion": p["preferred_output"],
            "non_preferred_completion": p["non_preferred_output"]} for p in pairs(10)]
    found = looked(old, "dpo")
    assert found.old_names and found.kind == "fine-tune-preference"
    assert [row for row, _ in rows_of(tmp_path / "train.jsonl", found.kind)] == pairs(10)


@pytest.mark.parametrize("content, method, code, said", [
    (rows(7), "supervised", "invalid_n_examples", "Training file has 7 example(s), but must have at least 10 examples"),
    (b"", "supervised", "invalid_n_examples", "Training file has 0 example(s), but must have at least 10 examples"),
    ([*rows(99), {"messages": [{"role": "user", "content": "a"}, {"content": "b"}]}], "supervised", "invalid_training_file",
     "The job failed due to an invalid training file. Invalid file format. Example 100, message 2 Discriminator 'role' is "
     "missing in value"),
    (rows(10), "dpo", "invalid_training_file",
     "The job failed due to an invalid training file. Invalid file format. Input file file-abc is in the fine-tune-chat "
     "format, but the specified fine-tuning job is not using 'supervised' as the training method (provided method=dpo)."),
    (pairs(10), "supervised", "invalid_training_file", "is in the fine-tune-preference format, but the specified fine-tuning "
     "job is not using 'dpo' as the training method (provided method=supervised)."),
    ([{"text": "x"}] * 10, "supervised", "invalid_training_file",
     "The job failed due to an invalid training file. Unexpected file format, expected either prompt/completion pairs or chat "
     "messages."),
    ([*rows(9), *pairs(1)], "supervised", "invalid_training_file", "Example 10 is in the fine-tune-preference format"),
    ([message(role="bot"), *rows(9)], "supervised", "invalid_training_file", "Example 1, message 2 Unknown role \"bot\""),
    ([message(weight=2), *rows(9)], "supervised", "invalid_training_file", "message 2 'weight' is 2: it must be 0 or 1"),
    ([message(weight=0), *rows(9)], "supervised", "invalid_training_file", "every assistant turn has weight 0"),
    ([message(content=" "), *rows(9)], "supervised", "invalid_training_file", "must have content or tool_calls"),
    ([{"messages": []}, *rows(9)], "supervised", "invalid_training_file", "messages must be a list of at least one message"),
    ([{"messages": [{"role": "user", "content": "a"}]}, *rows(9)], "supervised", "invalid_training_file", "no assistant turn"),
    (jsonl(rows(9)) + b"{\n", "supervised", "invalid_training_file", "Example 10, not JSON"),
    (jsonl(rows(9)) + b"[1]\n", "supervised", "invalid_training_file", "Example 10, a list where a JSON object belongs"),
    ([*pairs(9), PAIR | {"non_preferred_output": PAIR["preferred_output"]}], "dpo", "invalid_training_file",
     "Example 10, non_preferred_output: the same as preferred_output"),
    ([*pairs(9), PAIR | {"preferred_output": [{"role": "user", "content": "x"}]}], "dpo", "invalid_training_file",
     "Example 10, preferred_output message 1 Unknown role \"user\""),
])
def test_what_openai_refuses_is_refused_in_its_words(looked, content, method, code, said):
    with pytest.raises(Invalid) as raised:
        looked(content, method)
    assert raised.value.code == code and raised.value.param == "training_file"
    assert said in raised.value.what


def test_a_validation_file_may_be_short_and_says_that_it_is_one(looked):
    assert looked(rows(1), which="validation").count == 1
    with pytest.raises(Invalid, match="invalid validation file") as raised:
        looked([message(role="bot")], which="validation")
    assert (raised.value.code, raised.value.param) == ("invalid_validation_file", "validation_file")


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
                        ["messages", "role", "content", "weight", "input", "preferred_output", "non_preferred_output", "prompt",
                         "completion", "tool_calls", "tools", "x"]), inner, max_size=4), max_leaves=12)


@given(st.lists(JSON, max_size=3), st.sampled_from(["supervised", "dpo"]))
def test_no_file_does_more_than_be_refused(tmp_path_factory, values, method):
    path = tmp_path_factory.mktemp("any") / "train.jsonl"
    path.write_text("".join(json.dumps(v) + "\n" for v in values))
    with pytest.raises(Invalid):
        look(path, "file-abc", "training", method)
