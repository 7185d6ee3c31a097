"""A row in the terminal: all of its text, who says what, and what is trained, with colour and without.

    python -m pytest tests/cli/test_rows.py
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.cli.rows import row_lines

TOKENS = [("<|im_start|>user", "template", False), ("\n", "template", False), ("Oak", "user", False),
          (" Street", "user", False), ("<|im_end|>", "template", False), ("\n", "template", False),
          ("<|im_start|>assistant\n", "template", False),
          ("12", "assistant", True), ("\n13", "assistant", True), ("<|im_end|>", "assistant", True), ("\n", "template", False)]
STYLE = re.compile(r"\x1b\[([\d;]*)m")
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cf", "Zl", "Zp"], exclude_characters="⟦⟧│┆┃┇‹›"), max_size=30)

ROLES = st.sampled_from(["system", "user", "assistant", "tool", "template", "critic"])


def row(tokens=TOKENS) -> dict:
    return {"where": "a.jsonl:1", "text": "".join(t[0] for t in tokens),
            "tokens": [{"id": n, "text": text, "role": role, "trained": on} for n, (text, role, on) in enumerate(tokens)]}


def test_without_colour_roles_stand_in_the_margin_and_brackets_around_what_is_trained():
    assert row_lines(row(), ids=False, colour=False) == [
        "── a.jsonl:1  (11 tokens, 3 trained)",
        "           │ <|im_start|>user",
        "      user │ Oak Street<|im_end|>",
        "           │ <|im_start|>assistant",
        " assistant │ ⟦12",
        "           │ 13<|im_end|>⟧",
        ""]


def test_ids_stand_behind_their_tokens_and_before_a_line_feed():
    lines = row_lines(row(), ids=True, colour=False)
    assert lines[2:4] == ["      user │ Oak‹2› Street‹3›<|im_end|>‹4›‹5›", "           │ <|im_start|>assistant‹6›"]
    assert lines[4:6] == [" assistant │ ⟦12‹7›", "           │ 13‹8›<|im_end|>‹9›⟧‹10›"]


def test_with_colour_each_role_has_its_own_and_what_is_trained_is_bold():
    lines = row_lines(row(), ids=False, colour=True)
    assert "⟦" not in "".join(lines)
    assert "\033[36mOak Street\033[0m\033[2m<|im_end|>\033[0m" in lines[2]
    assert "\033[1;32m13<|im_end|>\033[0m" in lines[5] and "┃" in lines[5] and "│" in lines[2]
    assert [STYLE.sub("", line).replace("┃", "│") for line in lines] == [
        line.replace("⟦", "").replace("⟧", "") for line in row_lines(row(), ids=False, colour=False)]


@settings(max_examples=100, deadline=None, database=None)
@given(st.lists(st.tuples(TEXTS | st.just("a\nb\n\n"), ROLES, st.booleans()), min_size=1, max_size=12), st.booleans(),
       st.sampled_from([None, 44, 80]))
def test_nothing_of_the_text_is_lost(tokens, colour, width):
    lines = row_lines(row(tokens), ids=False, colour=colour, width=width)[1:-1]
    text = ""
    for line in lines:
        sign, rest = re.fullmatch(r".{10} (.) ?(.*)", STYLE.sub("", line)).groups()
        assert sign in "│┆┃┇" and (width is None or len(rest) <= width), "cells are never fewer than characters here"
        text += ("\n" if sign in "│┃" and text is not None and line is not lines[0] else "") + rest
    assert text.replace("⟦", "").replace("⟧", "").rstrip("\n") == row(tokens)["text"].rstrip("\n")


def test_two_roles_on_one_line_are_told_apart():
    tokens = [("[INST] ", "template", False), ("Oak?", "user", False), (" [/INST]", "template", False),
              ("12", "assistant", True)]
    lines = row_lines(row(tokens), ids=False, colour=False)[1:-1]
    assert lines == ["      user │ [INST] Oak? [/INST]", " assistant ┆ ⟦12⟧"]


def test_a_row_cannot_steer_the_terminal():
    hostile = "\x1b[2J\x1b]0;title\x07\r\u202eback\u2028\x9b31m"
    line = row_lines(row([(hostile, "user", False)]), ids=False, colour=False)[1]
    assert line == "      user │ ␛[2J␛]0;title␇␍‹U+202E›back‹U+2028›‹U+009B›31m"


@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True)])
def test_a_terminal_gets_colour_unless_no_color_is_set_and_a_pipe_none(environment, coloured):
    code = f"from tunesmith.cli.rows import row_lines; print('\\n'.join(row_lines({row()!r}, False)))"
    clean = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | environment
    parent, child = pty.openpty()
    done = subprocess.run([sys.executable, "-c", code], stdout=child, env=clean, check=True)
    os.close(child)
    shown = os.read(parent, 65536).decode()
    os.close(parent)
    assert done.returncode == 0 and ("\033[" in shown) == coloured and ("⟦" in shown) != coloured
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, env=clean, check=True).stdout.decode()
    assert "\033[" not in piped and "⟦12" in piped
