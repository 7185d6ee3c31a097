"""Ids in OpenAI's manner: a prefix that says what it is, and enough chance that nobody coordinates."""

from __future__ import annotations

import secrets
import string

LETTERS = string.ascii_letters + string.digits


def new_id(prefix: str, length: int = 24) -> str:
    """`ftjob-V1StGXR8Z5jdHi6BmyTq0aBc`. `prefix` has its own hyphen or underscore at the end."""
    return prefix + "".join(secrets.choice(LETTERS) for _ in range(length))
