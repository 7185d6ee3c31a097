"""Text to rows: each row knows its chapter, asks for what it holds, and fits.

    python -m pytest tests/data/test_style.py
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tunesmith.data.chapters import read_book
from tunesmith.data.split import split
from tunesmith.data.style import CONTINUE, OPEN, PROMPTS, chapters_to_rows, tail, text_card, text_findings
from tunesmith.data.voice import kind_of
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Split as SplitConfig
from tunesmith.recipe.schema import Style
from tunesmith.template.render import render

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
LONG = "CHAPTER I\n\n" + "\n\n".join(f'He walked to oak {n}. It was old.\n\n"Is it {n}?" said she.' for n in range(60)) + (
    "\n\nCHAPTER II\n\n" + "\n\n".join(f"They looked at elm {n} and went home. Nobody spoke of it." for n in range(60)))


def test_rows_carry_one_system_prompt_their_place_and_their_chapter(write):
    files = {"one.txt": write("one.txt", CHAPTER), "two.txt": write("two.txt", '"Go on," said Anne, "do go on."')}
    rows, system = chapters_to_rows(files, Style(chunk_words=20))
    assert [(r.where, r.meta) for r in rows] == [
        ("one.txt: chapter 1, passage 1", {"source": "one.txt", "chapter": "Chapter 1", "kind": "narration"}),
        ("one.txt: chapter 2, passage 1", {"source": "one.txt", "chapter": "CHAPTER IV.", "kind": "narration"}),
        ("one.txt: chapter 3, passage 1", {"source": "one.txt", "chapter": "Part Two", "kind": "dialogue"}),
        ("two.txt: chapter 1, passage 1", {"source": "two.txt", "chapter": "chapter 1", "kind": "dialogue"})]
    assert {r.messages[0]["content"] for r in rows} == {system}
    assert rows[0].answer == ("Sir Walter Elliot was a man who, for his own amusement, never took up any book but the "
                              "Baronetage;")


def test_chapters_of_the_same_title_stay_apart(write):
    text = "CHAPTER I\n\nOne came.\n\nCHAPTER II\n\nTwo came.\n\nCHAPTER I\n\nThree came."
    rows, _ = chapters_to_rows({"a.txt": write("a.txt", text)}, Style(chunk_words=20))
    assert [r.meta["chapter"] for r in rows] == ["CHAPTER I (1)", "CHAPTER II", "CHAPTER I (3)"]


def test_all_words_of_the_chapters_are_trained_on_in_order(write, tiny_tokenizer):
    rows, _ = chapters_to_rows({"a.txt": write("a.txt", LONG)}, Style(chunk_tokens=200), None, tiny_tokenizer)
    told = [p for c in read_book(LONG).chapters for p in c.paragraphs]
    assert " ".join(r.answer for r in rows).split() == " ".join(told).split()
    assert all(len(tiny_tokenizer.encode(r.answer)) <= 200 for r in rows) and len(rows) > 10


@pytest.mark.parametrize("continuation", [False, True])
def test_a_size_that_is_left_open_fits_max_tokens_once_rendered(write, tiny_tokenizer, continuation):
    files = {"a.txt": write("a.txt", LONG)}
    for max_tokens in (500, 900):
        config = Style(continuation=continuation, continuation_words=20)
        rows, _ = chapters_to_rows(files, config, None, tiny_tokenizer, max_tokens)
        lengths = [len(render(tiny_tokenizer, r.messages, None).ids) for r in rows]
        assert max_tokens / 3 < max(lengths) <= max_tokens
    with pytest.raises(DataError, match="leaves no room"):
        chapters_to_rows(files, Style(continuation=continuation), None, tiny_tokenizer, 64)


def test_tokens_need_a_tokenizer(write):
    with pytest.raises(DataError, match="no tokenizer"):
        chapters_to_rows({"a.txt": write("a.txt", CHAPTER)}, Style())


def test_requests_fit_the_kind_and_are_not_all_the_same(write):
    rows, _ = chapters_to_rows({"a.txt": write("a.txt", LONG)}, Style(chunk_words=20))
    assert all(r.prompt in PROMPTS[kind_of(r.answer)] and r.meta["kind"] == kind_of(r.answer) for r in rows)
    used = Counter(r.prompt for r in rows)
    assert len(used) >= 6 and used.most_common(1)[0][1] < len(rows) / 2


def test_every_part_of_a_long_speech_is_dialogue(write):
    speech = '"' + "The house was old, and the garden was large and quiet. " * 12 + 'It was cold."'
    rows, _ = chapters_to_rows({"a.txt": write("a.txt", speech)}, Style(chunk_words=30))
    assert len(rows) > 3 and {r.meta["kind"] for r in rows} == {"dialogue"}


def test_a_request_depends_on_its_passage_only(write):
    one, _ = chapters_to_rows({"a.txt": write("a.txt", LONG)}, Style(chunk_words=20))
    longer = write("b.txt", "CHAPTER X\n\nNew.\n\n" + LONG)
    other, _ = chapters_to_rows({"b.txt": longer}, Style(chunk_words=20), "other system")
    asked = {r.answer: r.prompt for r in other}
    assert all(asked[r.answer] == r.prompt for r in one)


def test_continuation_shows_the_end_of_the_passage_before_in_the_same_chapter(write):
    config = Style(chunk_words=30, continuation=True, continuation_words=8)
    rows, _ = chapters_to_rows({"a.txt": write("a.txt", LONG)}, config)
    before = None
    for row in rows:
        if row.where.endswith("passage 1"):
            assert row.prompt in OPEN
        else:
            wording, shown = row.prompt.split("\n\n", 1)
            assert wording in CONTINUE and before.endswith(shown) and 0 < len(shown.split()) <= 8
        before = row.answer


@settings(max_examples=100, deadline=None, database=None)
@given(parts=st.lists(st.sampled_from(["One two three.", "Four?", '"Five six," he said.', "No end of it"]), min_size=1,
                      max_size=8),
       gap=st.sampled_from([" ", "\n\n", "\n"]), words=st.integers(1, 30))
def test_tail_is_the_end_of_the_text_and_not_too_long(parts, gap, words):
    text = gap.join(parts)
    end = tail(text, words)
    assert text.endswith(end) and end and len(end.split()) <= words


def test_overlap_repeats_sentences_and_is_marked_nowhere_else(write, tiny_tokenizer):
    files = {"a.txt": write("a.txt", LONG)}
    plain, _ = chapters_to_rows(files, Style(chunk_tokens=200), "s", tiny_tokenizer)
    overlapping, _ = chapters_to_rows(files, Style(chunk_tokens=200, overlap_tokens=60), "s", tiny_tokenizer)
    assert sum(len(r.answer) for r in overlapping) > 1.1 * sum(len(r.answer) for r in plain)
    assert not {r.answer[:30] for r in overlapping if "chapter 2, passage 1" in r.where} & {r.answer[-30:] for r in overlapping}


def test_a_split_by_source_keeps_the_passages_of_a_file_together(write):
    files = {f"{n}.txt": write(f"{n}.txt", LONG.replace("oak", f"oak {n}")) for n in range(4)}
    rows, _ = chapters_to_rows(files, Style(chunk_words=40))
    train, test = ([rows[i] for i in side] for side in split(rows, SplitConfig(test=0.25, by="source"), 0))
    assert train and test and not {r.meta["source"] for r in train} & {r.meta["source"] for r in test}


def test_system_prompt_comes_from_the_caller_then_the_recipe_then_the_text(write):
    files = {"one.txt": write("one.txt", CHAPTER)}
    assert chapters_to_rows(files, Style(chunk_words=20, system="mine"), "theirs")[1] == "theirs"
    assert chapters_to_rows(files, Style(chunk_words=20, system="mine"))[1] == "mine"
    assert chapters_to_rows(files, Style(chunk_words=20))[1].startswith("You are a novelist")


def test_the_card_holds_the_numbers_behind_the_prompt_and_what_was_left_out(write):
    files = {"a.txt": write("a.txt", "OAKS\n\nby Nobody\n\n" + LONG)}
    card = text_card(files)
    assert card["measured_system"] == chapters_to_rows(files, Style(chunk_words=40))[1]
    assert set(card["voice"]) == {"words", "words_per_sentence", "mtld", "dialogue", "first_person", "past"}
    assert card["chapters"] == {"a.txt": ["CHAPTER I", "CHAPTER II"]}
    assert card["left_out"] == [{"file": "a.txt", "what": "title page", "words": 3, "begins": "OAKS\nby Nobody"}]


def test_findings_name_what_was_left_out_and_marks_of_italics(write):
    path = write("a.txt", "OAKS\n\nCHAPTER I\n\nIt was _very_ old, and *so* tall.")
    found = {f.code: f for f in text_findings({"a.txt": path})}
    assert found["left_out"].examples == ["a.txt: title page, 1 words: OAKS"]
    assert (found["italics"].count, found["italics"].examples) == (2, ["_very_", "*so*"])
    assert text_findings({"b.txt": write("b.txt", "It was 3 * 4 * 5, and snake_case_names.\n\n* * *\n\nSo.")}) == []


@pytest.mark.parametrize("text, what", [("", "the file is empty"), (" \n\n ", "the file is empty"),
                                        ("Chapter 1\n\n", "no text besides heading without text, 2 words: Chapter 1")])
def test_file_without_text_is_an_error(write, text, what):
    with pytest.raises(DataError, match=what) as error:
        chapters_to_rows({"one.txt": write("one.txt", CHAPTER), "two.txt": write("two.txt", text)}, Style(chunk_words=20))
    assert error.value.where == "two.txt"


@pytest.mark.parametrize("keys, what", [
    ({"chunk_tokens": 100, "chunk_words": 100}, "keep one"),
    ({"chunk_words": 100, "overlap_tokens": 9}, "goes with chunk_tokens"),
    ({"chunk_tokens": 100, "overlap_tokens": 51}, "more than half"), ({"overlap_tokens": 300}, "more than half"),
    ({"overlap_tokens": 9, "continuation": True}, "repeat its prompt"),
])
def test_settings_that_contradict_are_refused(keys, what):
    with pytest.raises(ValidationError, match=what):
        Style(**keys)
