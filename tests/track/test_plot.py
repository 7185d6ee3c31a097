"""Curves of characters: where the dots are, and what never breaks.

pytest tests/track/test_plot.py
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.track.plot import DOTS, Series, plot

ROW_OF_BIT = {bit: row for row, pair in enumerate(DOTS) for bit in pair}


def dots(lines, margin: int) -> list[tuple[int, int]]:
    """(column, row) of every dot, rows counted from the top, four a line and two columns a character."""
    found = []
    for y, line in enumerate(lines[:-1]):
        for x, char in enumerate(line.plain[margin:]):
            for bit in ROW_OF_BIT if 0x2800 < ord(char) <= 0x28FF else ():
                if (ord(char) - 0x2800) & bit:
                    found.append((2 * x + (bit in {pair[1] for pair in DOTS}), 4 * y + ROW_OF_BIT[bit]))
    return sorted(found)


def margin_of(lines) -> int:
    return min(line.plain.index(c) for line in lines[:-1] for c in "┤│" if c in line.plain) + 1


def test_a_falling_line_falls_a_dot_a_column():
    lines = plot([Series([(0, 1.0), (10, 0.0)], "red")], 40, 11, x_end=10)
    found = dots(lines, margin_of(lines))
    assert found[0] == (0, 0) and found[-1][1] == 39
    assert all(b[1] >= a[1] for a, b in zip(found, found[1:], strict=False))
    assert {row for _, row in found} == set(range(40))


def test_labels_are_the_extremes_and_the_axis_ends_at_the_last_step():
    lines = [line.plain for line in plot([Series([(0, 2.5), (7, 0.5)], "red")], 60, 9, x_end=200)]
    assert lines[0].startswith(" 2.5 ┤") and lines[7].startswith(" 0.5 ┤")
    assert lines[8].split() == ["0", "50", "100", "150", "200"] and lines[8].endswith("200")


def test_a_marked_series_shows_each_point():
    lines = plot([Series([(0, 1.0), (5, 3.0), (10, 2.0)], "red", marked=True)], 40, 9, x_end=10)
    assert sum(line.plain.count("●") for line in lines) == 3


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 500), st.floats()), max_size=60), st.integers(20, 200), st.integers(3, 60),
       st.integers(0, 1000), st.booleans())
def test_every_size_and_number_gives_lines_that_fit(points, width, height, x_end, from_zero):
    lines = plot([Series(sorted(points, key=lambda p: p[0]), "red")], width, height, x_end=x_end, from_zero=from_zero)
    assert len(lines) == height
    assert all(line.cell_len <= max(width, 26) for line in lines)


@pytest.mark.parametrize("points", [[], [(1, float("nan"))], [(1, float("inf"))]])
def test_without_a_number_it_waits(points):
    assert "waiting for the first step" in "".join(line.plain for line in plot([Series(points, "red")], 40, 9, x_end=10))
