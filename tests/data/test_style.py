"""Chapters to passages: nothing lost, nothing cut, and a system prompt that is measured once.

    python -m pytest tests/data/test_style.py
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.style import (
    PROMPTS,
    chapters_to_rows,
    dialogue_share,
    paragraphs,
    passages,
    profile,
    system_prompt,
)
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Style

WORDS = st.sampled_from(["Oak", "part", "book", "chapter", "gladly.", "I", "4", "\"Yes,\"", "said", "she", "—"])
LINES = st.lists(WORDS, min_size=1, max_size=6).map(" ".join)
CHAPTER = """Chapter 1


Sir Walter Elliot was a man who,
for his own amusement, never took up
   any book but the Baronetage;

CHAPTER IV.
there he found occupation, and would not
part gladly.

Part Two

"Yes, I do," said she.
"""


def test_lines_are_unwrapped_and_headings_gone():
    assert paragraphs(CHAPTER) == [
        "Sir Walter Elliot was a man who, for his own amusement, never took up any book but the Baronetage;",
        "there he found occupation, and would not part gladly.", '"Yes, I do," said she.']
    assert paragraphs(CHAPTER.replace("\n", "\r\n")) == paragraphs(CHAPTER)


@settings(max_examples=100, deadline=None, database=None)
@given(blocks=st.lists(st.lists(LINES, min_size=1, max_size=5), max_size=6), gap=st.sampled_from(["\n\n", "\n \t\n", "\n" * 4]))
def test_unwrapping_loses_no_word_but_headings(blocks, gap):
    text = gap.join("\n".join(lines) for lines in blocks)
    kept = [lines[1:] if lines[0].lower() in HEADINGS else lines for lines in blocks]
    assert paragraphs(text) == [" ".join(lines) for lines in kept if lines]


HEADINGS = {f"{kind} {number}" for kind in ("part", "book", "chapter")
            for number in ("oak", "part", "book", "chapter", "gladly.", "i", "4", "said", "she")}


@settings(max_examples=100, deadline=None, database=None)
@given(paras=st.lists(LINES, max_size=20), words=st.integers(1, 30))
def test_passages_joined_are_the_paragraphs_and_end_at_their_borders(paras, words):
    made = passages(paras, words)
    assert [p for passage in made for p in passage.split("\n\n")] == paras
    for passage in made:
        if "\n\n" in passage:  # a passage that gathers several paragraphs is not half a paragraph longer than asked for
            assert len(passage.split()) - len(passage.split("\n\n")[-1].split()) / 2 <= words


@pytest.mark.parametrize("text, share", [
    ('"Yes."', 1.0), ("“Yes.”", 1.0), ("No speech.", 0.0), ('"Yes," he', 6 / 9), ("", 0.0),
    ('"Goes on\n"and on."', 17 / 18),
])
def test_dialogue_share_is_what_stands_inside_of_quotation_marks(text, share):
    assert dialogue_share(text) == pytest.approx(share)


def test_profile_and_its_words():
    plain = profile("One two three. Four five six! Seven? " * 20)
    assert plain.words_per_sentence == pytest.approx(7 / 3)
    assert plain.distinct_words == pytest.approx(7 / 140)
    assert system_prompt(plain) == ("You are a novelist with a simple vocabulary and short, plain sentences, "
                                    "writing mostly narration.")
    talk = profile(" ".join(f"word{i}" for i in range(40)) + '. "' + " ".join(f"say{i}" for i in range(60)) + '."')
    assert system_prompt(talk) == ("You are a novelist with a rich vocabulary and long, balanced sentences, "
                                   "writing mostly dialogue.")


def test_rows_carry_one_system_prompt_their_place_and_a_request_that_fits(write):
    files = {"one.txt": write("one.txt", CHAPTER), "two.txt": write("two.txt", '"Go on," said Anne, "do go on."')}
    rows, system = chapters_to_rows(files, Style(chunk_words=20))
    assert [r.where for r in rows] == ["one.txt: passage 1", "one.txt: passage 2", "two.txt: passage 1"]
    assert {r.messages[0]["content"] for r in rows} == {system}
    assert [r.prompt for r in rows] == [PROMPTS[kind] for kind in ("narration", "mixed", "dialogue")]
    assert "\n\n".join(r.answer for r in rows[:2]).split("\n\n") == paragraphs(CHAPTER)


def test_system_prompt_comes_from_the_caller_then_the_recipe_then_the_text(write):
    files = {"one.txt": write("one.txt", CHAPTER)}
    assert chapters_to_rows(files, Style(system="mine"), "theirs")[1] == "theirs"
    assert chapters_to_rows(files, Style(system="mine"))[1] == "mine"
    assert chapters_to_rows(files, Style())[1].startswith("You are a novelist")


@pytest.mark.parametrize("text", ["", " \n\n ", "Chapter 1\n\n"])
def test_chapter_without_text_is_an_error(write, text):
    with pytest.raises(DataError, match="the file is empty") as error:
        chapters_to_rows({"one.txt": write("one.txt", CHAPTER), "two.txt": write("two.txt", text)}, Style())
    assert error.value.where == "two.txt"
