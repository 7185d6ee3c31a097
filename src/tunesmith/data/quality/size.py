"""What to expect of so many rows. An expectation from practice with style transfer, and no measurement of this data."""

from __future__ import annotations

from tunesmith.data.finding import Finding
from tunesmith.data.quality.evidence import finding

FEW_ROWS = 50
EXPECTED = ((500, "80-95% style transfer", "professional deployment"), (100, "60-80% style transfer", "production quality"),
            (50, "40-60% style transfer", "noticeable, not yet consistent"), (10, "20-40% style transfer", "proof of concept"),
            (0, "less than 20% style transfer", "a test of the pipeline"))
"""Rows from which each expectation holds. Between the bands of the table (10-20, 50-100, 100-200, 500+) the lower holds."""


def size_advice(rows: int) -> Finding | None:
    """A finding for data sets below the last band: a warning below 50 rows, else for information."""
    at = next(i for i, (least, *_rest) in enumerate(EXPECTED) if rows >= least)
    if at == 0:
        return None
    _least, transfer, use = EXPECTED[at]
    following, then, _use = EXPECTED[at - 1]
    return finding("few_rows", "warning" if rows < FEW_ROWS else "info", rows,
                   f"{rows} training rows; expectation, not a measurement: {transfer} ({use})",
                   f"from {following} good rows expect {then}; the evaluation measures what this run really reached")
