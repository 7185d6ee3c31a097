"""Measures of style against numbers that were counted by hand.

    python -m pytest tests/data/test_voice.py
"""

from __future__ import annotations

import pytest

from tunesmith.data.voice import Voice, densities, dialogue_share, kind_of, measure_voice, mtld, system_prompt


@pytest.mark.parametrize("text, share", [
    ('"Yes."', 1.0), ("“Yes.”", 1.0), ("No speech.", 0.0), ('"Yes," he', 6 / 9), ("", 0.0), ('"Goes on\n"and on."', 17 / 18),
    ("«Oui», dit-il", 5 / 13), ("‘Yes,’ he", 6 / 9), ("the dogs’ and cats’ oak", 0.0), ("— Yes.\nHe went.", 6 / 15),
    ('I did so." He went out. "Go," he said.', (10 + 5) / 38),
])
def test_dialogue_share_is_what_stands_inside_of_quotation_marks(text, share):
    assert dialogue_share(text) == pytest.approx(share)


def test_mtld_of_texts_that_can_be_counted_by_hand():
    assert mtld(["oak", "elm"] * 100) == pytest.approx(3.0, abs=0.05)  # oak elm oak: 2/3 are distinct, below 0.72
    assert mtld([f"word{i}" for i in range(150)]) == 150
    assert mtld(["oak"] * 99) is None
    repeated = [f"word{i % 40}" for i in range(400)]
    assert mtld(["oak", "elm"] * 200) < mtld(repeated) < mtld([f"word{i}" for i in range(400)])


@pytest.mark.parametrize("text, kind", [
    ('"Yes," said she. "I do. And so do you, and all of us."', "dialogue"),
    ('"Yes, I do," said she, and went out to look at the old oak by the road.', "mixed"),
    ("He ran to the door, opened it, called twice, and jumped into the carriage that waited.", "narration"),
    ("The house was old and low, with a narrow door under a broad roof. Its rooms were dark, quiet and cold.", "description"),
])
def test_kinds(text, kind):
    assert kind_of(text) == kind


def test_densities_count_words_outside_of_speeches():
    assert densities('He walked home. "The old house is old and cold and in Bath."') == {
        "happened": pytest.approx(100 / 3), "described": 0.0}


def test_person_and_tense_are_the_narrators():
    told = measure_voice(['"I am here, I say," she answered. He looked at her and went.'] * 20)
    assert (told.first_person, told.past) == (0.0, 1.0)
    mine = measure_voice(["I walk to my house and it is cold. I see him."] * 20)
    assert mine.first_person == pytest.approx(3 / 4) and mine.past == 0.0
    assert measure_voice(["Oak. Elm."]).past is None


def test_voice_and_its_words():
    plain = measure_voice(["One two three. Four five six! Seven? " * 20])
    assert plain.words_per_sentence == pytest.approx(7 / 3) and plain.words == 140 and plain.dialogue == 0
    assert plain.mtld == pytest.approx(mtld(["one", "two", "three", "four", "five", "six", "seven"] * 20))
    assert system_prompt(plain) == ("You are a novelist with a simple vocabulary and short, plain sentences, "
                                    "writing mostly narration.")


@pytest.mark.parametrize("voice, said", [
    (Voice(9, 5.0, None, 0.0, None, None), "You are a novelist with short, plain sentences, writing mostly narration."),
    (Voice(999, 25.0, 120.0, 0.6, 0.9, 0.9), "You are a novelist with a rich vocabulary and long, balanced sentences, "
                                             "writing mostly dialogue in the first person and the past tense."),
    (Voice(999, 15.0, 80.0, 0.3, 0.1, 0.1), "You are a novelist with a varied vocabulary and flowing sentences, "
                                            "writing narration and dialogue in the third person and the present tense."),
    (Voice(999, 15.0, 80.0, 0.3, None, 0.9), "You are a novelist with a varied vocabulary and flowing sentences, "
                                             "writing narration and dialogue in the past tense."),
])
def test_system_prompt_says_only_what_was_measured(voice, said):
    assert system_prompt(voice) == said
