"""Held-out rows: never in train, always the same ones.

    python -m pytest tests/data/test_split.py
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.split import split
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Split


def said(rows):
    return Counter((r.prompt, r.answer) for r in rows)


def sides(rows, share=0.15, by="random", seed=0, **options):
    """The rows themselves of both sides."""
    similar = options.pop("similar", ())
    return tuple([rows[i] for i in numbers] for numbers in split(rows, Split(test=share, by=by, **options), seed, similar))


@settings(max_examples=100, deadline=None, database=None)
@given(names=st.lists(st.text(max_size=3), min_size=1, max_size=30), share=st.floats(0.01, 0.99),
       by=st.sampled_from(["random", "source"]), seed=st.integers(0, 9), shuffling=st.randoms(use_true_random=False))
def test_split_takes_every_row_once_keeps_order_and_ignores_it(chat, names, share, by, seed, shuffling):
    rows = [chat(name, "a", f"{name}.jsonl:{i}") for i, name in enumerate(names, 1)]
    try:
        train, test = split(rows, Split(test=share, by=by), seed)
    except DataError:
        assert len(set(names)) == 1
        return
    assert len(set(names)) > 1
    assert train == sorted(train) and test == sorted(test) and train and test
    assert sorted(train + test) == list(range(len(rows)))
    assert not {names[i] for i in train} & {names[i] for i in test}
    shuffled = rows.copy()
    shuffling.shuffle(shuffled)
    assert [said(s) for s in sides(shuffled, share, by, seed)] == [said(s) for s in sides(rows, share, by, seed)]


def test_split_by_source_keeps_files_whole_and_does_not_look_at_their_names(chat):
    def rows(names):
        return [chat(f"q{n} {i}", "a", f"{name}.jsonl:{i}") for n, name in enumerate(names) for i in range(1, 6)]

    first, renamed = sides(rows("abcdefgh"), 0.25, "source"), sides(rows("zyxwvuts"), 0.25, "source")
    files = [{r.where.split(":")[0] for r in side} for side in first]
    assert len(files[1]) == 2 and not files[0] & files[1]
    assert [said(side) for side in first] == [said(side) for side in renamed]


def test_another_seed_holds_out_other_rows(chat):
    rows = [chat(f"q{i}", "a") for i in range(100)]
    held_out = {frozenset(said(sides(rows, 0.2, seed=seed)[1])) for seed in range(5)}
    assert len(held_out) == 5 and {len(h) for h in held_out} == {20}


def test_share_is_reached_with_many_rows_and_same_rows_stay_together(chat):
    rows = [chat(f"q{i % 500}", "a", f"f:{i}") for i in range(1000)]
    random.Random(0).shuffle(rows)
    train, test = sides(rows)
    assert (len(train), len(test)) == (850, 150)


def test_share_is_that_of_rows_also_when_authors_wrote_unlike_much(chat):
    rows = [replace(chat(f"q{a} {i}", "a"), meta={"author": f"a{a}"}) for a in range(40) for i in range(1 + a)]
    train, test = sides(rows, 0.2, "author")
    assert not {r.meta["author"] for r in train} & {r.meta["author"] for r in test}
    assert len(test) / len(rows) == pytest.approx(0.2, abs=0.03)


def test_near_duplicates_stay_on_one_side_and_draw_their_files_with_them(chat):
    rows = [chat(f"q{i}", "a", f"f{i % 10}:{i}") for i in range(100)]
    pairs = [(i, i + 50) for i in range(0, 50, 5)] + [(0, 5), (5, 10)]
    for by in ("random", "source"):
        train, test = split(rows, Split(test=0.2, by=by), 0, pairs)
        assert all((a in train) == (b in train) for a, b in pairs), by
    apart = [set(split(rows, Split(test=0.2), seed)[1]) for seed in range(20)]
    assert any((a in test) != (b in test) for test in apart for a, b in pairs), "without pairs they would part"


def test_newest_rows_are_held_out_and_same_times_stay_together(chat):
    times = [f"2026-0{m}-1{d}T08:00:00Z" for m in range(1, 10) for d in range(10)] + ["2026-09-19T10:00:00+02:00"] * 3
    rows = [replace(chat(f"q{i}", "a"), meta={"created_at": t}) for i, t in enumerate(times)]
    random.Random(0).shuffle(rows)
    train, test = sides(rows, 0.1, "time")
    assert Counter(r.meta["created_at"] for r in test) == Counter(times[84:])  # nine, of which four at the same moment
    assert len({r.meta["created_at"] for r in train} & {r.meta["created_at"] for r in test}) == 0
    seconds = [replace(chat(f"q{i}", "a"), meta={"time": 1000 + i}) for i in range(10)]
    assert [r.meta["time"] for r in sides(seconds, 0.2, "time")[1]] == [1008, 1009]


def test_every_label_is_held_out_in_its_share(chat):
    rows = [chat(f"q{i}", "rare" if i % 10 == 0 else "usual") for i in range(400)]
    _train, test = sides(rows, 0.2, stratify="answer")
    assert Counter(r.answer for r in test) == {"usual": 72, "rare": 8}
    plain = Counter(r.answer for seed in range(5) for r in sides(rows, 0.2, seed=seed)[1])
    assert plain["rare"] != 40, "without strata the share is left to chance"


@pytest.mark.parametrize("by, count, what", [("source", 40, "cannot hold out 15% of 1 file"), ("random", 1, "1 distinct row"),
                                             ("random", 0, "0 distinct row")])
def test_side_without_rows_is_an_error(chat, by, count, what):
    with pytest.raises(DataError, match=what) as error:
        sides([chat(f"q{i}", "a", f"one.jsonl:{i}") for i in range(count)], 0.15, by)
    assert "data.test" in error.value.fix


@pytest.mark.parametrize("options, meta, what", [
    ({"by": "author"}, {"source": "x"}, "a row without 'author'"), ({"stratify": "topic"}, {}, "a row without 'topic'"),
    ({"by": "time"}, {}, "a row without a time"), ({"by": "time"}, {"date": "soon"}, "'soon' is no time"),
    ({"by": "time"}, {"time": True}, "True is no time"),
])
def test_row_that_does_not_say_what_it_is_split_by_is_named(chat, options, meta, what):
    told = {"author": "a", "topic": "t", "time": 1}
    rows = [replace(chat("q", "a", "f:1"), meta=told), replace(chat("r", "a", "f:2"), meta=meta)]
    with pytest.raises(DataError, match=what) as error:
        sides(rows, **options)
    assert error.value.where == "f:2" and error.value.fix


def test_passages_of_one_book_are_split_by_chapter_and_not_by_source(chat):
    """A book is one file, and chapters of two books may have one name."""
    rows = [replace(chat(f"{book} {title} {n}", "a", f"{book}: chapter {title}, passage {n}"),
                    meta={"source": book, "chapter": title, "kind": "narration"})
            for book in ("one.txt", "two.txt") for title in "IJKLMNOP" for n in range(5)]
    train, held_out = split(rows, Split(by="chapter", test=0.2), 0)
    chapters = [{(rows[i].meta["source"], rows[i].meta["chapter"]) for i in part} for part in (train, held_out)]
    assert not chapters[0] & chapters[1] and len(chapters[0] | chapters[1]) == 16 and len(chapters[1]) == 3
    with pytest.raises(DataError) as error:
        split(rows[:40], Split(by="source", test=0.2), 0)
    assert "data.split.by: chapter" in error.value.fix
    with pytest.raises(DataError) as error:
        split([replace(row, meta={}) for row in rows[:40]], Split(by="source", test=0.2), 0)
    assert "chapter" not in error.value.fix
