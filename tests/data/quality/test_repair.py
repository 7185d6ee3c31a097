"""Safe repairs: what they do, what they leave alone, and that doing them twice changes nothing.

    python -m pytest tests/data/quality/test_repair.py
"""

from __future__ import annotations

import copy

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tunesmith.data import quality
from tunesmith.data.rows import Row

DAMAGED = ["\u00e2\u20ac\u2122", "\u00c3\u00a9", "\x85", "\x00", "\x0c", "\x1b[0m",
           "\r\n", "\r", "\u200b", "\u200d", "\ufeff", "\u00ad",
           "\u202e",
           "\u2028", "\U000e0041", "&amp;", "&nbsp;", "&lt;b&gt;", "&#13;", "&#8203;", "&amp;amp;", "&zwj;", "&co;", "<br>",
           "\ufffd",
           " ", "\n", "a", "\u0645", "\U0001f468", "code", "\u00e2\u0080\u0099", "&#x80;", "&Acirc;", "&copy;", "\u3000"]


def row_of(question: str, answer: str) -> Row:
    return Row([{"role": "system", "content": "Be brief."}, {"role": "user", "content": question},
                {"role": "assistant", "content": answer, "weight": 1}], "a.jsonl:1", meta={"source": "web"})


@pytest.mark.parametrize("damaged, sound, repair", [
    ("It don\u00e2\u20ac\u2122t matter.", "It don\u2019t matter.", "mojibake"),
    ("Caf\u00c3\u00a9 au lait.", "Caf\u00e9 au lait.", "mojibake"),
    ("Of them \u0096 a true story.", "Of them \u2013 a true story.", "mojibake"),
    ("One.\r\nTwo.\rThree.", "One.\nTwo.\nThree.", "line endings"),
    ("Null\x00 and \x1b[31mred\x1b[0m.", "Null and red.", "control characters"),
    ("Page\x0cbreak\u2028line.", "Page\nbreak\nline.", "control characters"),
    ("\ufeffZero\u200bwidth soft\u00adhyphen.", "Zerowidth softhyphen.", "invisible characters"),
    ("Hidden\U000e0041\U000e0042 words, turned\u202e.", "Hidden words, turned.", "invisible characters"),
    ("Bed &amp; breakfast &#169; 5&nbsp;\u20ac", "Bed & breakfast \u00a9 5\u00a0\u20ac", "HTML entities"),
    ("Bed &amp;amp; breakfast.", "Bed & breakfast.", "HTML entities"),
])
def test_a_repair_does_what_it_says_in_questions_and_answers(damaged, sound, repair):
    fixed, done = quality.fix(row_of(damaged, damaged))
    assert (fixed.messages[1]["content"], fixed.answer, done) == (sound, sound, [repair])
    assert (fixed.where, fixed.meta, fixed.messages[2]["weight"]) == ("a.jsonl:1", {"source": "web"}, 1)


def test_only_answers_lose_trailing_white_space():
    fixed, done = quality.fix(row_of("Question: \n", "Answer. \n\n"))
    assert (fixed.prompt, fixed.answer, done) == ("Question: \n", "Answer.", ["trailing white space"])


def test_several_repairs_are_named_once_each():
    _fixed, done = quality.fix(row_of("A\x00\r\n", "B\x00\r\nB\x00\u200b."))
    assert sorted(done) == ["control characters", "invisible characters", "line endings"]


@pytest.mark.parametrize("text", [
    "Write &lt;b&gt; for bold.", "<p>Bed &amp; breakfast</p>",
    "In HTML, &amp; is an ampersand.", "```\n&amp;\n```",
    "?a=1&copy=2 AT&T;",
    "Lost\ufffd letters.", "Family \U0001f468\u200d\U0001f469\u200d\U0001f467.", 
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "\u0e20\u0e32\u0e29\u0e32\u200b\u0e44\u0e17\u0e22", "Don\u2019t \u2014 \u201cplease\u201d\u2026",
    "\u0160\u00eer Ha\u0161\u0160\u00eer\u00eem", "\tTabs.",
])
def test_what_may_be_meant_is_left_alone(text):
    row = row_of(text, text)
    assert quality.fix(row) == (row, []) and quality.fix(row)[0] is row


def test_clean_rows_come_back_as_they_are(clean):
    assert all(quality.fix(row)[0] is row and quality.fix(row)[1] == [] for row in clean)


def test_tools_keep_their_bytes_and_a_turn_of_nothing_but_noise_stays():
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": "a\x00"}}}
    row = Row([{"role": "user", "content": "Go."}, {"role": "assistant", "content": "", "tool_calls": [call]},
               {"role": "tool", "content": "a\r\n\x00"}, {"role": "assistant", "content": "\u200b\x00"}], "a:1")
    assert quality.fix(row) == (row, [])


@given(st.lists(st.sampled_from(DAMAGED), max_size=12).map("".join), st.text(max_size=40))
@example("&amp;#13;&amp;#10;", "\u200b\u200d\u200b")
@example("\u00c3\u00a2\u00e2\u201a\u00ac\u00e2\u201e\u00a2", "&amp;nbsp;")
def test_repairing_twice_is_repairing_once(question, answer):
    row = row_of(question, answer)
    before = copy.deepcopy(row)
    fixed, done = quality.fix(row)
    assert row == before, "pure: the row that came in is untouched"
    assert (fixed is row) == (not done) and len(done) == len(set(done))
    again, more = quality.fix(fixed)
    assert again is fixed and more == []


@given(st.lists(st.sampled_from(DAMAGED[:15]), min_size=1, max_size=6))
def test_after_repair_no_repairable_damage_is_found(pieces):
    text = "So it " + " and it ".join(pieces) + " ends."
    fixed, _done = quality.fix(row_of(text, text))
    codes = {f.code for f in quality.inspect([fixed])}
    assert not codes & {"mojibake", "control_character", "invisible_character"}
