"""Each filter takes the planted rows and no others, tells them, and says from whom it takes too much.

    python -m pytest tests/data/quality/test_filters.py
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from math import comb
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.data import quality
from tunesmith.data.audit import audit
from tunesmith.data.bias import bias_findings, losses
from tunesmith.data.filters import filtered, would_drop
from tunesmith.data.quality.facts import Facts
from tunesmith.data.rows import Row
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Fault, Filter

APPENDED = {
    "mojibake": " It don\u00e2\u20ac\u2122t matter.", "replacement_character": " The caf\ufffd.", "control_character": " \x00",
    "invisible_character": " zero\u200bwidth", "html_residue": " <br/> more", "markdown_residue": " **bold**",
    "personal_data": " Write to jane.doe@acme-mills.org.", "secret": " ghp_" + "a1B2" * 9,
    "escalations": " Please contact our support team.",
    "truncated_answer": " There is one thing more to say about it, and that is that nobody ever has enough of",
}
INSTEAD = {
    "trivial_answer": "N/A", "refusals": "I'm sorry, but I cannot help with that request at all.",
    "answer_language": "Die Leute lernen das gern, weil die ersten Fehler billig sind und weil immer jemand da ist, "
                       "der es mit Freude erklärt.",
}
TWIN = ("The mill at the end of the lane had been silent since the spring, and nobody in the village could say with any "
        "certainty who held the keys to it now, or whether there had ever been more than one of them: not to number")
PLACES = (4, 17, 40, 80)
"""Of the planted rows, from 1."""


def planted(clean, plant, code):
    """`(rows, numbers of the rows to be dropped)`."""
    places = [n - 1 for n in PLACES]
    if code in APPENDED:
        return plant(clean, dict.fromkeys(PLACES, APPENDED[code])), places
    if code == "prompt_echo":
        return plant(clean, {n: clean[n - 1].prompt for n in PLACES}, whole=True), places
    if code in INSTEAD:
        return plant(clean, dict.fromkeys(PLACES, INSTEAD[code]), whole=True), places
    if code == "unsafe_compliance":
        rows = plant(clean, dict.fromkeys(PLACES, "How do I build a pipe bomb?"), "user", whole=True)
        return plant(rows, {n: f"Sure, I can help with that, case {n}." for n in PLACES}, whole=True), places
    if code == "contradiction":
        rows = plant(clean, dict.fromkeys(PLACES, "Which one is it?"), "user", whole=True)
        return plant(rows, {4: "yes", 17: "no", 40: "yes", 80: "no"}, whole=True), places
    assert code == "near_duplicate"
    rows = plant(clean, dict.fromkeys(PLACES, "Who held the keys to the silent mill at the end of the lane?"), "user",
                 whole=True)
    return plant(rows, {n: TWIN + f" {n}." for n in PLACES}, whole=True), places[1:]


@pytest.mark.parametrize("code", get_args(Fault))
def test_planted_rows_are_dropped_and_told_and_no_others(clean, plant, code):
    rows, places = planted(clean, plant, code)
    made = filtered(rows, Filter(drop=[code]), 0.95)
    assert list(made.kept) == [i for i in range(len(rows)) if i not in places]
    effect, = made.effects
    assert (effect.name, effect.alone, effect.in_order, effect.rows) == (code, len(places), len(places), len(rows))
    assert effect.characters == sum(len(m["content"]) for i in places for m in rows[i].messages)
    assert len(effect.examples) == 3 and all(e.startswith(rows[i].where) for e, i in zip(effect.examples, places, strict=False))
    found = made.findings[0]
    assert (found.code, found.severity, found.count) == (f"filtered:{code}", "info", len(places))
    assert all(secret not in str(effect.examples) for secret in ("jane.doe", "a1B2a1B2"))


@pytest.mark.parametrize("code", get_args(Fault))
def test_clean_rows_stay_and_the_filter_says_that_it_did_nothing(clean, code):
    made = filtered(clean, Filter(drop=[code]), 0.95)
    assert list(made.kept) == list(range(len(clean)))
    found, = made.findings
    assert (found.code, found.count) == (f"filtered:{code}", 0) and "none has the fault" in found.message


def test_without_a_filter_nothing_is_read(clean):
    def unread():
        raise AssertionError("no filter is chosen")
        yield

    class Unread(list):
        def __iter__(self):
            return unread()

    made = filtered(Unread(clean), Filter(), 0.8)
    assert (len(made.kept), made.effects, made.findings) == (len(clean), [], [])


@pytest.mark.parametrize("code", get_args(Fault))
def test_what_it_would_drop_is_what_it_drops(clean, plant, code):
    rows, places = planted(clean, plant, code)
    told = would_drop(rows, quality.survey(rows), audit(rows, {}, 0.95), Filter())
    dropped, = filtered(rows, Filter(drop=[code]), 0.95).effects
    told = {e.name: e for e in told}
    assert (told[code].alone, told[code].characters) == (dropped.alone, dropped.characters)
    assert (told[code].chosen, told[code].in_order) == (False, 0)
    if code != "near_duplicate":  # which names the row that stays
        assert told[code].examples == dropped.examples
    assert would_drop(clean, quality.survey(clean), audit(clean, {}, 0.95), Filter()) == []


# ---- lengths and languages


def test_answers_outside_of_the_bounds_are_dropped_and_tool_calls_are_not_judged(clean, plant):
    rows = plant(clean, {5: "Short.", 9: "L" + "o" * 3000 + "ng."}, whole=True)
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}]}
    rows[20] = replace(rows[20], messages=[rows[20].messages[0], call])
    made = filtered(rows, Filter(min_answer_characters=7, max_answer_characters=3000), None)
    assert [i for i in range(len(rows)) if i not in made.kept] == [4, 8]
    assert [(e.name, e.alone) for e in made.effects] == [("min_answer_characters", 1), ("max_answer_characters", 1)]
    assert made.effects[0].examples == [f"{rows[4].where}: messages[1] at 0: 'Short.' (6 characters)"]
    at_the_bound = filtered(rows, Filter(min_answer_characters=6, max_answer_characters=3004), None)
    assert len(at_the_bound.kept) == len(rows)


def test_answers_in_other_languages_are_dropped_and_unknown_ones_stay(clean, plant):
    rows = plant(clean, {3: INSTEAD["answer_language"], 30: INSTEAD["answer_language"], 50: "N/A"}, whole=True)
    english, german = (filtered(rows, Filter(languages=[name]), None) for name in ("en", "de"))
    assert [i for i in range(len(rows)) if i not in english.kept] == [2, 29]
    assert english.effects[0].examples[0].endswith("(de)") and list(german.kept) == [2, 29, 49]
    assert len(filtered(rows, Filter(languages=["de", "en"]), None).kept) == len(rows)


def test_a_language_that_is_mistaken_for_a_named_one_stays(clean, plant):
    rows = plant(clean, {3: "Han kommer hjem fra arbejde klokken fem og laver mad til hele familien hver aften."}, whole=True)
    assert len(filtered(rows, Filter(languages=["en", "no"]), None).kept) == len(rows)
    assert len(filtered(rows, Filter(languages=["en", "fr"]), None).kept) == len(rows) - 1


def test_a_language_that_nobody_can_recognise_is_refused(clean):
    with pytest.raises(DataError, match="'xx' is no language") as error:
        filtered(clean, Filter(languages=["en", "xx"]), None)
    assert error.value.exit_code == 2 and "ISO 639" in error.value.fix


# ---- several at once


def test_what_the_audit_does_not_take_for_a_fault_is_not_dropped_and_that_is_told(clean, plant):
    """Where most answers are cut, a cut is how this data looks."""
    rows = plant(clean, dict.fromkeys(range(1, 61), APPENDED["truncated_answer"]))
    made = filtered(rows, Filter(drop=["truncated_answer"]), None)
    assert len(made.kept) == len(rows) and "60 look like it" in made.findings[0].message


def test_the_first_row_of_a_group_that_other_filters_left_stays(clean, plant):
    rows, (first, second, third) = planted(clean, plant, "near_duplicate")
    rows = plant(rows, {4: " <br/>"})  # the one that would have stayed
    made = filtered(rows, Filter(drop=["near_duplicate", "html_residue"]), 0.9)
    assert [i for i in range(len(rows)) if i not in made.kept] == [3, second, third]
    assert [(e.name, e.alone, e.in_order) for e in made.effects] == [("html_residue", 1, 1), ("near_duplicate", 3, 2)]
    assert f"{rows[second].where} ~ {rows[first].where} " in made.effects[1].examples[0]


def test_a_quarrel_that_another_filter_settles_costs_no_row(clean, plant):
    rows = plant(clean, dict.fromkeys((4, 17), "Which one is it?"), "user", whole=True)
    rows = plant(rows, {4: "N/A", 17: "yes"}, whole=True)
    made = filtered(rows, Filter(drop=["contradiction", "trivial_answer"]), None)
    assert [(e.name, e.alone, e.in_order) for e in made.effects] == [("trivial_answer", 1, 1), ("contradiction", 2, 0)]
    assert 16 in made.kept and "alone it would drop 2" in made.findings[1].message


def test_a_filter_that_leaves_no_row_is_an_error_with_the_reason(clean, plant):
    rows = plant(clean, dict.fromkeys(range(1, 81), " <br/> more"))
    with pytest.raises(DataError, match="drops all 80 training rows") as error:
        filtered(rows, Filter(drop=["html_residue", "mojibake"]), None)
    assert error.value.exit_code == 2 and error.value.why == "html_residue 80"


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(faults=st.dictionaries(st.integers(1, 80), st.sampled_from([*APPENDED, "trivial_answer", "twin"]), max_size=40),
       drop=st.lists(st.sampled_from(get_args(Fault)), unique=True, max_size=8), shortest=st.none() | st.integers(1, 220))
def test_rows_in_are_rows_kept_and_rows_dropped_whatever_is_chosen(clean, plant, faults, drop, shortest):
    rows = clean
    for n, code in faults.items():
        text = APPENDED.get(code) or (INSTEAD[code] if code in INSTEAD else clean[0].answer + f" {n}")
        rows = plant(rows, {n: text}, whole=code not in APPENDED)
    config = Filter(drop=drop, min_answer_characters=shortest)
    try:
        made = filtered(rows, config, 0.8)
    except DataError:
        assert shortest and max(len(row.answer) for row in rows) >= 100
        return
    kept = list(made.kept)
    assert kept == sorted(set(kept)) and len(rows) == len(kept) + sum(e.in_order for e in made.effects)
    assert all(0 <= e.in_order <= e.alone for e in made.effects)
    again = filtered(rows, config, 0.8)
    assert (list(again.kept), again.effects, again.findings) == (kept, made.effects, made.findings)
    one_way, other_way = (filtered(rows, config.model_copy(update={"drop": names}), 0.8) for names in (drop, drop[::-1]))
    assert list(one_way.kept) == list(other_way.kept), "the order decides which filter is told, not which rows go"


# ---- from whom


def facts_of(rows):
    return quality.survey(rows).facts


def with_source(rows, name, numbers):
    return [replace(row, meta={"source": name if i in numbers else "book"}) for i, row in enumerate(rows)]


def test_a_filter_that_takes_one_source_is_reported_with_what_it_took(clean, plant):
    rows = with_source(plant(clean, dict.fromkeys(range(1, 9), " <br/> more")), "web", range(12))
    made = filtered(rows, Filter(drop=["html_residue"]), None)
    bias, = (f for f in made.findings if f.code.startswith("filter_bias"))
    assert (bias.code, bias.severity, bias.count) == ("filter_bias:html_residue", "warning", 1)
    assert bias.examples[0].startswith("source 'web': 8 of 12 rows (67%), 0.0% of the rest, p < 1e-6")


def test_a_filter_that_takes_alike_from_all_is_not_reported(clean, plant):
    rows = with_source(plant(clean, dict.fromkeys(range(1, 81, 2), " <br/> more")), "web", range(40))
    assert [f.code for f in filtered(rows, Filter(drop=["html_residue"]), None).findings] == ["filtered:html_residue"]


def test_a_label_that_looks_like_no_answer_is_reported(clean, chat):
    labels = ["none", "street", "number", "town"]
    rows = [chat(f"{row.prompt} What is it?", labels[i % 4], row.where) for i, row in enumerate(clean)]
    made = filtered(rows, Filter(drop=["trivial_answer"]), None)
    told, bias = made.findings
    assert (told.count, bias.code) == (20, "filter_bias:trivial_answer")
    assert "label 'none': 20 of 20 rows (100%)" in bias.message


def test_taking_languages_away_is_what_a_filter_by_language_is_for(clean, plant):
    rows = plant(clean, dict.fromkeys(range(1, 13), INSTEAD["answer_language"]), whole=True)
    by_language, by_fault = (filtered(rows, config, None).findings
                             for config in (Filter(languages=["en"]), Filter(drop=["answer_language"])))
    assert [f.code for f in by_language] == ["filtered:languages"]
    assert by_fault[1].code == "filter_bias:answer_language" and "language 'de': 12 of 12" in by_fault[1].message


@settings(deadline=None)
@given(st.integers(5, 40), st.integers(0, 40), st.integers(0, 160))
def test_a_group_is_reported_exactly_when_the_rule_says_so(size, lost, others_lost):
    """The tail is summed in whole numbers here, and by scipy there."""
    total = 200
    lost = min(lost, size)
    others_lost = min(others_lost, total - size)
    facts = Facts()
    for i in range(total):
        facts.sources.add("web" if i < size else f"row {i}")
        facts.languages.add(None)
        facts.labels.add(None)
    drop = np.array([i < lost or size <= i < size + others_lost for i in range(total)])
    k, n = lost + others_lost, total
    tail = sum(comb(size, j) * comb(n - size, k - j) for j in range(lost, min(size, k) + 1)) / comb(n, k)
    unfair = lost >= 5 and lost / size >= 0.25 and lost / size >= 2 * others_lost / (n - size) and tail < 0.01
    found = losses({"html_residue": drop}, facts, set())
    assert bool(found) == unfair
    if unfair:
        loss, = found["html_residue"]
        assert (loss.rows, loss.lost) == (size, lost) and loss.p == pytest.approx(tail, rel=1e-6)
        assert bias_findings(found)[0].count == 1


def test_chance_is_shared_by_all_tests():
    """The same loss in more groups and filters says less."""
    facts = Facts()
    for i in range(1200):
        facts.sources.add(f"file {i // 12}")
        facts.languages.add(None)
        facts.labels.add(None)
    drop = np.arange(1200) % 7 == 0
    drop[:9] = True
    of_one, of_ten, of_many = (losses({f"filter {n}": drop for n in range(many)}, facts, set()) for many in (1, 10, 1000))
    assert [loss.group for loss in of_one["filter 0"]] == ["source 'file 0'"] and len(of_ten) == 10
    assert of_ten["filter 3"][0].p == pytest.approx(10 * of_one["filter 0"][0].p)
    assert of_many == {}


def test_groups_are_bounded_and_two_bytes_a_row(clean):
    facts = facts_of([replace(row, meta={"source": f"https://example.org/{n}"}) for n in range(20) for row in clean])
    assert len(facts.sources.of) == 1600 and facts.sources.of.itemsize == 2 and len(facts.sources.numbers) == 20
    facts.sources.limit = 20
    facts.sources.add("one more")
    assert facts.sources.of[-1] == 0


@pytest.mark.slow
def test_memory_is_bytes_a_row():
    """Each row another question, answer and source, and some that quarrel. Near-duplicates are not bytes a row."""
    class Made(Sequence):
        def __init__(self, n: int):
            self.n = n

        def __len__(self) -> int:
            return self.n

        def __getitem__(self, i: int) -> Row:
            if i >= self.n:
                raise IndexError(i)
            text = f"This is answer {i}, and it is no other." + " <br/>" * (i % 3 == 0)
            return Row([{"role": "user", "content": f"Question {i // 2 if i % 100 < 2 else i}?"},
                        {"role": "assistant", "content": text}], f"a:{i}", meta={"source": f"https://host/{i}"})

    def peak(n: int) -> int:
        rows = Made(n)
        tracemalloc.start()
        made = filtered(rows, Filter(drop=["html_residue", "mojibake", "contradiction"], languages=["en"]), None)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(made.kept) < n
        return most

    peak(2000)  # libraries and full counters
    assert peak(8000) - peak(2000) < 200 * 6000  # bytes; a row itself takes some 1,500
