"""Passages: nothing lost, nothing cut inside of a sentence, never too long, repeats only whole sentences.

    python -m pytest tests/data/test_passages.py
"""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.chapters import SCENE
from tunesmith.data.passages import passages, sentences

WORDS = st.sampled_from(["oak", "Mr. Elm", '"yes,"', "&c.", "and", "wood-pecker", "Köln"])
SENTENCES = st.lists(WORDS, min_size=1, max_size=9).map(lambda words: "The " + " ".join(words) + ".")
PARAGRAPHS = st.lists(st.one_of(st.lists(SENTENCES, min_size=1, max_size=7).map(" ".join), st.just(SCENE)), min_size=1,
                      max_size=12)


def in_words(text: str) -> int:
    return len(text.split())


@pytest.fixture(scope="module")
def in_tokens(tiny_tokenizer):
    return lambda text: len(tiny_tokenizer.encode(text, add_special_tokens=False))


def words(text: str) -> list[str]:
    return text.replace(SCENE, " ").split()


def whole(paragraphs: list[str]) -> list[str]:
    return [s for p in paragraphs if p != SCENE for _, s in sentences(p)]


@settings(max_examples=150, deadline=None, database=None)
@given(paragraphs=PARAGRAPHS, size=st.integers(4, 60), overlap=st.integers(0, 25))
def test_passages_without_what_they_repeat_are_the_words_of_the_chapter_in_order(in_tokens, paragraphs, size, overlap):
    for measure in (in_words, in_tokens):
        made = passages(paragraphs, size, measure, min(overlap, size // 2))
        assert [w for p in made for w in words(p.text[p.repeated:])] == [w for p in paragraphs for w in words(p)]


@settings(max_examples=150, deadline=None, database=None)
@given(paragraphs=PARAGRAPHS, size=st.integers(4, 60), overlap=st.integers(0, 25))
def test_only_a_single_sentence_is_longer_than_the_size(in_tokens, paragraphs, size, overlap):
    for measure in (in_words, in_tokens):
        for p in passages(paragraphs, size, measure, min(overlap, size // 2)):
            assert measure(p.text) <= size or len(whole(p.text.split("\n\n"))) == 1


@settings(max_examples=150, deadline=None, database=None)
@given(paragraphs=PARAGRAPHS, size=st.integers(10, 60), overlap=st.integers(0, 25))
def test_a_passage_repeats_whole_sentences_that_the_one_before_it_ends_with(paragraphs, size, overlap):
    overlap = min(overlap, size // 2)
    made = passages(paragraphs, size, in_words, overlap)
    inside = set(whole(paragraphs))
    assert made == [] or made[0].repeated == 0
    for before, p in zip(made, made[1:], strict=False):
        repeated = p.text[:p.repeated].strip()
        assert in_words(repeated.replace(SCENE, "")) <= overlap
        assert before.text.endswith(repeated.removesuffix(SCENE).rstrip())
        assert set(whole(repeated.split("\n\n"))) <= inside
    for p in made:
        assert set(whole(p.text.split("\n\n"))) <= inside, "cut inside of a sentence"


@settings(max_examples=100, deadline=None, database=None)
@given(count=st.integers(1, 60), size=st.integers(10, 50))
def test_no_crumb_is_left_at_the_end_of_a_chapter(count, size):
    paragraph = " ".join(["The oak stood."] * count)
    made = [in_words(p.text) for p in passages([paragraph], size, in_words)]
    assert len(made) == 1 or min(made) >= size / 2 - 3, made


def test_overlap_is_really_there():
    made = passages(["One two three. Four five six. Seven eight nine. Ten eleven twelve."], 6, in_words, 3)
    assert [p.text for p in made] == ["One two three. Four five six.", "Four five six. Seven eight nine.",
                                      "Seven eight nine. Ten eleven twelve."]
    assert [p.text[:p.repeated].strip() for p in made] == ["", "Four five six.", "Seven eight nine."]


def test_a_passage_ends_at_a_scene_break_then_a_paragraph_then_a_sentence():
    scene = ["A b c.", "D e f.", SCENE, "G h i.", "J k l.", "M n o.", "P q r.", "S t u.", "V w x.", "Y z a."]
    first = passages(scene, 12, in_words)[0].text
    assert first == "A b c.\n\nD e f."
    assert SCENE in passages(["A b c.", SCENE, *scene[3:]], 12, in_words)[0].text  # too early a break: it stays inside
    paragraphs = ["A b c. D e f.", "G h i. J k l. M n o. P q r. S t u.", "V w x. " * 9]
    assert passages(paragraphs, 10, in_words)[0].text == "A b c. D e f."
    assert passages(["A b c. D e f. G h i. J k l. M n o. P q r."], 6, in_words)[0].text == "A b c. D e f."


def test_a_speech_is_not_parted_from_the_words_that_announce_it():
    paragraphs = ["Anne sat by the fire.", "She rose at last and said:", '"I am going out to see the oak."',
                  "Nobody answered her, and so she went alone to it."]
    assert not passages(paragraphs, 20, in_words)[0].text.endswith("said:")


@pytest.mark.parametrize("marks", ['""', "“”", "«»"])
def test_a_passage_that_begins_inside_of_a_speech_says_so(marks):
    speech = marks[0] + " ".join(["I am going home."] * 9) + f"{marks[1]} He went home at last."
    made = passages(["Then Anne spoke.", speech, "He sat."], 12, in_words)
    assert [p.speaking for p in made] == [not p.text.startswith(("Then", "He", *marks)) for p in made]
    assert sum(p.speaking for p in made) >= 2


def test_no_sentence_of_a_long_paragraph_is_left_alone():
    paragraphs = ["Anne sat by the fire and read.",
                  "Well. I have nothing to say to you. Go on. Or stay here with us. I do not mind."]
    assert [p.text for p in passages(paragraphs, 16, in_words)] == [
        "Anne sat by the fire and read.\n\nWell. I have nothing to say to you.", "Go on. Or stay here with us. I do not mind."]


@pytest.mark.parametrize("text, count", [
    ("Mr. Elliot met Mrs. Croft and Dr. Shirley. She bowed.", 2), ("Books, papers, &c. were on it. He read.", 2),
    ('"Really?" cried she. "Yes."', 2), ('"Go!" He went.', 2), ("J. Austen wrote it. We read.", 2),
    ("Than I. Then we went.", 2), ("See No. 97 and vol. II of it. No. Never.", 3), ("Wait ... and see. Now.", 2),
    ("He said “Go.” “Why?” she asked.", 2),
    ("One line of verse\nAnother line of it", 2), ("It ended (so we thought.) Then more.", 2), ("no end", 1), ("", 0),
])
def test_sentences(text, count):
    found = sentences(text)
    assert len(found) == count, found
    assert "".join(gap + sentence for gap, sentence in found) == text


@settings(max_examples=200, deadline=None, database=None)
@given(text=st.text(st.sampled_from("aB .!?\"'\n…”&c-"), max_size=60).map(lambda t: re.sub(r"^\s+|\s+$", "", t)))
def test_sentences_joined_are_the_paragraph(text):
    assert "".join(gap + sentence for gap, sentence in sentences(text)) == text
