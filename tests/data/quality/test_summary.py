"""The data card's numbers, against numbers from sorted lists.

    python -m pytest tests/data/quality/test_summary.py
"""

from __future__ import annotations

import math
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data import quality
from tunesmith.data.quality.summary import Histogram
from tunesmith.data.rows import Row


def turn(role: str, text: str) -> dict:
    return {"role": role, "content": text}


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=200))
def test_quantiles_are_those_of_the_sorted_list_within_a_cell(lengths):
    histogram = Histogram()
    for n in lengths:
        histogram.add(n)
    got, ordered = histogram.lengths(), sorted(lengths)
    assert (got.count, got.characters, got.min, got.max) == (len(lengths), sum(lengths), ordered[0], ordered[-1])
    for share, value in ((0.5, got.median), (0.95, got.p95)):
        true = ordered[math.ceil(share * len(ordered)) - 1]
        assert value == true if true <= 40 else abs(value - true) <= 0.0125 * true + 1


def test_statistics_count_rows_turns_roles_languages_labels_and_sources():
    rows = [Row([turn("system", "Answer."), turn("user", "x" * (n % 40)), turn("assistant", ("no", "yes")[n % 4 > 0])],
                f"a:{n}", meta={"source": ("web", "book")[n % 2], "license": "MIT"}) for n in range(1, 101)]
    card = quality.statistics(iter(rows)).as_dict()
    assert (card["rows"], card["turns"]) == (100, 300)
    assert card["roles"]["user"] == {"count": 100, "characters": 1770, "min": 0, "median": 16, "p95": 37, "max": 39}
    assert (card["languages"], card["labels"]) == ({"unknown": 1.0}, {"yes": 0.75, "no": 0.25})
    assert (card["sources"], card["licenses"]) == ({"book": 50, "web": 50}, {"MIT": 100})


def test_languages_are_shares_of_answers(clean, plant):
    german = "Die Leute m\u00f6gen das, weil man dabei viel Geduld lernt und die ersten Fehler noch nicht teuer sind."
    shares = quality.statistics(plant(clean, dict.fromkeys(range(1, 21), german), whole=True)).languages
    assert shares == {"en": 0.75, "de": 0.25}


def test_one_pass_gives_what_two_give_and_no_rows_give_a_card(clean, plant):
    rows = plant(clean, {3: " \x00", 9: " <br>"})
    both = quality.survey(iter(rows))
    assert both.findings == quality.inspect(rows) != [] and both.statistics == quality.statistics(rows)
    assert quality.statistics([]).as_dict() == {"rows": 0, "turns": 0, "roles": {}, "languages": {}, "labels": {},
                                                "sources": {}, "licenses": {}}


def test_memory_grows_by_the_facts_of_a_row_and_no_more(clean):
    """Each row another question, answer, source and licence, and each with a fault."""
    def rows(n: int):
        for i in range(n):
            yield Row([turn("user", f"Question {i}?"), turn("assistant", f"Short \x00 answer {i}")], f"a:{i}",
                      meta={"source": f"https://host/{i}", "license": f"own {i}"})

    def peak(n: int) -> int:
        tracemalloc.start()
        quality.survey(rows(n))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(2000)  # libraries and full counters
    assert peak(8000) - peak(2000) < 24 * 6000  # bytes
