"""Excerpts are true: what is marked differs, or is shared; what is not cut is the text; nothing personal is in them.

    python -m pytest tests/data/test_pictures.py
"""

from __future__ import annotations

import json

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunesmith.data.leaks import every_leak
from tunesmith.data.pictures import (
    AROUND,
    GROUPS,
    LONGEST_MARK,
    MEMBERS,
    PAIRS,
    SHOWN,
    WHOLE,
    Pictures,
    differing,
    excerpt,
    group,
    pair,
)
from tunesmith.data.quality.evidence import mask
from tunesmith.data.similar import Index

FEW = settings(max_examples=80, deadline=None, database=None)
WORDS = st.lists(st.sampled_from(["the", "old", "mill", "12", "13", ",", ".", " ", "  ", "\n", "🙂", "كتاب", "明日は雨", "é",
                                  "हिन्दी", "<b>", "&amp;", "\u202e"]), max_size=60).map(" ".join)


def without(text: str, spans) -> str:
    return "".join(c for i, c in enumerate(text) if not any(a <= i < b for a, b in spans))


@FEW
@given(WORDS, WORDS)
@example("the old mill", "the mill")
def test_two_texts_are_the_same_without_what_is_marked_as_different(one, other):
    ours, theirs = differing(one, other)
    assert without(one, ours) == without(other, theirs)
    assert len(ours) == len(theirs) and (one == other) == (not ours)


@FEW
@given(WORDS, st.data())
def test_an_excerpt_is_the_text_in_order_and_bounded(text, data):
    text = text * data.draw(st.sampled_from([1, 2, 10]))
    places = st.tuples(st.integers(0, len(text)), st.integers(0, len(text))).map(lambda p: tuple(sorted(p)))
    spans = data.draw(st.lists(places, max_size=5))
    found = excerpt(text, spans)
    at = 0
    for kind, piece in found:
        if kind != "cut":
            at = mask(text).index(piece, at) + len(piece)  # an error unless it stands there, after the last one
    assert sum(len(piece) for _, piece in found) <= SHOWN + LONGEST_MARK + 4 * max(AROUND, WHOLE)
    if len(text) <= WHOLE:
        assert "".join(piece for _, piece in found) == mask(text)
        marked = {i for a, b in spans for i in range(a, b)}
        at = 0
        for kind, piece in found:
            for i in range(at, at + len(piece)):
                assert kind == "mark" or i not in marked or kind == "cut", "whatever was to be marked is marked"
            at += len(piece)


@FEW
@given(st.text(), st.sampled_from(["bob@corp-mail.de", "+44 113 496 0817", "5425 2334 3010 9903", "1234567"]),
       st.text(max_size=9))
def test_masking_keeps_every_offset(before, secret, after):
    text = f"{before} {secret} {after}"
    assert len(mask(text)) == len(text) and secret not in mask(text)
    assert mask("the old mill by the river") == "the old mill by the river", "control"


def rows_of(chat, count: int = 40):
    """Groups of nearly the same rows, with a telephone number and an address in each; and others that resemble none."""
    rows = []
    for n in range(count):
        words = " ".join(f"{w}{n}" for w in ("mill", "river", "stone", "bridge", "night"))
        for m in range(1 + n % 5 * (n < 20)):
            question = f"What do you know of {words}, and of house number {m} beside them? Write to ann.lee{n}@brightmail.com."
            answer = f"It is {words}, and {m} is near. Ring +44 113 496 08{n:02}."
            rows.append(chat(question, answer, f"a.jsonl:{len(rows) + 1}"))
    return rows


def test_groups_and_leaks_are_drawn_with_their_places_and_nothing_personal(chat):
    train = rows_of(chat)
    held_out = [chat(r.prompt, r.answer, f"b.jsonl:{n}") for n, r in enumerate(train[:12], 1)] + [
        chat(train[30].prompt, "No.", "b.jsonl:99"), chat("Who runs the ferry on Sundays in winter?", "Nobody.", "b.jsonl:100")]
    index = Index(train, 0.8)
    leaks = list(every_leak(train, {"test": held_out}, index))
    pictures = Pictures()
    pictures.see(train, index.groups(), leaks)
    drawn = pictures.as_dict()
    sizes = [len(g) for g in index.groups()]
    assert drawn["near"]["sizes"] == {str(n): sizes.count(n) for n in sorted(set(sizes))}
    assert [g["size"] for g in drawn["near"]["groups"]] == sorted(sizes, reverse=True)[:GROUPS]
    for one in drawn["near"]["groups"]:
        assert 2 <= len(one["rows"]) <= MEMBERS
        assert all(any(kind == "mark" for kind, _ in row["question"]) for row in one["rows"]), "each shows its difference"
    assert sum(leak["count"] for leak in drawn["leaks"]) == len(leaks) == 13
    assert all(len(leak["pairs"]) == min(PAIRS, leak["count"]) for leak in drawn["leaks"])
    places = {(leak.row.where, leak.train.where) for leak in leaks}
    assert {(p["held_out"]["where"], p["train"]["where"]) for leak in drawn["leaks"] for p in leak["pairs"]} <= places
    text = json.dumps(drawn)
    assert "brightmail" not in text and "496" not in text and "mill0" in text
    assert len(text) < 60_000
    nothing = Pictures()
    nothing.see(train[-3:], [], [])
    assert nothing.as_dict() == {"near": {"sizes": {}, "groups": []}, "leaks": []}, "control: nothing alike, nothing drawn"


def test_a_pair_marks_the_passage_that_both_share(chat):
    passage = "the long bridge over the cold river was closed in the winter of that year"
    made = pair(chat(f"Is it true that {passage}?", "Yes.", "b.jsonl:1"),
                chat(f"My uncle says that {passage}, and I doubt it.", "So do I.", "a.jsonl:1"))
    for side in made.values():
        assert [piece for kind, piece in side["question"] if kind == "mark"] == [f"that {passage}"]
        assert not [piece for kind, piece in side["answer"] if kind == "mark"], "control: a word in common is no passage"
    turned = pair(chat(passage, "Yes.", "b.jsonl:1"), chat("Tell me a story.", f"Well, {passage}, they said.", "a.jsonl:1"))
    assert ["mark", passage] in turned["held_out"]["question"] and ["mark", passage] in turned["train"]["answer"]


def test_a_group_shows_rows_that_differ_before_rows_that_do_not(chat):
    from tunesmith.data.pictures import _different

    same, other = [chat("When?", "At five.", f"a:{n}") for n in range(4)], chat("When?", "At six.", "a:9")
    assert [row.where for row in _different([*same, other])] == ["a:0", "a:9"]
    assert [row.where for row in _different(same)] == ["a:0", "a:1", "a:2"]
    drawn = group(_different([*same, other]))
    assert [["mark", "five"] in row["answer"] or ["mark", "six"] in row["answer"] for row in drawn] == [True, True]


def test_where_the_comparison_of_long_texts_ends_nothing_is_marked(chat):
    text = " ".join(f"w{n}" for n in range(2000))
    ours, theirs = differing(f"One two {text}", text)
    assert [f"One two {text}"[a:b] for a, b in ours] == ["One two "] and theirs == [(0, 0)]
