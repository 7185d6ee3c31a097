"""Copies are found, whole and in their place, and honest text is left alone.

pytest tests/evals/style/test_copying.py
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.evals.style.copying import Index, Source, copied, covered, suffix_array
from tunesmith.evals.style.text import words_of

SYMBOLS = st.text(st.sampled_from("ab"), max_size=30) | st.text(st.sampled_from("abcd"), max_size=30)


@given(st.lists(st.integers(0, 3), max_size=40))
def test_suffix_array_is_the_order_of_the_suffixes(symbols):
    expected = sorted(range(len(symbols)), key=lambda i: symbols[i:])
    assert suffix_array(np.array(symbols, dtype=np.int64)).tolist() == expected


@given(st.lists(SYMBOLS, min_size=1, max_size=4), SYMBOLS)
def test_longest_matches_are_those_of_brute_force(texts, asked):
    matches = Index(texts).matches(asked)
    for start, (length, _) in enumerate(matches):
        longest = max(n for n in range(len(asked) - start + 1) if any(asked[start : start + n] in t for t in texts))
        assert length == longest
    run = Index(texts).longest(asked)
    if run is None:
        assert not any(symbol in t for symbol in asked for t in texts)
    else:
        assert texts[run.passage][run.at : run.at + run.length] == asked[run.start : run.start + run.length]


@given(st.lists(SYMBOLS, min_size=1, max_size=3), SYMBOLS, st.integers(1, 5))
def test_covered_places_are_those_of_brute_force(texts, asked, least):
    inside = {place for start in range(len(asked)) for end in range(start + least, len(asked) + 1)
              if any(asked[start:end] in t for t in texts) for place in range(start, end)}
    assert covered(Index(texts).matches(asked), least) == len(inside)


def test_a_planted_copy_is_found_in_its_place(austen, melville):
    places = [f"passage {i}" for i in range(len(austen))]
    words = austen[17].split()
    text = melville[0] + "\n\n" + " ".join(words[20:60]).replace(",", " --").upper() + "\n\n" + melville[1]
    found = Source(austen, places).check(text)
    longest, planted = found["longest"], words_of(" ".join(words[20:60]))
    assert longest["from"] == "passage 17"
    assert longest["words"] >= len(planted) and words_of(longest["source"]) == words_of(longest["text"])
    assert set(planted) <= set(words_of(longest["source"]))
    assert words_of(longest["source_before"])[-1] == words_of(words[19])[-1]
    assert words_of(longest["source_after"])[0] == words_of(words[60])[0]
    assert found["copied"] >= len(planted) and found["copied"] < found["words"] / 2


def test_characters_are_counted_as_they_are():
    source = Source(["She knew it well, and was happy. He did not know."], ["here"])
    assert source.check("but She  knew\nit well, AND was")["longest"]["characters"] == len("She knew it well, ")
    assert source.check("but She  knew\nit well, AND was")["longest"]["words"] == 6


def test_honest_text_is_left_alone(austen, held, melville):
    """Chapter 5 shares phrases with chapters 1 to 4, and nothing that would count as copied; another hand shares less."""
    source = Source(austen, [""] * len(austen))
    own, other = copied(source, held), copied(source, melville)
    assert 3 <= own["longest"]["words"] < 13 and own["share"] < 0.02 and other["share"] == 0.0
    assert own["ci95"][0] <= own["share"] <= own["ci95"][1]


def test_a_parrot_is_all_copy(austen):
    found = copied(Source(austen, list(map(str, range(len(austen))))), austen[3:9])
    assert found["share"] == 1.0 and found["longest"]["words"] == max(len(words_of(t)) for t in austen[3:9])
    assert found["longest"]["from"] == str(3 + found["longest"]["text_number"])


def test_no_run_crosses_from_one_passage_to_the_next():
    found = Source(["one two three", "four five six"], ["a", "b"]).check("one two three four five six")
    assert found["longest"]["words"] == 3


@pytest.mark.parametrize("text", ["", "...", "Ελληνικά"])
def test_texts_that_share_nothing(text):
    assert Source(["one two"], ["a"]).check(text)["longest"] is None
    assert copied(Source(["one two"], ["a"]), [text])["longest"] is None
