"""Searches that are written anew find what the forms of detect-secrets find, and no search can read a text again and again.

    python -m pytest tests/data/quality/test_credentials.py
"""

from __future__ import annotations

import re
from re import _constants as op
from re import _parser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.quality import credentials

NEW = ("_json_web_tokens", "_openai_keys", "_npm_tokens")
ALNUM = "x7Kq2mPz9Lw4Vn8Rt5Yb"
PARTS = {
    "_json_web_tokens": ["eyJ", "eyJhbGciOiJIUzI1NiJ9", ".", ".", "a", "_b-", "=", " ", "+/", "\n"],
    "_openai_keys": ["sk-", "sk-", ALNUM, ALNUM, "T3BlbkFJ", "T3BlbkFJ", "-", "a", " ", "="],
    "_npm_tokens": ["//", "/", ":_authToken=", "/:_authToken=", "npm_", "npm_a", "0123456789abcdef" * 3, "reg.org", " "],
}
"""No line end in the last: of two values on one line the first decides here where the key begins and the last there."""


def by_name():
    return {places.func.__name__: places for _, places, _ in credentials._forms() if places.func is not credentials._plain}


@pytest.mark.parametrize("name", NEW)
@settings(max_examples=400, deadline=None, database=None)
@given(data=st.data())
def test_search_finds_the_places_that_the_form_finds(name, data):
    text = "".join(data.draw(st.lists(st.sampled_from(PARTS[name]), max_size=14)))
    places = by_name()[name]
    assert list(places(text)) == [match.span() for match in places.keywords["form"].finditer(text)], text


@pytest.mark.parametrize("name", NEW)
def test_control_parts_do_make_keys(name):
    key = {"_json_web_tokens": "eyJhbGciOiJIUzI1NiJ9.eyJh", "_openai_keys": f"sk-{ALNUM}T3BlbkFJ{ALNUM}",
           "_npm_tokens": "//reg.org/:_authToken=npm_a"}[name]
    assert list(by_name()[name](f" {key} ")) == [(1, len(key) + 1 + (name == "_npm_tokens"))]


def reads_on(form: re.Pattern) -> bool:
    """Whether a form may meet its own beginning while it reads on without end, and fail after that: work grows as n * n."""
    parsed = list(_parser.parse(form.pattern, form.flags & ~re.UNICODE))
    head = ""
    for code, value in parsed:
        if code is op.AT and not head:
            continue
        if code is not op.LITERAL:
            break
        head += chr(value)
    for n, (code, value) in enumerate(parsed):
        endless = code is op.MAX_REPEAT and value[1] is op.MAXREPEAT and len(value[2]) == 1
        if endless and head and n + 1 < len(parsed) and all(_takes(value[2][0], ord(c)) for c in head):
            return True
    return False


def _takes(item, code: int) -> bool:
    kind, value = item
    if kind is op.ANY:
        return True
    if kind is op.LITERAL:
        return value == code
    if kind is op.NOT_LITERAL:
        return value != code
    if kind is not op.IN:
        return False
    negated = value[0][0] is op.NEGATE
    inside = any(k is op.LITERAL and v == code or k is op.RANGE and v[0] <= code <= v[1] or
                 k is op.CATEGORY and re.match({op.CATEGORY_SPACE: r"\s", op.CATEGORY_DIGIT: r"\d"}.get(v, r"\w"), chr(code))
                 for k, v in value)
    return bool(inside) != negated


def test_no_form_is_searched_that_reads_on_over_its_own_beginning():
    """A hundred thousand times `eyJ` took seconds: each of them read on to the end."""
    plain = [places.keywords["form"] for _, places, _ in credentials._forms() if places.func is credentials._plain]
    assert len(plain) > 20
    assert [form.pattern for form in plain if reads_on(form)] == []
    assert all(reads_on(by_name()[name].keywords["form"]) for name in NEW)


@pytest.mark.parametrize("text", ["eyJ" * 100_000, "sk-" * 100_000, "//a" * 100_000, "END " * 50_000 + "-us1",
                                  "-----BEGIN RSA PRIVATE KEY-----\n" * 5_000])
def test_long_rows_of_beginnings_are_read(text):
    """The number of keys, whatever the length: the last is one that has no end."""
    assert len(credentials.find(text)) == ("PRIVATE" in text)
