"""Planted faults are found, each with its place; a clean control stays clean.

    python -m pytest tests/data/test_audit.py
"""

from __future__ import annotations

import pytest

from tunesmith.data.audit import FEW_ROWS, audit, drop_exact_duplicates, leaked_rows

STREETS = ("Oak", "Elm", "Washington", "Cottage Grove", "Stone Hedge", "Bever", "Lincoln", "Forest Hill")
LONG = ("The mill at the end of the lane had been silent since the spring, and nobody in the village could say with any "
        "certainty who held the keys to it now.")


@pytest.fixture(scope="module")
def clean(chat):
    """60 rows that share their system prompt, the form of their questions, and the form of their answers."""
    return [chat(f"Take apart this address line: {n * 97 + 11} {STREETS[n % 8]} {('Lane', 'Court', 'Avenue')[n % 3]}",
                 f'{{"number": "{n * 97 + 11}", "street": "{STREETS[n % 8]}"}}', f"train.jsonl:{n + 1}", "Answer with JSON.")
            for n in range(60)]


@pytest.fixture(scope="module")
def unseen(chat):
    return [chat(f"Take apart this address line: {n * 1013 + 20001} {STREETS[n]} Bvd", f'{{"number": "{n * 1013 + 20001}"}}',
                 f"test.jsonl:{n + 1}", "Answer with JSON.") for n in range(8)]


def codes(findings):
    return {f.code: f.count for f in findings}


def test_clean_data_has_no_finding(clean, unseen):
    assert audit(clean, {"test": unseen}, near=0.8) == []


@pytest.mark.parametrize("change, kind", [
    (lambda t: t, "exact"), (str.upper, "exact"), (lambda t: t.replace(",", " -") + "!", "exact"),
    (lambda t: f"  {t.replace(' ', '  ')}\n", "exact"),
    (lambda t: t.replace("village", "villagé"), "near"), (lambda t: t[:60] + t[61:], "near"), (lambda t: "And " + t, "near"),
], ids=["itself", "case", "punctuation", "white space", "one character", "one character less", "one word more"])
def test_planted_leak_is_found_with_both_places(clean, unseen, chat, change, kind):
    planted = chat(change(LONG), change("Who held the keys to the silent mill?"), "test.jsonl:9")
    source = chat(LONG, "Who held the keys to the silent mill?", "train.jsonl:61")
    leak, = audit([*clean, source], {"test": [*unseen, planted]}, near=0.7)
    assert (leak.code, leak.severity, leak.count) == (f"leak_{kind}:test", "error", 1)
    place, = leak.examples
    assert place.startswith("test.jsonl:9 " + ("=" if kind == "exact" else "~") + " train.jsonl:61")
    assert "1 of 9 rows of 'test'" in leak.message and leak.fix


def test_same_question_or_same_answer_alone_is_no_leak(clean, chat):
    row = clean[0]
    asked_again = chat(row.prompt, "I do not know.", "test.jsonl:1")
    told_again = chat("Where does the mayor live?", row.answer, "test.jsonl:2")
    assert audit(clean, {"test": [asked_again, told_again]}, near=0.8) == []


def test_without_near_search_exact_leaks_are_still_found(clean):
    assert codes(audit(clean, {"test": clean[:3]}, near=None)) == {"leak_exact:test": 3}


def test_each_held_out_set_is_counted_for_itself(clean, unseen):
    findings = audit(clean, {"one": [*unseen, clean[5]], "two": clean[:4], "three": unseen}, near=0.8)
    assert codes(findings) == {"leak_exact:one": 1, "leak_exact:two": 4}
    counted = [f.as_dict() for f in findings]
    assert [leaked_rows(counted, name) for name in ("one", "two", "three")] == [1, 4, 0]


def test_leaks_beyond_the_first_examples_are_counted(clean):
    leak, = audit(clean, {"test": clean}, near=None)
    assert leak.count == 60 and len(leak.examples) == 3


def test_near_duplicates_in_train_are_told_and_kept(clean, chat):
    again = chat(clean[7].prompt + ", Iowa", clean[7].answer, "train.jsonl:61", "Answer with JSON.")
    found, = audit([*clean, again], {}, near=0.8)
    assert (found.code, found.severity, found.count) == ("near_duplicate", "info", 1)
    assert found.examples[0].startswith("train.jsonl:61 ~ train.jsonl:8 (0.")


def test_contradiction_is_found_and_another_system_prompt_or_free_text_is_none(clean, chat):
    second = chat(clean[3].prompt.upper(), '{"number": "9"}', "train.jsonl:61", "Answer with JSON.")
    other = chat(clean[4].prompt, "Number 9.", "train.jsonl:62", "Answer in words.")
    free = [chat("Go on.", f"{STREETS[n]} it was.", f"train.jsonl:{70 + n}") for n in range(5)]
    found, = audit([*clean, second, other, *free], {}, near=None)
    assert (found.code, found.count) == ("contradiction", 1)
    assert "train.jsonl:4" in found.examples[0] and "train.jsonl:61" in found.examples[0]


def test_few_rows_are_told(clean):
    assert codes(audit(clean[: FEW_ROWS - 1], {}, near=0.8)) == {"few_rows": FEW_ROWS - 1}
    assert audit(clean[:FEW_ROWS], {}, near=0.8) == []


def test_exact_duplicates_are_dropped_counted_and_named(clean, chat):
    again = [chat(clean[n].prompt.upper(), clean[n].answer, f"train.jsonl:{61 + n}", "Other.") for n in range(4)]
    kept, findings = drop_exact_duplicates([*clean, *again])
    assert kept == list(range(60))
    assert (findings[0].count, findings[0].severity) == (4, "warning")
    assert findings[0].examples == [f"train.jsonl:{61 + n} = train.jsonl:{1 + n}" for n in range(3)]
    assert drop_exact_duplicates(clean) == (kept, [])
