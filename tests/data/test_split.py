"""Held-out rows: never in train, always the same ones.

    python -m pytest tests/data/test_split.py
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.split import split
from tunesmith.errors import DataError


def said(rows):
    return Counter((r.prompt, r.answer) for r in rows)


@settings(max_examples=100, deadline=None, database=None)
@given(names=st.lists(st.text(max_size=3), min_size=1, max_size=30), share=st.floats(0.01, 0.99),
       by=st.sampled_from(["random", "source"]), seed=st.integers(0, 9), shuffling=st.randoms(use_true_random=False))
def test_split_takes_every_row_once_keeps_order_and_ignores_it(chat, names, share, by, seed, shuffling):
    rows = [chat(name, "a", f"{name}.jsonl:{i}") for i, name in enumerate(names, 1)]
    try:
        train, test = split(rows, share, by, seed)
    except DataError:
        groups = len(set(names))
        assert max(1, round(share * groups)) == groups
        return
    assert train and test
    assert said(train) + said(test) == said(rows)
    assert not said(train).keys() & said(test).keys()
    assert [r for r in rows if r in train] == train and [r for r in rows if r in test] == test
    shuffled = rows.copy()
    shuffling.shuffle(shuffled)
    train_again, test_again = split(shuffled, share, by, seed)
    assert (said(train), said(test)) == (said(train_again), said(test_again))


def test_split_by_source_keeps_files_whole_and_does_not_look_at_their_names(chat):
    def rows(names):
        return [chat(f"q{n} {i}", "a", f"{name}.jsonl:{i}") for n, name in enumerate(names) for i in range(1, 6)]

    first = split(rows("abcdefgh"), 0.25, "source", 0)
    renamed = split(rows("zyxwvuts"), 0.25, "source", 0)
    files = [{r.where.split(":")[0] for r in side} for side in first]
    assert len(files[1]) == 2 and not files[0] & files[1]
    assert [said(side) for side in first] == [said(side) for side in renamed]


def test_another_seed_holds_out_other_rows(chat):
    rows = [chat(f"q{i}", "a") for i in range(100)]
    held_out = {frozenset(said(split(rows, 0.2, "random", seed)[1])) for seed in range(5)}
    assert len(held_out) == 5 and {len(h) for h in held_out} == {20}


def test_share_is_reached_with_many_rows_and_same_rows_stay_together(chat):
    rows = [chat(f"q{i % 500}", "a", f"f:{i}") for i in range(1000)]
    random.Random(0).shuffle(rows)
    train, test = split(rows, 0.15, "random", 0)
    assert (len(train), len(test)) == (850, 150)


@pytest.mark.parametrize("by, count, what", [("source", 40, "cannot hold out 15% of 1 file"), ("random", 1, "1 distinct row"),
                                             ("random", 0, "0 distinct row")])
def test_side_without_rows_is_an_error(chat, by, count, what):
    with pytest.raises(DataError, match=what) as error:
        split([chat(f"q{i}", "a", f"one.jsonl:{i}") for i in range(count)], 0.15, by, 0)
    assert "data.test" in error.value.fix
