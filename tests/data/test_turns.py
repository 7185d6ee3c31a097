"""Long conversations in pieces: every trained turn once, in order, with system message and tools, and none too long.

    python -m pytest tests/data/test_turns.py
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.overflow import Overflow
from tunesmith.data.rows import Row
from tunesmith.data.turns import CONTEXT, pieces
from tunesmith.errors import DataError

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]


def words(row):
    """A length that needs no tokenizer: words, and one for each message."""
    return sum(len(m["content"].split()) + 1 for m in row.messages)


@st.composite
def conversations(draw):
    """Exchanges with or without calls, answers trained or not; every text names its place."""
    messages = [{"role": "system", "content": "be brief"}] if draw(st.booleans()) else []

    def say(role, **more):
        messages.append({"role": role, "content": " ".join([f"m{len(messages)}"] * draw(st.integers(1, 12))), **more})

    for _ in range(draw(st.integers(1, 9))):
        say("user")
        for _ in range(draw(st.integers(0, 2))):
            say("assistant", tool_calls=[{"function": {"name": "look", "arguments": {}}}])
            say("tool", tool_call_id="1")
        say("assistant", **({"weight": 0} if draw(st.integers(0, 3)) == 0 else {}))
    return Row(messages, "a.jsonl:12", TOOLS if draw(st.booleans()) else None, {"task": "talk"})


def trained(row):
    return [m["content"] for m in row.messages if m["role"] == "assistant" and m.get("weight", 1)]


@settings(max_examples=400, deadline=None, database=None)
@given(row=conversations(), limit=st.integers(20, 90))
def test_every_trained_turn_is_trained_once_and_nothing_else_changes(row, limit):
    made = pieces(row, limit, words)
    system = [m for m in row.messages if m["role"] == "system"]
    users = [i for i, m in enumerate(row.messages) if m["role"] == "user"]
    exchanges = [row.messages[a:b] for a, b in zip(users, [*users[1:], len(row.messages)], strict=True)]
    alone = [words(Row([*system, *exchange], "")) for exchange in exchanges if trained(Row(exchange, ""))]
    assert (made is None) == any(n > limit for n in alone)
    if made is None:
        return
    assert [text for piece in made for text in trained(piece)] == trained(row)
    plain = [(m["role"], m["content"], m.get("tool_calls")) for m in row.messages]
    for n, piece in enumerate(made, 1):
        assert words(piece) <= limit and trained(piece)
        assert (piece.where, piece.tools, piece.meta) == (f"a.jsonl:12#{n}", row.tools, row.meta)
        shown = [(m["role"], m["content"], m.get("tool_calls")) for m in piece.messages]
        head, rest = shown[: len(system)], shown[len(system) :]
        assert head == plain[: len(system)] and rest[0][0] == "user"
        at = plain.index(rest[0])
        assert plain[at : at + len(rest)] == rest  # one stretch of the row
        assert at + len(rest) == len(plain) or plain[at + len(rest)][0] == "user"  # no call without its results


def test_context_is_whole_exchanges_and_at_most_its_share():
    talk = [{"role": role, "content": f"{role}{n} " * 4} for n in range(20) for role in ("user", "assistant")]
    made = pieces(Row(talk, "a:1"), 40, words)  # ten words an exchange
    assert len(made) == 9
    for piece in made[1:]:
        context = [m for m in piece.messages if m.get("weight") == 0]
        assert len(context) == 2 and words(piece) == 40
        assert 10 * len(context) <= CONTEXT * 40


def test_preparation_splits_training_rows_and_tells_it(dataset_of, make_recipe, tmp_path):
    def talk(turns, word):
        return {"messages": [m for n in range(turns) for m in ({"role": "user", "content": f"{word} {n} please"},
                                                               {"role": "assistant", "content": f"{n} Oak Street {word}"})]}

    held = [json.dumps(talk(1, f"held{n}")) for n in range(4)]
    recipe = make_recipe(**{"data.max_tokens": 120, "data.on_overflow": "split", "data.test": "test.jsonl"})
    lines = [json.dumps(talk(n, word)) for n, word in ((1, "one"), (2, "two"), (30, "many"))]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    (tmp_path / "test.jsonl").write_text("\n".join([*held, json.dumps(talk(30, "long"))]))
    dataset = dataset_of(recipe)
    found = {f["code"]: f for f in dataset.manifest["findings"]}
    rows = [json.loads(line) for line in (dataset.path / "train.jsonl").read_text().splitlines()]
    made = [row for row in rows if "#" in row["where"]]
    assert [row["where"] for row in made] == [f"train.jsonl:3#{n + 1}" for n in range(len(made))] and len(made) > 2
    assert (found["split_overlong"]["severity"], found["split_overlong"]["count"]) == ("info", 1)
    assert f"became {len(made)} rows" in found["split_overlong"]["message"]
    assert dataset.manifest["counts"]["train"] == len(rows) == 2 + len(made) == len(dataset.tokens("train"))
    assert [m["content"] for row in made for m in row["messages"] if m["role"] == "assistant" and m.get("weight", 1)] == [
        f"{n} Oak Street many" for n in range(30)]
    assert dataset.manifest["counts"]["longest"] <= 120
    assert found["overlong"]["examples"][0].startswith("test.jsonl:5") and dataset.manifest["counts"]["test:test"] == 4


def test_exchange_that_is_too_long_by_itself_is_an_error_with_its_place(dataset_of, make_recipe, tmp_path):
    recipe = make_recipe(**{"data.max_tokens": 60, "data.on_overflow": "split"})
    lines = [json.dumps({"prompt": f"{n} Oak Street", "completion": f"{n}"}) for n in range(100, 130)]
    (tmp_path / "train.jsonl").write_text("\n".join([*lines, json.dumps({"prompt": "Say it", "completion": "12 Main " * 80})]))
    with pytest.raises(DataError) as error:
        dataset_of(recipe)
    assert [(p.code, p.where) for p in error.value.problems] == [("overlong", "train.jsonl:31")]
    assert "one exchange alone" in error.value.problems[0].message


def test_nothing_split_is_nothing_told():
    assert Overflow(10).findings() == []
