"""Rows on disk are the sequence they were in memory, and take none of it.

    python -m pytest tests/data/test_spool.py
"""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data import spool
from tunesmith.data.rows import Row
from tunesmith.data.spool import Chosen, Rows, write_rows

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ROWS = st.lists(st.builds(
    lambda q, a, where, meta: Row([{"role": "user", "content": q}, {"role": "assistant", "content": a}], where, None, meta),
    TEXT, TEXT, TEXT, st.dictionaries(TEXT, TEXT | st.integers(), max_size=2)), max_size=8)


@settings(max_examples=150, deadline=None, database=None)
@given(rows=ROWS, scan=st.integers(1, 64))
def test_rows_read_back_by_number_by_slice_and_in_order(tmp_path_factory, rows, scan):
    """Whatever line separators their text holds, and wherever the scan's blocks end."""
    path = tmp_path_factory.mktemp("spool") / "rows"
    before, spool.SCAN_BYTES = spool.SCAN_BYTES, scan
    try:
        assert write_rows(path, rows) == len(rows)
        read = Rows(path)
        assert list(read) == rows and len(read) == len(rows)
        assert [read[i] for i in range(-len(rows), len(rows))] == rows * 2 and read[1:3] == rows[1:3]
    finally:
        spool.SCAN_BYTES = before
    with pytest.raises(IndexError):
        read[len(rows)]


def test_chosen_rows_are_those_of_the_numbers_also_when_chosen_again(tmp_path, chat):
    rows = [chat(f"q{i}", "a") for i in range(10)]
    some = Chosen(Chosen(rows, [9, 1, 3, 5]), [3, 0, 0])
    assert list(some) == [some[i] for i in range(len(some))] == some[:] == [rows[5], rows[9], rows[9]]


def test_a_large_file_is_read_in_little_memory(tmp_path, chat):
    row = chat("q" * 500, "a" * 500)
    write_rows(tmp_path / "rows", (row for _ in range(20_000)))  # 22 MB
    tracemalloc.start()
    read = Rows(tmp_path / "rows")
    assert sum(1 for _ in read) == len(read) == 20_000 and read[19_999] == row
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * (tmp_path / "rows").stat().st_size
