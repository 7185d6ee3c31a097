"""Whether a file is JSON Lines, as OpenAI asks it of files for fine-tuning when they are uploaded. What the lines say is read
when a job wants them."""

from __future__ import annotations

import json
from typing import BinaryIO

from tunesmith.errors import UsageError

LONGEST_LINE = 16 * 2**20
"""Bytes of a line, so that no file can fill the memory."""
HINT = 8


def check_jsonl(f: BinaryIO) -> None:
    """Every line is a JSON object. A byte order mark, CRLF and empty lines at the end are fine.

    Raises:
        UsageError: in OpenAI's words, with the first line that is none.
    """
    f.seek(0)
    empty = number = 0
    while line := f.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise UsageError(f"{EXPECTED} Line {number} is longer than {LONGEST_LINE:,} bytes.")
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            empty = empty or number
            continue
        if empty or not _is_object(line):
            _refuse(empty or number, b"" if empty else line)
    if number == 0 or empty == 1:
        raise UsageError(f"{EXPECTED} The file is empty.")


EXPECTED = "Expected file to have JSONL format, where every line is a JSON dictionary."


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode("utf-8")), dict)
    except (ValueError, RecursionError):  # ValueError: no UTF-8, no JSON, a number of more digits than Python reads
        return False


def _refuse(number: int, line: bytes) -> None:
    start = line.decode("utf-8", "replace").strip()[:HINT]
    raise UsageError(f'{EXPECTED} Line {number} is not a dictionary (HINT: line starts with: "{start}...").')
