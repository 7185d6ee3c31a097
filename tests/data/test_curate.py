"""Choosing rows by what they cost: whatever the order, as many as asked, suspects never, and silence on clean data.

pytest tests/data/test_curate.py
"""

from __future__ import annotations

import math
import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.curate import CHOSEN, LEFT, SUSPECT, diverse, judge, means, threshold, wrong_on_purpose
from tunesmith.data.rows import Row
from tunesmith.data.similar import jaccard, shingles
from tunesmith.errors import DataError

WORDS = ("oak", "elm", "stone", "hedge", "river", "bend", "cedar", "rapids", "marion", "wolf", "creek", "main")


def row(ask: str, answer: str, n: int = 0) -> Row:
    return Row([{"role": "user", "content": ask}, {"role": "assistant", "content": answer}], f"rows.jsonl:{n}")


def some_rows(count: int, seed: int = 0) -> list[Row]:
    draw = random.Random(seed)
    return [row(" ".join(draw.choices(WORDS, k=4)) + f" {n}", " ".join(draw.choices(WORDS, k=3)), n) for n in range(count)]


def log_normal(draw: random.Random, count: int, middle: float, spread: float) -> list[float]:
    return [math.exp(draw.gauss(math.log(middle), spread)) for _ in range(count)]


# ---- which are proposed ----------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing_and_as_many_as_asked_are_chosen(count, seed, shuffle):
    rows = some_rows(30, seed)
    chosen = diverse(rows, range(30), count)
    assert len(set(chosen)) == count and chosen == sorted(chosen)
    other = rows.copy()
    shuffle.shuffle(other)
    assert {r.where for r in (other[i] for i in diverse(other, range(30), count))} == {rows[i].where for i in chosen}


@pytest.mark.parametrize("count", [2, 6, 20])
def test_no_row_is_farther_from_the_chosen_than_they_are_from_each_other(count):
    """What farthest-first promises (Gonzalez 1985), by comparing everything on Python sets."""
    rows = some_rows(60)
    texts = [shingles("\n".join(m["content"] for m in r.messages)) for r in rows]
    chosen = diverse(rows, range(60), count)
    closest = max(jaccard(texts[a], texts[b]) for a, b in combinations(chosen, 2))
    for i in set(range(60)) - set(chosen):
        assert max(jaccard(texts[i], texts[c]) for c in chosen) >= closest - 1e-9
    anyhow = list(range(count))
    assert closest < max(jaccard(texts[a], texts[b]) for a, b in combinations(anyhow, 2)), "rows as they come do not"


def test_copies_of_one_row_are_not_diverse():
    rows = [row("the same old question", "the same old answer", n) for n in range(30)] + some_rows(5)
    assert sum(i < 30 for i in diverse(rows, range(35), 6)) == 1


def test_no_more_rows_than_there_are():
    with pytest.raises(ValueError, match="4 of 3"):
        diverse(some_rows(3), range(3), 4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 20), min_size=20, max_size=60), st.lists(st.floats(0, 20), max_size=20), st.integers(1, 20))
def test_every_row_has_a_verdict_and_no_suspect_is_proposed(scores, wrong, count):
    rows = some_rows(len(scores))
    found = threshold(scores, wrong)
    try:
        judged = judge(rows, scores, scores, [0] * len(rows), found, count)
    except DataError as error:
        assert "are not suspect" in error.what and sum(s <= found.value for s in scores) < count
        return
    assert len(judged.verdicts) == len(rows) and set(judged.verdicts) <= {CHOSEN, SUSPECT, LEFT}
    assert judged.verdicts.count(CHOSEN) == count
    assert all((v == SUSPECT) == (found.value is not None and s > found.value)
               for v, s in zip(judged.verdicts, scores, strict=True))
    assert judged.suspects == sorted(judged.suspects, key=lambda i: (-scores[i], i))
    assert sum(b["rows"] for b in judged.histogram(20)["bins"]) == len(rows)


def test_without_a_number_all_that_are_above_suspicion_are_proposed():
    scores = [0.1] * 30 + [3.0] * 4
    judged = judge(some_rows(34), scores, scores, [0] * 34, threshold(scores, [2.0] * 10))
    assert judged.chosen == list(range(30)) and judged.suspects == [30, 31, 32, 33]
    assert "times what a typical row does" in judged.reason(30) and judged.warning is None
    half = [0.1] * 30 + [3.0] * 30
    assert "50% of the rows are suspect" in judge(some_rows(60), half, half, [0] * 60, threshold(half, [2.0] * 10)).warning


# ---- who is suspected ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.6])
def test_what_costs_as_much_as_a_wrong_answer_is_found_and_little_else(share):
    draw = random.Random(0)
    bad = round(share * 1000)
    scores = log_normal(draw, 1000 - bad, 0.02, 0.6) + log_normal(draw, bad, 0.7, 0.3)
    limit = threshold(scores, log_normal(draw, 200, 0.7, 0.3)).value
    assert sum(s > limit for s in scores[1000 - bad :]) >= 0.95 * bad
    assert sum(s > limit for s in scores[: 1000 - bad]) <= 0.03 * (1000 - bad)


def test_clean_rows_are_hardly_suspected():
    draw = random.Random(1)
    scores = log_normal(draw, 1000, 0.02, 0.6)
    assert sum(s > threshold(scores, log_normal(draw, 200, 0.7, 0.3)).value for s in scores) <= 10


def test_nobody_is_suspected_where_wrong_answers_cost_no_more_than_right_ones():
    """A novel: any passage is a likely answer to any request."""
    draw = random.Random(2)
    scores = log_normal(draw, 500, 3.0, 0.2)
    found = threshold(scores, log_normal(draw, 200, 3.1, 0.2))
    assert found.value is None and "too near" in found.why
    judged = judge(some_rows(500), scores, scores, [0] * 500, found)
    assert not judged.suspects and len(judged.chosen) == 500


def test_nobody_is_suspected_when_the_wrong_cannot_be_told_from_many_of_the_right():
    draw = random.Random(3)
    scores = log_normal(draw, 500, 0.1, 1.5)
    assert threshold(scores, log_normal(draw, 200, 0.4, 1.5)).value is None
    assert threshold(scores, []).value is None, "nor without a control"


def test_rows_wrong_on_purpose_have_their_own_question_and_the_answer_of_another():
    rows = some_rows(30)
    made = wrong_on_purpose(rows, 10)
    assert len(made) == 10
    for r in made:
        own = next(o for o in rows if o.where == r.where)
        assert r.prompt == own.prompt and r.answer != own.answer and r.answer in {o.answer for o in rows}
    assert wrong_on_purpose([row(f"question {n}", "Yes.", n) for n in range(30)], 10) == [], "all answer the same"


def test_means_of_rows():
    import numpy as np

    assert means(np.array([1.0, 3.0, 5.0], np.float32), np.array([0, 2, 3])) == [2.0, 5.0]
