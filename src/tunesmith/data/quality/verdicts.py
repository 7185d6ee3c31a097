"""Which rows each detector spoke of: what a finding counts, row by row, so that a filter can act on the same verdict.

    verdicts.rows("html_residue")     [3, 16, 32]: numbers of the rows, from 0, in the order in which they were seen

One byte a row and fault, and only up to the last row that has it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from tunesmith.data.quality.evidence import Tally


class Judging(Protocol):
    """A detector that counts rows, each kind under the code of its finding."""

    tallies: dict[str, Tally]


class Verdicts:
    """Row numbers by code. A row has a fault when its detector counted it, whether or not a finding came of the count."""

    def __init__(self) -> None:
        self.seen = 0
        self._marks: dict[str, bytearray] = {}
        self._counted: dict[str, int] = {}

    def see(self, detectors: Iterable[Judging]) -> None:
        """Note what the detectors counted since the last call: the verdict on one more row."""
        for detector in detectors:
            for code, tally in detector.tallies.items():
                if tally.count != self._counted.get(code, 0):
                    self._counted[code] = tally.count
                    marks = self._marks.setdefault(code, bytearray())
                    marks.extend(bytes(self.seen - len(marks)))
                    marks.append(1)
        self.seen += 1

    def codes(self) -> list[str]:
        return sorted(self._marks)

    def marks(self, code: str) -> bytes:
        """One byte for each row that was seen: 1 where it has the fault."""
        return bytes(self._marks.get(code, b"").ljust(self.seen, b"\0"))

    def rows(self, code: str) -> list[int]:
        return [i for i, mark in enumerate(self._marks.get(code, b"")) if mark]
