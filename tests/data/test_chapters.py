"""Chapters out of a file: every word is in a paragraph, a title, or in what was left out and is named.

    python -m pytest tests/data/test_chapters.py
"""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunesmith.data.chapters import SCENE, read_book
from tunesmith.data.headings import numerals_in_order, read_heading, roman_value
from tunesmith.data.unwrap import layout_of, unwrap

WORDS = st.sampled_from(["Oak", "part", "book", "Chapter", "gladly.", "I", "II", "4", '"Yes,"', "said", "she", "—", "well-",
                         "known", "contents", "#", "*", "Volume", "one", "END"])
LINES = st.lists(WORDS, min_size=1, max_size=8).map(" ".join)
HEADINGS = st.sampled_from(["CHAPTER I.", "Chapter 12: The Oak", "VOLUME II", "Part One", "# Oak", "IV", "* * *", "FINIS",
                            "CONTENTS", "EPILOGUE", "[Illustration: Oak]", "End of Volume One"])
BLOCKS = st.lists(st.one_of(st.lists(LINES, min_size=1, max_size=5).map("\n".join), HEADINGS), min_size=1, max_size=14)


def word_counts(text: str) -> Counter:
    return Counter(re.findall(r"\w+", text))


def titles(text: str) -> list[str]:
    return [c.title for c in read_book(text).chapters]


@settings(max_examples=300, deadline=None, database=None)
@given(blocks=BLOCKS, gap=st.sampled_from(["\n\n", "\n \t\n", "\r\n\r\n", "\n" * 4]))
@example(blocks=["VOLUME II", "Oak", "VOLUME II", "CHAPTER I.", "Oak"], gap="\n\n")  # twice, once over a title page
def test_every_word_is_in_a_paragraph_a_title_or_in_what_was_left_out(blocks, gap):
    text = gap.join(blocks)
    book = read_book(text)
    told = [p for c in book.chapters for p in c.paragraphs] + [part.text for part in book.left_out]
    body, inside = word_counts(" ".join(told)), word_counts(text)
    headings = word_counts(" ".join(c.title for c in book.chapters))  # a part's title stands above each of its chapters
    assert set(body + headings) == set(inside)
    assert all(body[word] <= count <= body[word] + headings[word] for word, count in inside.items())


@settings(max_examples=100, deadline=None, database=None)
@given(blocks=st.lists(st.lists(st.sampled_from(["the oak stood", "and Anne said", "nothing of it,", "so they went"]),
                                min_size=1, max_size=5), min_size=1, max_size=8))
def test_prose_without_headings_is_one_chapter_with_all_its_words_in_order(blocks):
    text = "\n\n".join("\n".join(lines) for lines in blocks)
    book = read_book(text)
    assert " ".join(book.chapters[0].paragraphs).split() == text.split()
    assert len(book.chapters) == 1 and book.chapters[0].title == "" and not book.left_out


BOOK = """\ufeffProject Gutenberg header, with its licence.

*** START OF THE PROJECT GUTENBERG EBOOK EMMA ***

Produced by An Anonymous Volunteer. It is for the use of anyone.

EMMA

By Jane Austen

CONTENTS

VOLUME I
CHAPTER I
CHAPTER II

VOLUME I

CHAPTER I

Emma Woodhouse, handsome and clever, had lived nearly twenty-one
years in the world.

    * * *

She was the youngest.

CHAPTER II.
THE WESTONS

Mr. Weston was a native of Highbury.

End of Volume I

VOLUME II

CHAPTER I

Emma and Harriet had been walking.

FINIS

*** END OF THE PROJECT GUTENBERG EBOOK EMMA ***

Licence: you may copy it."""


def test_a_whole_book_gives_its_chapters_and_says_what_it_left_out():
    book = read_book(BOOK)
    assert [(c.title, c.paragraphs) for c in book.chapters] == [
        ("VOLUME I, CHAPTER I", ["Emma Woodhouse, handsome and clever, had lived nearly twenty-one years in the world.", SCENE,
                                 "She was the youngest."]),
        ("VOLUME I, CHAPTER II. THE WESTONS", ["Mr. Weston was a native of Highbury."]),
        ("VOLUME II, CHAPTER I", ["Emma and Harriet had been walking."])]
    assert {part.what for part in book.left_out} == {
        "title page", "header and licence", "table of contents", "end mark", "aside", "licence"}
    assert any(str(part).startswith("title page, 16 words: Produced by An") for part in book.left_out)
    assert read_book(BOOK.replace("\n", "\r\n")) == read_book(BOOK)


@pytest.mark.parametrize("line, level", [
    ("CHAPTER I.", 13), ("Chapter 12: The Oak", 13), ("VOLUME II", 10), ("Part One", 12), ("BOOK THE FIRST", 11),
    ("Chapter Twenty-Three", 13), ("CHAPTER I. Down the Rabbit-Hole.", 13), ("# Oak", 1), ("### Chapter 3", 3),
    ("PROLOGUE", 13),     ("chapter iv", 13), ("Letter IV", 13), ("Chapter 5 The Oak Tree", 13),
])
def test_headings(line, level):
    assert read_heading(line).level == level


@pytest.mark.parametrize("line", [
    "part gladly.", "Part of the way they walked.", "Book I read last year", "Chapter and verse", "Part MILD",
    "chapter one of my life", "Letter I wrote to him in May", "I", "IV", "Preface to nothing in particular", "#hashtag",
    "Part One of the plan was simple.", "CHAPTER I. " + "Long " * 30,
])
def test_sentences_that_only_look_like_headings(line):
    assert read_heading(line) is None


def test_a_heading_needs_a_title_that_does_not_run_on_into_the_next_line():
    assert read_heading("Part One. Then they walked home and", "slept until noon.") is None
    assert titles("He said it was\nPart Two\nof the play.\n\nAnd so it was.") == [""]


def test_numerals_alone_are_chapters_only_where_they_count():
    assert titles("I\n\nOne came.\n\nII\n\nTwo came.\n\nIII.\n\nThree came.") == ["I", "II", "III."]
    said = '"Who did it?"\n\nI\n\nNobody else.'
    assert titles(said) == [""] and "I" in read_book(said).chapters[0].paragraphs
    assert titles("I. THE OAK\n\nOne came.\n\nII. THE ELM\n\nTwo came.") == ["I. THE OAK", "II. THE ELM"]
    assert titles("VII\n\nThe seventh of its files.") == ["VII"]
    assert not numerals_in_order([["I"], ["V"]]) and numerals_in_order([["I"], ["II"], ["I"], ["II"]])


@pytest.mark.parametrize("numeral, value", [("IV", 4), ("XLIX", 49), ("MCMXC", 1990), ("IIII", None), ("MILD", None),
                                            ("", None), ("VX", None)])
def test_roman_numbers(numeral, value):
    assert roman_value(numeral) == value


def test_markdown_headings_nest_and_number_signs_are_gone():
    text = ("# Persuasion\n\nby Jane Austen\n\n## Chapter 1\n\nSir Walter read.\n\n---\n\nAnne sat.\n\n"
            "## Chapter 2 ##\n\nShe rose.")
    book = read_book(text)
    assert [(c.title, c.paragraphs) for c in book.chapters] == [
        ("Persuasion, Chapter 1", ["Sir Walter read.", SCENE, "Anne sat."]), ("Persuasion, Chapter 2", ["She rose."])]
    assert [str(part) for part in book.left_out] == ["title page, 3 words: by Jane Austen"]
    assert titles("Oak\n===\n\nIt stood where it had stood for a hundred years.\n\nElm\n---\n\nIt fell.") == ["Oak", "Oak, Elm"]


def test_prose_before_the_first_heading_is_kept():
    book = read_book("OAKS\n\nIt had been raining for nine days when the letter came.\n\nCHAPTER I\n\nShe read it.")
    assert [c.paragraphs for c in book.chapters] == [["It had been raining for nine days when the letter came."],
                                                     ["She read it."]]
    assert [part.text for part in book.left_out] == ["OAKS"]


def test_a_short_chapter_before_a_volume_is_no_title_page():
    text = "CHAPTER I\n\nOaks fell\n\nVOLUME II\n\nCHAPTER I\n\nThey rose again in the spring of the year."
    assert titles(text) == ["CHAPTER I", "VOLUME II, CHAPTER I"]


def test_a_table_of_contents_with_page_numbers_is_no_chapter():
    text = ("CONTENTS\n\nChapter 1. The Oak .... 3\n\nChapter 2. The Elm .... 9\n\n"
            "Chapter 1. The Oak\n\nIt stood there for years.\n\nChapter 2. The Elm\n\nIt fell in the end.")
    book = read_book(text)
    assert [c.title for c in book.chapters] == ["Chapter 1. The Oak", "Chapter 2. The Elm"]
    assert [part.what for part in book.left_out] == ["table of contents"]


def test_a_table_of_contents_ends_where_its_first_entry_comes_again():
    text = "CONTENTS\n\nI. The Oak 3\nII. The Elm 9\n\nI. THE OAK\n\nIt stood there.\n\nII. THE ELM\n\nIt fell."
    assert titles(text) == ["I. THE OAK", "II. THE ELM"]


def test_a_heading_without_text_is_named():
    assert [str(p) for p in read_book("CHAPTER I\n\nCHAPTER II\n\nText here.").left_out] == [
        "heading without text, 2 words: CHAPTER I"]


def test_scene_breaks_never_stand_first_or_last():
    assert read_book("* * *\n\nOne.\n\n***\n\n###\n\nTwo.\n\n* * *").chapters[0].paragraphs == ["One.", SCENE, "Two."]


# ---- lines


def lines_to_paragraphs(text: str, *others: str) -> list[str]:
    blocks = [block.split("\n") for block in (text, *others)]
    return unwrap(blocks[0], layout_of(blocks))


PROSE = ("Sir Walter Elliot of Kellynch Hall in Somersetshire was a man who\n"
         "for his own amusement never took up any book but the Baronetage;")


def test_wrapped_lines_are_one_and_verse_keeps_its_lines():
    assert lines_to_paragraphs(PROSE) == [PROSE.replace("\n", " ")]
    verse = "Tyger Tyger, burning bright,\nIn the forests of the night;\nWhat immortal hand or eye,\nCould frame thy symmetry?"
    assert lines_to_paragraphs(verse, PROSE) == [verse]


def test_a_line_of_verse_that_is_nearly_full_ends_like_the_others():
    verse = "Man's boasted power and all his freedom are flown;\nLord of the sea, he bends a slave,\nAnd she reigns alone."
    assert lines_to_paragraphs(verse, PROSE) == [verse]


def test_talk_without_empty_lines_is_a_paragraph_a_line():
    talk = '"She\'s not going to believe this."\n"Then we\'ll show her." Elena looked.\n"Now?"'
    assert lines_to_paragraphs(talk, PROSE) == talk.split("\n")


def test_long_lines_were_never_wrapped():
    long = "The oak stood where it had always stood. " * 5
    assert lines_to_paragraphs(f"{long}\n{long}") == [long.strip(), long.strip()]
    assert [c.title for c in read_book(f"Chapter 1\n{long}\n{long}\nChapter 2\n{long}").chapters] == ["Chapter 1", "Chapter 2"]


def test_a_broken_word_is_joined_only_if_it_stands_whole_elsewhere():
    assert lines_to_paragraphs("It was some-\nthing old.") == ["It was some-thing old."]
    assert lines_to_paragraphs("It was some-\nthing old.", "Something else.") == ["It was something old."]
    assert lines_to_paragraphs("A well-\nknown oak.", "Well, it was known.") == ["A well-known oak."]


def test_a_dash_at_a_line_end_takes_a_space_only_where_other_dashes_do():
    assert lines_to_paragraphs("He came--\nat last.", "It was--or seemed--old.") == ["He came--at last."]
    assert lines_to_paragraphs("He came --\nat last.", "It was -- or seemed -- old.") == ["He came -- at last."]


def test_lists_keep_their_lines():
    assert lines_to_paragraphs("He had:\n- an oak\n- an elm", PROSE) == ["He had:\n- an oak\n- an elm"]
