"""Numbers in words and in digits meet; other words stay as they are.

    python -m pytest tests/data/test_numerals.py
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.numerals import digits
from tunesmith.data.similar import fold

ONES = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
        "eighteen nineteen")
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"


def spelled(n):
    """The number in words, from its definition: nothing of it comes from the code under test."""
    if n < 20:
        return ONES.split()[n]
    if n < 100:
        return TENS.split()[n // 10 - 2] + (f"-{spelled(n % 10)}" if n % 10 else "")
    for size, name in ((1_000_000, "million"), (1000, "thousand"), (100, "hundred")):
        if n >= size:
            rest = f" {'and ' if n % size < 100 else ''}{spelled(n % size)}" if n % size else ""
            return f"{spelled(n // size)} {name}{rest}"
    raise AssertionError(n)


@settings(max_examples=500, deadline=None, database=None)
@given(n=st.one_of(st.integers(0, 999), st.integers(0, 999_999_999)))
def test_every_number_in_words_is_its_digits(n):
    assert digits(fold(f"the {spelled(n)} men")) == digits(fold(f"the {n} men")) == f"the {n} men"
    assert digits(fold(f"the {n:,} men")) == f"the {n} men"


@pytest.mark.parametrize("words, number", [
    ("fourth", "4th"), ("first", "1st"), ("twenty-first", "21st"), ("twelfth", "12th"), ("thirtieth", "30th"),
    ("112th", "112th"), ("one hundred and twelfth", "112th"), ("two thousand and third", "2003rd"), ("hundredth", "100th"),
    ("2 million", "2000000"), ("nineteen eighty-four", "19 84"), ("one two three", "1 2 3"), ("unit seven, 523", "unit 7523"),
])
def test_ordinals_scales_and_neighbours(words, number):
    assert digits(fold(words)) == number == digits(number)


@pytest.mark.parametrize("text", ["hundreds of men", "a million ways", "someone often phoned", "oak st 52402 1228"])
def test_words_that_are_no_numbers_stay(text):
    assert digits(text) == text


VOCABULARY = ["zero", "one", "two", "twenty", "hundred", "thousand", "first", "and", "oak", "7", "523", "000", "12th"]


@settings(max_examples=300, deadline=None, database=None)
@given(text=st.lists(st.sampled_from(VOCABULARY), max_size=8).map(" ".join))
def test_any_run_of_number_words_is_read_and_no_other_word_is_lost(text):
    read = digits(text).split()
    assert read.count("oak") == text.split().count("oak")
    assert not {"zero", "one", "two", "twenty", "first"} & set(read)
