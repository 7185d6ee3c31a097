"""Planted faults are found, each with its place; a clean control stays clean.

    python -m pytest tests/data/test_audit.py
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data import audit as auditing
from tunesmith.data.audit import drop_exact_duplicates, quarrels
from tunesmith.data.leaks import leaked_rows
from tunesmith.data.similar import fold

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


def audit(*rows, **settings):
    return auditing.audit(*rows, **settings).findings


def codes(findings):
    return {f.code: f.count for f in findings}


def test_clean_data_has_no_finding(clean, unseen):
    assert audit(clean, {"test": unseen}, near=0.8) == []


@pytest.mark.parametrize("change, kind", [
    (lambda t: t, "exact"), (str.upper, "normalised"), (lambda t: t.replace(",", " -") + "!", "normalised"),
    (lambda t: f"  {t.replace(' ', '  ')}\n", "normalised"),
    (lambda t: t.replace("village", "villagé"), "near"), (lambda t: t[:60] + t[61:], "near"), (lambda t: "And " + t, "near"),
], ids=["itself", "case", "punctuation", "white space", "one character", "one character less", "one word more"])
def test_planted_leak_is_found_with_both_places(clean, unseen, chat, change, kind):
    planted = chat(change(LONG), change("Who held the keys to the silent mill?"), "test.jsonl:9")
    source = chat(LONG, "Who held the keys to the silent mill?", "train.jsonl:61")
    leak, = audit([*clean, source], {"test": [*unseen, planted]}, near=0.7)
    assert (leak.code, leak.severity, leak.count) == (f"leak_{kind}:test", "error", 1)
    place, = leak.examples
    assert place.startswith("test.jsonl:9 " + ("~" if kind == "near" else "=") + " train.jsonl:61 ")
    assert "1 of 9 rows of 'test'" in leak.message and leak.fix


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


def test_near_duplicates_in_train_are_told_in_groups_and_kept(clean, chat):
    ask = "Take apart this address line: "
    again = [chat(f"{ask}{LONG}{more}", "none", f"train.jsonl:{n}")
             for n, more in enumerate(("", " Iowa", " Iowa USA", " IA"), 61)]
    other = [chat(f"{ask}{more}{LONG.upper()[:90]}", "no", f"train.jsonl:{n}") for n, more in ((65, ""), (66, "And "))]
    found, = audit([*clean, *again, *other], {}, near=0.8)
    assert (found.code, found.severity, found.count) == ("near_duplicate", "info", 4)
    assert "2 groups, the largest of 4" in found.message
    large, small = (re.sub(r"\(0\.\d\d\)", "(s)", example) for example in found.examples)
    assert large == "train.jsonl:61 ~ train.jsonl:62 (s) ~ train.jsonl:63 (s), group of 4"
    assert small == "train.jsonl:65 ~ train.jsonl:66 (s), group of 2"


PASSAGES = ["The mill stood silent at the end of the lane, and the water ran past it as though nobody had ever owned either.",
            "She folded the letter twice, put it under the clock, and went out to see whether the hens had been fed at all."]


@pytest.mark.parametrize("answers", [
    ("positive", "negative"), ("4", "5", "6"), ('{"number": "9"}', '{"number": "10"}'), ("Des Moines", "Iowa City."),
], ids=["labels", "numbers", "JSON", "names"])
def test_closed_answers_that_differ_contradict(clean, chat, answers):
    quarrel = [chat("What does this line say?", answer, f"train.jsonl:{61 + n}") for n, answer in enumerate(answers)]
    found, = audit([*clean, *quarrel], {}, near=None)
    assert (found.code, found.count) == ("contradiction", 1)
    assert all(f"train.jsonl:{61 + n} " in found.examples[0] for n in range(len(answers)))


@pytest.mark.parametrize("question, answers", [
    ("Continue the narrative.", PASSAGES), ("Continue the narrative.", [*PASSAGES, PASSAGES[0][::-1]]),
    ("What is the capital of Iowa?", ["Des Moines.", f"{PASSAGES[0]} Des Moines, of course."]),
    ("Name a street.", [f"{street} Street" for street in STREETS]),
    ("What does this line say?", ["positive", "Positive."]),
], ids=["two passages", "three passages", "short and long", "open list", "the same but for form"])
def test_free_text_under_one_prompt_does_not_contradict(clean, chat, question, answers):
    assert audit([*clean, *(chat(question, a, f"train.jsonl:{61 + n}") for n, a in enumerate(answers))], {}, near=None) == []


def test_noisy_labels_contradict_however_many_there_are(clean, chat):
    labels = ("one star", "two stars", "three stars", "four stars", "five stars")
    noisy = [chat("It broke on the first day.", label, "train.jsonl:61") for label in labels]
    others = [chat(f"Review number {n}.", label, "train.jsonl:70") for n, label in enumerate(labels)]
    assert codes(audit([*clean, *noisy, *others], {}, near=None)) == {"contradiction": 1}


def quarrels_by_hand(rows):
    """What `quarrels` promises, with lists of Python and no hashes."""
    groups = {}
    for i, row in enumerate(rows):
        groups.setdefault(fold(row.prompt), {}).setdefault(fold(row.answer), []).append(i)
    everywhere = Counter(answer for answers in groups.values() for answer in answers)
    return [list(answers.values()) for answers in groups.values() if len(answers) > 1
            and all(len(answer.split()) <= 8 for answer in answers)
            and (len(answers) <= 3 or all(everywhere[answer] > 1 for answer in answers))]


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["yes", "Yes.", "no", "maybe", "never", "four", PASSAGES[0]])),
                max_size=24))
def test_quarrels_are_those_found_by_hand_with_the_rows_of_each_answer(chat, said):
    rows = [chat(f"Question {n}?", answer, f"a.jsonl:{i}") for i, (n, answer) in enumerate(said)]
    assert quarrels(rows) == quarrels_by_hand(rows)


def test_another_system_prompt_asks_another_question(clean, chat):
    assert audit([*clean, chat(clean[4].prompt, "Number 9.", "train.jsonl:62", "Answer in words.")], {}, near=None) == []


def test_exact_duplicates_are_dropped_counted_and_named(clean, chat):
    again = [chat(clean[n].prompt.upper(), clean[n].answer, f"train.jsonl:{61 + n}", "Answer with JSON!") for n in range(4)]
    numbers, (found,) = drop_exact_duplicates([*clean, *again])
    assert numbers == list(range(60))
    assert (found.code, found.count, found.severity) == ("exact_duplicate", 4, "warning")
    assert found.examples == [f"train.jsonl:{61 + n} = train.jsonl:{1 + n}" for n in range(3)]
    assert drop_exact_duplicates(clean) == (numbers, [])


def test_the_same_row_under_another_system_prompt_or_other_tools_is_told_and_kept(clean, chat):
    other = chat(clean[0].prompt, clean[0].answer, "train.jsonl:61", "Answer with YAML.")
    none = chat(clean[1].prompt, clean[1].answer, "train.jsonl:62")
    armed = replace(clean[2], where="train.jsonl:63", tools=[{"type": "function", "function": {"name": "look"}}])
    again = replace(armed, where="train.jsonl:64")
    numbers, (dropped, kept) = drop_exact_duplicates([*clean, other, none, armed, again])
    assert numbers == list(range(63))
    assert (dropped.code, dropped.examples) == ("exact_duplicate", ["train.jsonl:64 = train.jsonl:63"])
    assert (kept.code, kept.severity, kept.count) == ("duplicate_other_system", "info", 3)
    assert kept.examples == [f"train.jsonl:{61 + n} ~ train.jsonl:{1 + n}" for n in range(3)]
