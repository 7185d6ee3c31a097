"""Rows of another source among the training rows: their share, their choice, and what they must not do.

pytest tests/data/test_replay.py
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.replay import Joined, draw
from tunesmith.data.rows import Row
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Replay


def row(n: int, what: str = "train") -> Row:
    return Row([{"role": "user", "content": f"{what} {n}"}, {"role": "assistant", "content": f"answer {n}"}], f"{what}:{n}")


@given(st.integers(1, 60), st.integers(0, 60), st.floats(0.01, 0.9), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_share_is_of_the_whole_as_far_as_there_are_rows(train, pool, share, seed):
    more = [row(n, "more") for n in range(pool)]
    numbers, told = draw([row(n) for n in range(train)], more, Replay(rows="x", share=share), seed)
    wanted = round(share / (1 - share) * train)
    assert len(numbers) == min(wanted, pool) and numbers == sorted(set(numbers))
    assert told.severity == ("warning" if wanted > pool else "info") and told.count == len(numbers)


@given(st.floats(0.05, 0.4), st.integers(0, 9), st.randoms())
@settings(max_examples=30, deadline=None)
def test_choice_goes_by_content_and_a_larger_share_keeps_the_smaller(share, seed, shuffle):
    train, pool = [row(n) for n in range(40)], [row(n, "more") for n in range(60)]
    few = {pool[i].where for i in draw(train, pool, Replay(rows="x", share=share), seed)[0]}
    more = {pool[i].where for i in draw(train, pool, Replay(rows="x", share=share + 0.1), seed)[0]}
    assert few <= more
    mixed = list(pool)
    shuffle.shuffle(mixed)
    assert few == {mixed[i].where for i in draw(train, mixed, Replay(rows="x", share=share), seed)[0]}


def test_rows_that_are_trained_anyway_are_not_drawn_again():
    train = [row(n) for n in range(10)]
    numbers, told = draw(train, [*train, row(0, "more"), row(0, "more")], Replay(rows="x", share=0.5), 0)
    assert numbers == [10] and "no more than 1 different rows" in told.message


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(-30, 30))
@settings(max_examples=60, deadline=None)
def test_joined_sequences_are_read_as_one_list(lengths, at):
    parts = [[f"{p}.{i}" for i in range(n)] for p, n in enumerate(lengths)]
    whole, joined = [x for part in parts for x in part], Joined(*parts)
    assert (len(joined), list(joined), joined[1:4]) == (len(whole), whole, whole[1:4])
    if -len(whole) <= at < len(whole):
        assert joined[at] == whole[at]
    else:
        with pytest.raises(IndexError):
            joined[at]


def chat(question: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


GENERAL = [chat(f"What is {n} times {n + 3}?", str(n * (n + 3))) for n in range(100, 180)]


@pytest.fixture
def prepared(dataset_of, make_recipe, tmp_path):
    def make(general: list = GENERAL, share: float = 0.2, **changes):
        (tmp_path / "general.jsonl").write_text("".join(json.dumps(r) + "\n" for r in general))
        return dataset_of(make_recipe(**{"data.replay": {"rows": "general.jsonl", "share": share}} | changes))

    return make


def test_dataset_has_them_in_train_alone_and_says_so(prepared):
    dataset = prepared()
    train, counts = list(dataset.rows("train")), dataset.manifest["counts"]
    replayed = [r for r in train if r.where.startswith("general.jsonl")]
    assert len(replayed) == counts["replay"] == 10 and counts["train"] == len(train) == 50
    assert not any(r.where.startswith("general.jsonl") for r in dataset.rows("test"))
    assert dataset.manifest["mix"]["replay"] == [80, 10]
    told = next(f for f in dataset.manifest["findings"] if f["code"] == "replay")
    assert told["count"] == 10 and "20.0%" in told["message"] and told["examples"][0].startswith("general.jsonl:")


def test_without_a_test_file_they_are_not_split_off_either(prepared):
    dataset = prepared(**{"data.test": None, "data.split": {"test": 0.3}})
    assert all(r.where.startswith("train.jsonl") for r in dataset.rows("test"))
    assert dataset.manifest["counts"]["replay"] > 0


def test_another_share_seed_or_file_is_another_dataset(prepared):
    ids = [prepared().id, prepared().id, prepared(share=0.1).id, prepared(**{"train.seed": 1}).id,
           prepared(general=GENERAL[:70]).id]
    assert ids[0] == ids[1] and len(set(ids)) == 4


def test_control_a_replayed_row_that_stands_in_the_test_set_is_a_leak_like_any_other(prepared, tmp_path):
    leaks = [f for f in prepared().manifest["findings"] if f["code"].startswith("leak")]
    assert not [f for f in leaks if f["severity"] == "error"]
    held_out = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    found = prepared(general=[*held_out, *GENERAL[:4]], share=0.2).manifest["findings"]
    leaks = [f for f in found if f["severity"] == "error"]
    assert leaks and any("general.jsonl" in example for f in leaks for example in f["examples"])


def test_rows_of_another_kind_are_refused(prepared):
    with pytest.raises(DataError, match="preference rows .* cannot be trained with objective sft"):
        prepared(general=[{"prompt": "q", "chosen": "a", "rejected": "b"}])
