"""Every long enough run of shared words is found, none that is too short.

    python -m pytest tests/data/test_runs.py
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data import runs
from tunesmith.data.runs import contained, run_length

words = st.lists(st.sampled_from("abc"), max_size=24).map(" ".join)


def by_hand(texts, train):
    """The definition, in four loops."""
    found = set()
    for number, text in enumerate(texts):
        asked = text.split()
        run = run_length(len(asked))
        for window in range(len(asked) - run + 1):
            for n, other in enumerate(train):
                held = other.split()
                if asked and any(held[at : at + run] == asked[window : window + run] for at in range(len(held) - run + 1)):
                    found.add((number, window, n))
    return found


def by_search(texts, train):
    return {(number, window, n) for number, window, held in contained(texts, train) for n in held}


@settings(max_examples=200, deadline=None, database=None)
@given(texts=st.lists(words, max_size=5), train=st.lists(words, max_size=6))
def test_search_agrees_with_the_definition(texts, train):
    assert by_search(texts, train) == by_hand(texts, train)


@pytest.mark.parametrize("length", [2, 5, 12, 13, 14, 16, 17, 40, 300])
@pytest.mark.parametrize("at", ["start", "middle", "end"])
def test_run_of_the_least_length_is_found_wherever_it_stands_and_one_word_less_is_not(length, at):
    chance = random.Random(length)
    text = [f"w{chance.randrange(10**9)}" for _ in range(length)]
    run = run_length(length)
    start = {"start": 0, "middle": (length - run) // 2, "end": length - run}[at]
    held = ["x", *text[start : start + run], "y"]
    assert by_search([" ".join(text)], ["other words", " ".join(held)]) == {(0, start, 1)}
    broken = [*held[:run], "z", *held[run:]]
    assert by_search([" ".join(text)], ["other words", " ".join(broken)]) == set()


@pytest.mark.parametrize("words, run", [(0, 0), (4, 4), (13, 13), (14, 13), (16, 13), (17, 14), (20, 16), (100, 80), (101, 81)])
def test_least_length_is_all_of_a_short_text_and_four_fifths_of_a_long_one(words, run):
    assert run_length(words) == run


def test_texts_of_many_batches_keep_their_numbers(monkeypatch):
    train = [f"{n} one two three four {n}" for n in range(40)]
    monkeypatch.setattr(runs, "BATCH_WORDS", 20)
    assert by_search(["one two three four", "7 one two"], train) == {(0, 0, n) for n in range(40)} | {(1, 0, 7)}
