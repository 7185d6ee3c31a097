"""Curves in a terminal: a braille canvas, two dots wide and four high a character.

    2.41 ┤⠑⢄                      y labels on the left, x below; several series on one canvas, each with a style.
    1.20 ┤  ⠑⠢⢄⣀                  0.00 ┤     ⠉⠒⠒⠤⠤⠤
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a braille character by row and column of its dot (Unicode 15.0, block 2800)."""
LARGEST = 1e100
"""Beyond it the width of a range overflows."""
Point = Sequence[float]


@dataclass(frozen=True, slots=True)
class Series:
    points: Sequence[Point]
    """(x, y) in order of x."""
    style: str
    joined: bool = True
    """A line through the points; else the points alone."""
    marked: bool = False
    """Each point as a ring over the line."""


def plot(series: Sequence[Series], width: int, height: int, *, x_end: float, label=lambda y: f"{y:.3g}",
         from_zero: bool = False) -> list[Text]:
    """`height` lines of `width` characters, the last of them the x axis from 0 to `x_end`. Points that are not
    finite are left out."""
    kept = [(s, [(x, y) for x, y in s.points if abs(y) < LARGEST]) for s in series]
    x_end = max([x_end, *(points[-1][0] for _, points in kept if points)])
    values = [y for _, points in kept for _, y in points]
    if not values:
        empty = Text("waiting for the first step".center(width), "dim")
        return [empty if i == height // 2 else Text("") for i in range(height)]
    low, high = _range(values, from_zero)
    rows = height - 1
    labels = {0: label(high), rows // 2: label(high - (high - low) * (rows // 2) / max(1, rows - 1)), rows - 1: label(low)}
    margin = max(map(len, labels.values()))
    columns = width - margin - 2
    canvas = _Canvas(columns, rows)
    for s, points in kept:
        dots = [(x / max(x_end, 1) * (2 * columns - 1), (high - y) / (high - low) * (4 * rows - 1)) for x, y in points]
        canvas.draw(dots, s.style, s.joined)
        if s.marked:
            canvas.mark(dots, s.style)
    lines = []
    for row in range(rows):
        left = labels.get(row, "").rjust(margin) + (" ┤" if row in labels else " │")
        lines.append(Text.assemble((left, "dim"), canvas.line(row)))
    return [*lines, _x_axis(margin, columns, x_end)]


def _range(values: list[float], from_zero: bool) -> tuple[float, float]:
    low, high = min(values + [0.0] * from_zero), max(values)
    room = max(0.5, abs(high) * 0.01)
    return (low, high) if high - low > 1e-9 * abs(high) else (low - room, high + room)


def _x_axis(margin: int, columns: int, x_end: float) -> Text:
    ends = [str(int(x_end * part)) for part in (0, 0.25, 0.5, 0.75, 1)] if columns >= 40 else ["0", str(int(x_end))]
    line = [" "] * columns
    for i, text in enumerate(ends):
        at = min(max(0, round(i / (len(ends) - 1) * (columns - 1)) - len(text) // 2), columns - len(text))
        line[at : at + len(text)] = text
    return Text(" " * (margin + 2) + "".join(line), "dim")


class _Canvas:
    def __init__(self, columns: int, rows: int):
        self.columns, self.rows = columns, rows
        self.bits = [[0] * columns for _ in range(rows)]
        self.styles = [[""] * columns for _ in range(rows)]
        self.marks: dict[tuple[int, int], str] = {}

    def draw(self, dots: list[tuple[float, float]], style: str, joined: bool) -> None:
        for i, (x, y) in enumerate(dots):
            self._dot(x, y, style)
            if not joined or i == 0:
                continue
            x0, y0 = dots[i - 1]
            count = math.ceil(max(abs(x - x0), abs(y - y0)))
            for k in range(1, count):
                self._dot(x0 + (x - x0) * k / count, y0 + (y - y0) * k / count, style)

    def mark(self, dots: list[tuple[float, float]], style: str) -> None:
        for x, y in dots:
            self.marks[min(self.rows - 1, round(y) // 4), min(self.columns - 1, round(x) // 2)] = style

    def _dot(self, x: float, y: float, style: str) -> None:
        column, row = round(x), round(y)
        if 0 <= column < 2 * self.columns and 0 <= row < 4 * self.rows:
            if self.styles[row // 4][column // 2] != style:
                self.styles[row // 4][column // 2], self.bits[row // 4][column // 2] = style, 0
            self.bits[row // 4][column // 2] |= DOTS[row % 4][column % 2]

    def line(self, row: int) -> Text:
        text = Text()
        for column in range(self.columns):
            if style := self.marks.get((row, column)):
                text.append("●", style)
            elif bits := self.bits[row][column]:
                text.append(chr(0x2800 + bits), self.styles[row][column])
            else:
                text.append(" ")
        return text
