"""Rows in another format and back: the same rows, or a list of what the other format has no place for.

    python -m pytest tests/data/test_convert.py
"""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.convert import convert
from tunesmith.data.formats import FORMATS
from tunesmith.data.messages import Bad
from tunesmith.data.normalise import normalise
from tunesmith.data.read import Record, read_records
from tunesmith.data.rows import Row
from tunesmith.data.write import write_row
from tunesmith.errors import DataError, UsageError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ANSWER = TEXT.map(lambda t: f"a{t}")
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
                    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2), max_leaves=4)
META = st.dictionaries(TEXT.map(lambda t: f"m{t}"), JSON, max_size=2)
TOOLS = st.none() | st.lists(st.fixed_dictionaries({"type": st.just("function"), "function": st.fixed_dictionaries(
    {"name": ANSWER, "parameters": st.dictionaries(TEXT, JSON, max_size=2)})}), min_size=1, max_size=2)
SYSTEM = st.lists(TEXT.map(lambda t: {"role": "system", "content": t}), max_size=1)
USER = TEXT.map(lambda t: {"role": "user", "content": t})
SAID = ANSWER.map(lambda t: {"role": "assistant", "content": t})
CALLING = st.lists(st.dictionaries(TEXT, JSON, max_size=2), min_size=1, max_size=2).map(lambda calls: {
    "role": "assistant", "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": a}} for a in calls]})


@st.composite
def pairs(draw, weight: int = 1, least: int = 0):
    """Questions and answers in turn, the answers with a weight."""
    said = {"weight": 0} if weight == 0 else {}
    return [m for _ in range(draw(st.integers(least, 2))) for m in (draw(USER), draw(SAID) | said)]


@st.composite
def chats(draw):
    """What every chat format can say but for tools: a system prompt, then questions and answers, all trained."""
    return Row([*draw(SYSTEM.filter(lambda s: not s or s[0]["content"])), *draw(pairs(least=1))], "f:1", meta=draw(META))


@st.composite
def last_trained(draw):
    """Only the end is trained: what completions and preferences say."""
    messages = [*draw(SYSTEM), *draw(pairs(weight=0)), draw(USER), draw(SAID)]
    return Row(messages, "f:1", draw(TOOLS), draw(META))


@st.composite
def tool_chats(draw):
    return Row([*draw(SYSTEM), draw(USER), draw(CALLING), {"role": "tool", "content": draw(TEXT)}, draw(SAID)], "f:1",
               draw(TOOLS), draw(META))


@st.composite
def weighted(draw):
    """Anything OpenAI's format says."""
    row = draw(tool_chats() | chats())
    named = [m | ({"name": "n"} if draw(st.booleans()) else {}) | (
        {"weight": 0} if m["role"] == "assistant" and i < len(row.messages) - 1 and draw(st.booleans()) else {})
        for i, m in enumerate(row.messages)]
    return replace(row, messages=named)


@st.composite
def preferences(draw):
    row = draw(last_trained())
    result = st.just({"role": "tool", "content": "2"})
    poor = draw(SAID.map(lambda m: [m]) | st.tuples(CALLING, result, SAID).map(list))
    return replace(row, rejected=poor if poor != row.messages[-1:] else [poor[0] | {"content": poor[0]["content"] + "!"}])


LABELLED = st.builds(lambda row, label: replace(row, desirable=label), weighted() | last_trained(), st.booleans())
SAYS = {"openai": weighted() | last_trained(), "prompt_completion": last_trained(), "alpaca": chats(),
        "sharegpt": chats() | tool_chats(), "openai_preference": preferences(), "chosen_rejected": preferences(),
        "kto": LABELLED}
"""Rows that each format must be able to say."""


@pytest.mark.parametrize("fmt", FORMATS)
@settings(max_examples=60, deadline=None, database=None)
@given(data=st.data())
def test_what_is_written_reads_back_as_the_same_rows(fmt, data):
    rows = data.draw(st.lists(SAYS[fmt], min_size=1, max_size=3))
    lines = [json.dumps(write_row(row, fmt), ensure_ascii=False) for row in rows]
    assert normalise([Record(json.loads(line), "f:1") for line in lines]) == rows


@settings(max_examples=150, deadline=None, database=None)
@given(row=weighted() | preferences() | LABELLED | chats(), fmt=st.sampled_from(list(FORMATS)),
       meta=st.dictionaries(st.sampled_from(["prompt", "label", "chosen", "rejected", "messages", "system", "tools", "input"]),
                            JSON, max_size=2))
def test_any_row_is_written_the_same_or_refused(row, fmt, meta):
    """Also when its own keys are words of the format."""
    row = replace(row, meta=row.meta | meta)
    try:
        record = write_row(row, fmt)
    except Bad as bad:
        assert bad.args[1] and bad.args[2]
    else:
        assert normalise([Record(record, "f:1")]) == [row]


def conversation(*messages, **more):
    return {"messages": [{"role": r, "content": c} | m for r, c, m in messages], **more}


ASK, SAY, RESULT = ("user", "q", {}), ("assistant", "a", {}), ("tool", "2", {})
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
PLAIN = conversation(ASK, SAY)
LOSSY = [
    ("alpaca", conversation(ASK, ("assistant", "a", {"weight": 0}), ASK, SAY), "messages[1].weight"),
    ("sharegpt", conversation(ASK, ("assistant", "a", {"weight": 0}), ASK, SAY), "messages[1].weight"),
    ("alpaca", conversation(ASK, SAY, tools=[{"type": "function"}]), "tools"),
    ("alpaca", conversation(ASK, ASK, SAY), "messages"),
    ("alpaca", conversation(ASK, SAY, instruction="x"), "meta.instruction"),
    ("alpaca", conversation(("user", "q", {"name": "Ann"}), SAY), "messages[0].name"),
    ("sharegpt", conversation(ASK, ("assistant", None, {"tool_calls": [CALL]}), RESULT, SAY), "messages[1].tool_calls"),
    ("sharegpt", conversation(ASK, ("assistant", "t", {"tool_calls": [CALL]}), RESULT, SAY), "messages[1].content"),
    ("prompt_completion", conversation(ASK, SAY, ASK, ("assistant", "a", {"weight": 0}), ASK, SAY), "messages[3].weight"),
    ("prompt_completion", conversation(SAY), ""),
    ("openai_preference", PLAIN, ""), ("chosen_rejected", PLAIN, ""), ("kto", PLAIN, ""),
    ("openai", {"prompt": "q", "completion": "a", "label": False}, "desirable"),
    ("chosen_rejected", {"prompt": "q", "completion": "a", "label": False}, ""),
    ("openai", {"prompt": "q", "completion": "a", "messages_": 1, "chosen": 1, "label": 0, "rejected_": 2}, None),
]


@pytest.mark.parametrize("to, value, field", LOSSY)
def test_what_the_target_cannot_say_is_listed_and_left_out(tmp_path, monkeypatch, to, value, field):
    monkeypatch.chdir(tmp_path)
    good = {"openai_preference": {"prompt": "q", "chosen": "a", "rejected": "b"}, "kto": {"prompt": "q", "completion": "a",
                                                                                             "label": True}}
    good["chosen_rejected"] = good["openai_preference"]
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.jsonl").write_text(json.dumps(value) + "\n")
    (tmp_path / "d" / "b.jsonl").write_text(json.dumps(good.get(to, PLAIN)) + "\n")
    done = convert("d", tmp_path / "out.jsonl", to)
    if field is None:  # the planted control: keys that only look like words of a format
        assert done["lossy"] == [] and done["rows"] == 2
        return
    lost, = done["lossy"]
    assert lost["where"] == "d/a.jsonl:1" + (f": {field}" if field else "") and lost["message"] and lost["fix"]
    assert (done["rows_read"], done["rows"]) == (2, 1) and len(list(read_records(tmp_path / "out.jsonl"))) == 1


@pytest.mark.parametrize("fmt", ["openai_preference", "chosen_rejected"])
def test_earlier_answer_that_is_trained_is_named_where_only_the_last_one_counts(fmt):
    turns = [{"role": role, "content": role} for role in ("user", "assistant") * 2]
    with pytest.raises(Bad) as bad:
        write_row(Row(turns, "f:1", rejected=[turns[1]]), fmt)
    assert bad.value.args[0] == "messages[1]" and "trained" in bad.value.args[1]


def test_parallel_tool_calls_stand_where_openai_reads_them():
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    row = Row(turns, "f:1", meta={"parallel_tool_calls": False, "n": 1}, rejected=[turns[1] | {"content": "b"}])
    assert write_row(row, "openai_preference") == {
        "input": {"messages": turns[:1], "parallel_tool_calls": False}, "preferred_output": turns[1:],
        "non_preferred_output": row.rejected, "n": 1}


def test_chat_takes_the_good_side_of_a_preference_and_says_so(tmp_path, write):
    write("in.jsonl", {"prompt": "q", "chosen": "good", "rejected": "poor", "n": 1})
    done = convert(str(tmp_path / "in.jsonl"), tmp_path / "out.jsonl", "openai")
    assert done["lossy"] == [] and "1 rows" in done["notes"][0]
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {"messages": [
        {"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}], "n": 1}


@pytest.mark.parametrize("name", ["out.jsonl", "out.ndjson", "out.jsonl.gz", "out.jsonl.zst"])
def test_file_is_written_as_it_is_called(tmp_path, write, name):
    write("in.jsonl", PLAIN, PLAIN)
    done = convert(str(tmp_path / "in.jsonl"), tmp_path / name, "sharegpt")
    assert done == {"path": str(tmp_path / name), "to": "sharegpt", "rows_read": 2, "rows": 2, "lossy": [], "notes": []}
    assert len(normalise(read_records(tmp_path / name))) == 2
    if name.endswith(".gz"):
        assert b"conversations" in gzip.decompress((tmp_path / name).read_bytes())


@pytest.mark.parametrize("target, to", [("out.csv", "openai"), ("out", "openai"), ("in.jsonl", "openai"),
                                        ("new.jsonl", "parrot")])
def test_target_that_cannot_be_is_refused_before_anything_is_read(tmp_path, write, target, to):
    path = write("in.jsonl", PLAIN)
    before = path.read_bytes()
    with pytest.raises(UsageError) as error:
        convert(str(tmp_path / "missing.jsonl"), tmp_path / target, to)
    assert error.value.fix and path.read_bytes() == before


def test_bad_rows_of_the_source_leave_nothing_behind(tmp_path, write):
    write("in.jsonl", PLAIN, {"messages": []}, '{"mess')
    with pytest.raises(DataError, match="2 problems in the data; nothing was written") as error:
        convert(str(tmp_path / "in.jsonl"), tmp_path / "out.jsonl", "alpaca")
    assert [p.where.rsplit("/")[-1] for p in error.value.problems] == ["in.jsonl:2: messages", "in.jsonl:3"]
    with pytest.raises(DataError, match="none of the 1 rows can be said in kto"):
        convert(str(write("b.jsonl", PLAIN)), tmp_path / "out.jsonl", "kto")
    assert not (tmp_path / "out.jsonl").exists()


def test_verb_lists_what_is_lost_and_ends_with_2(command, home, write, tmp_path):
    source = write("in.jsonl", PLAIN, conversation(ASK, ("assistant", "a", {"weight": 0}), ASK, SAY))
    done = command("data", "convert", source, "--to", "alpaca", tmp_path / "out.jsonl", "--json", check=2).json
    assert done["rows"] == 1 and done["lossy"][0]["where"].endswith("in.jsonl:2: messages[1].weight")
    people = command("data", "convert", source, "--to", "openai", tmp_path / "all.jsonl", check=0).stdout
    assert people.strip() == f"2 of 2 rows: {tmp_path}/all.jsonl"
    refused = command("data", "convert", source, tmp_path / "x.jsonl", "--to", "parrot", "--json", check=2).json
    assert refused["error"] == "UsageError"
