"""Clean rows of several kinds, and a way to plant faults at known places."""

from __future__ import annotations

from dataclasses import replace

import pytest

TOPICS = ("bread", "bicycles", "the tides", "old maps", "beekeeping", "pottery", "a small garden", "night trains")
REASONS = ("it rewards patience more than strength", "the first mistakes are cheap and easy to mend",
           "nobody has to be good at it on the first day", "there is always somebody near who likes to explain it",
           "a few plain tools last for many years")


def clean_rows() -> list:
    """80 rows of plain English prose, all different."""
    from tunesmith.data.rows import Row

    return [Row([{"role": "user", "content": f"Why do so many people enjoy learning about {topic}, for example no. {n}?"},
                 {"role": "assistant", "content": f"People like {topic} because {REASONS[n % 5]}. Once they have started, they "
                                                  f"find that {REASONS[(n + 1 + n // 5) % 5]}, and that is reason enough."}],
                f"train.jsonl:{n * 8 + i + 1}")
            for n in range(10) for i, topic in enumerate(TOPICS)]


@pytest.fixture
def clean():
    return clean_rows()


@pytest.fixture
def plant():
    """`plant(rows, {3: " more"}, role="assistant")`: the text added to these rows (numbers from 1) at the end of that turn;
    `whole=True` puts it in place of the turn."""

    def make(rows, faults: dict[int, str], role: str = "assistant", whole: bool = False):
        rows = list(rows)
        for n, text in faults.items():
            messages = [m | {"content": text if whole else m["content"] + text} if m["role"] == role else m
                        for m in rows[n - 1].messages]
            rows[n - 1] = replace(rows[n - 1], messages=messages)
        return rows

    return make


@pytest.fixture
def found():
    """`found(rows)`: findings of one inspection by code."""
    from tunesmith.data import quality

    def run(rows, **settings):
        findings = quality.inspect(iter(rows), **settings)
        assert len({f.code for f in findings}) == len(findings), "one finding a code"
        return {f.code: f for f in findings}

    return run
