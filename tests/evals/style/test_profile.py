"""The numbers of a style, each against another way of counting it.

pytest tests/evals/style/test_profile.py
"""

import re
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.voice import measure_voice
from tunesmith.evals.style.profile import FEATURES, FREQUENT, LENGTHS, PUNCTUATION, column, counts, frequent_words, table
from tunesmith.evals.style.text import fit, paragraphs_of, words_of

TEXTS = st.text(st.sampled_from("abc ABC.,;!?\"'-\n—…I"), max_size=200)


def value(feature: str, *texts: str) -> float:
    return float(FEATURES[feature].value(table(texts, ()).sum(0, keepdims=True))[0])


def test_agrees_with_the_voice_of_the_data_card(austen):
    """Sentences, speech, person and tense are measured by the data room: the profile must say the same of the same text."""
    voice = measure_voice([p for text in austen for p in paragraphs_of(text)])
    assert value("sentence", *austen) == pytest.approx(voice.words_per_sentence, rel=0.01)
    assert value("dialogue", *austen) == pytest.approx(voice.dialogue)
    assert value("first_person", *austen) == pytest.approx(voice.first_person)
    assert value("past", *austen) == pytest.approx(voice.past)


def test_counts_of_a_text_that_can_be_counted_by_hand():
    text = 'Anne smiled; "No, no!" she said -- twice.\n\nWas it so? It was... (not).'
    row = counts(text, ("it", "was", "never"))
    assert row[FREQUENT].tolist() == [2, 2, 0]
    assert row[PUNCTUATION].tolist() == [1, 1, 0, 1, 2, 1, 1, 1, 2, 2]
    assert column(row[None], "words")[0] == 13 and column(row[None], "paragraphs")[0] == 2
    assert row[LENGTHS].tolist() == [2, 1, 0, 0, 0, 0, 0, 0]


@given(TEXTS)
def test_every_word_is_in_one_sentence_and_every_sentence_in_one_class(text):
    row = counts(text, ())[None]
    assert column(row, "words")[0] == len(words_of(text))
    assert row[0, LENGTHS].sum() == column(row, "sentences")[0] <= column(row, "words")[0]
    assert column(row, "squares")[0] >= column(row, "words")[0] ** 2 / max(1, column(row, "sentences")[0])


def test_vocabulary_is_the_mean_of_all_windows(austen):
    text = " ".join(austen[:4])
    words = words_of(text)
    windows = [len(set(words[i : i + 50])) / 50 for i in range(len(words) - 49)]
    assert value("vocabulary", text) == pytest.approx(statistics.mean(windows))


def test_vocabulary_does_not_fall_with_length_as_the_plain_ratio_does(austen):
    short, long = "\n\n".join(austen[:5]), "\n\n".join(austen)
    plain = [len(set(words_of(t))) / len(words_of(t)) for t in (short, long)]
    assert plain[1] < 0.6 * plain[0], "the control: this measure does depend on length"
    assert value("vocabulary", long) == pytest.approx(value("vocabulary", short), rel=0.05)


def test_spread_of_sentences_is_their_standard_deviation(austen):
    """Sentences parted another way: where the line says so."""
    lengths = [3, 8, 8, 21, 1]
    text = " ".join(" ".join(["Word", *["word"] * (n - 1)]) + "." for n in lengths)
    assert value("sentence", text) == pytest.approx(statistics.mean(lengths))
    assert value("sentence_spread", text) == pytest.approx(statistics.pstdev(lengths))


@pytest.mark.parametrize(("text", "share"), [("a b c d e f g", 0.0), ("to be or not to be or not to be", 3 / 7)])
def test_repeated_runs_of_four(text, share):
    assert value("repeated", text) == pytest.approx(share)


def test_frequent_words_are_function_words_and_no_names(austen):
    found = frequent_words(austen)
    assert {"the", "of", "and", "to"} <= set(found[:6])
    assert "i" in found, "always a capital, and no name"
    assert not {"anne", "elliot", "walter", "sir", "lady", "mr", "kellynch"} & set(found)
    assert len(found) == 50 and all(len(re.findall(rf"\b{w}\b", " ".join(austen), re.I)) >= 5 for w in found)


def test_nothing_to_divide_by_is_not_a_number_and_no_zero():
    assert np.isnan(value("sentence", "")) and np.isnan(value("vocabulary", "too short for a window"))


@given(TEXTS, st.integers(0, 60))
def test_fitted_text_is_a_beginning_of_at_most_so_many_words(text, words):
    fitted = fit(text, words)
    assert len(words_of(fitted)) <= words
    assert " ".join(text.split()).startswith(" ".join(fitted.split()))
    assert len(words_of(fitted)) >= min(words, len(words_of(text))) / 2


def test_fitted_text_ends_with_a_sentence():
    text = 'It was so. She said "No." Nobody went to the house on the hill'
    assert fit(text, 7) == 'It was so. She said "No."'
    assert fit("One long sentence that never ends at all", 5) == "One long sentence that never", "better cut than empty"
