"""Ids in OpenAI's manner: a prefix that says what it is, and enough chance that nobody coordinates."""

from __future__ import annotations

import re
import secrets
import string

LETTERS = string.ascii_letters + string.digits
POSSIBLE = re.compile(r"[A-Za-z0-9_-]{1,64}")


def new_id(prefix: str, length: int = 24) -> str:
    """`ftjob-V1StGXR8Z5jdHi6BmyTq0aBc`. `prefix` has its own hyphen or underscore at the end."""
    return prefix + "".join(secrets.choice(LETTERS) for _ in range(length))


def possible(id: str) -> bool:
    """Whether it can be an id of ours: nothing else is asked of a database, or becomes part of a path."""
    return POSSIBLE.fullmatch(id) is not None
