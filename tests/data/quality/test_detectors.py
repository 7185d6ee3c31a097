"""Planted faults in the text of rows are counted and named with their places; clean rows have no finding.

    python -m pytest tests/data/quality/test_detectors.py
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tunesmith.data import quality
from tunesmith.data.rows import Row

PLACES = (4, 17, 33, 60, 79)


def places(finding) -> list[int]:
    return [int(example.split(":")[1]) for example in finding.examples]


def test_clean_rows_have_no_finding(clean, found):
    assert found(clean) == {}


@pytest.mark.parametrize("code, fault, role", [
    ("mojibake", " It don\u00e2\u20ac\u2122t matter.", "assistant"),
    ("mojibake", " A caf\u00c3\u00a9 nearby.", "user"),
    ("replacement_character", " The caf\ufffd is open.", "assistant"),
    ("control_character", " See\x00 this.", "user"),
    ("control_character", " \x1b[31mRed\x1b[0m text.", "assistant"),
    ("invisible_character", " A zero\u200bwidth space.", "assistant"),
    ("invisible_character", " A soft\u00adhyphen.", "user"),
    ("invisible_character", " Hidden\U000e0041\U000e0042 words.", "user"),
    ("invisible_character", " Turned \u202etext.", "assistant"),
    ("html_residue", " <br/> And more.", "assistant"),
    ("html_residue", ' <a href="/x">there</a>.', "user"),
    ("html_residue", " Bed &amp; breakfast.", "assistant"),
    ("html_residue", " Two&nbsp;words.", "user"),
])
def test_planted_damage_is_counted_and_shown(clean, plant, found, code, fault, role):
    findings = found(plant(clean, dict.fromkeys(PLACES, fault), role))
    assert list(findings) == [code]
    finding = findings[code]
    assert (finding.severity, finding.count, places(finding)) == ("warning", 5, [4, 17, 33]) and finding.fix
    turn = 0 if role == "user" else 1
    assert all(f": messages[{turn}] at " in example for example in finding.examples)


def test_the_offset_is_the_place_of_the_piece(clean, plant, found):
    rows = plant(clean, {9: " <br/>"}, "user")
    example, = found(rows)["html_residue"].examples
    at = int(example.split(" at ")[1].split(":")[0])
    assert rows[8].messages[0]["content"][at:at + 5] == "<br/>" and example.endswith("'<br/>'")


@pytest.mark.parametrize("text", [
    " Don\u2019t \u2014 \u201cplease\u201d \u2026 na\u00efve caf\u00e9, \u00a35, 20 \u20ac, 98\u00b017\u2032W.",
    " \u0160\u00eer Ha\u0161\u0160\u00eer\u00eem.",
    " Family: \U0001f468\u200d\U0001f469\u200d\U0001f467, England: "
    "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f.",
    " \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \u200f(x)\u200f.", " \u0915\u094d\u200d\u0937.",
    " \u0e20\u0e32\u0e29\u0e32\u200b\u0e44\u0e17\u0e22.", "\n\tTabs and lines.\r\n", " If a < b and c > d, then AT&T; wins.",
    " Write <name> here, <think>, R&D.",
], ids=["typography", "transliteration", "emoji", "Persian", "Hindi", "Thai", "white space", "comparisons", "other brackets"])
def test_sound_text_of_many_kinds_is_no_damage(clean, plant, found, text):
    assert found(plant(clean, dict.fromkeys(PLACES, text))) == {}


def test_rows_about_code_may_have_tags_and_entities(clean, plant, found):
    rows = plant(clean, dict.fromkeys(PLACES, " Which HTML tag starts a new line?"), "user")
    assert "html_residue" not in found(plant(rows, dict.fromkeys(PLACES, " It is <br>, and &amp; is an ampersand.")))


def test_markdown_in_a_few_answers_is_told_and_in_most_it_is_the_format(clean, plant, found):
    few = found(plant(clean, dict.fromkeys(PLACES, " **Really** so.")))["markdown_residue"]
    assert (few.severity, few.count, places(few)) == ("info", 5, [4, 17, 33])
    assert found(plant(clean, dict.fromkeys(range(1, 61), " **Really** so."))) == {}


GERMAN = "Die Leute m\u00f6gen das, weil man dabei viel Geduld lernt und die ersten Fehler noch nicht teuer sind."
FRENCH = "Les gens aiment cela parce que les premi\u00e8res erreurs ne co\u00fbtent pas cher et se r\u00e9parent facilement."


def test_answers_in_another_language_stand_out(clean, plant, found):
    findings = found(plant(clean, {4: GERMAN, 17: GERMAN, 60: FRENCH}, whole=True))
    assert set(findings) == {"minority_language", "answer_language"}
    assert findings["minority_language"].count == findings["answer_language"].count == 3
    assert "de 2" in findings["minority_language"].message and "77 in en" in findings["minority_language"].message
    assert places(findings["answer_language"]) == [4, 17, 60]


def test_an_answer_in_the_language_that_was_asked_for_is_right(clean, plant, found):
    rows = plant(clean, {4: " Answer in German.", 17: " Translate it."}, "user")
    assert found(plant(rows, {4: GERMAN, 17: FRENCH}, whole=True)) == {}


def test_two_languages_in_large_shares_are_no_minority(clean, plant, found):
    both = {n: GERMAN + f" Das war Beispiel {n}." for n in range(1, 41)}
    rows = plant(plant(clean, both, whole=True), dict.fromkeys(range(1, 41), "Warum lernen so viele Menschen gern etwas "
                                                                              "\u00fcber alte Landkarten?"), "user", whole=True)
    assert found(rows) == {}


@pytest.mark.parametrize("text, language", [
    (GERMAN, "de"), (FRENCH, "fr"), ("The mill at the end of the lane had been silent since the spring.", "en"),
    ("\u4eca\u5929\u5929\u6c14\u5f88\u597d\uff0c\u6211\u4eec\u53bb\u516c\u56ed\u91cc\u6563\u6b65\u5427\u3002", "zh"),
    ("Yes.", "unknown"), ("Positive", "unknown"),
    ('{"number": "4505", "street": "Prairieburg Road"}', "unknown"),
    ("4505 Prairieburg Rd Anamosa IA 52205", "unknown"), ("", "unknown"),
    ("Kxqwz blorpt gnarfle wibbsy trunkel smoofd varnik", "unknown"),
    ("def add(first, second): return first + second", "unknown"),
])
def test_language_is_known_or_said_to_be_unknown(text, language):
    from tunesmith.data.quality.language import language_of

    assert language_of(text) == language


@pytest.mark.parametrize("answer", ["...", "N/A", "None", "TODO", " - ", "null", "Your answer here.", "\u2026", "?!"])
def test_answers_that_say_nothing_are_found(clean, plant, found, answer):
    finding = found(plant(clean, dict.fromkeys(PLACES, answer), whole=True))["trivial_answer"]
    assert (finding.severity, finding.count, places(finding)) == ("warning", 5, [4, 17, 33])


@pytest.mark.parametrize("answer", ["42", "No.", "C", "\U0001f44d", "Nonetheless, yes.", "\u662f\u3002", "$5"])
def test_short_answers_that_say_something_are_left_alone(clean, plant, found, answer):
    assert "trivial_answer" not in found(plant(clean, dict.fromkeys(PLACES, answer), whole=True))


def test_a_prompt_over_again_is_found_and_a_greeting_back_is_not(clean, plant, found):
    rows = plant(clean, {n: clean[n - 1].prompt.upper() + "!" for n in PLACES}, whole=True)
    rows = plant(plant(rows, {7: "Hello!"}, "user", whole=True), {7: "Hello."}, whole=True)
    finding = found(rows)["prompt_echo"]
    assert (finding.count, places(finding)) == (5, [4, 17, 33])


def test_answers_that_end_in_mid_sentence_stand_out(clean, plant, found):
    cut = {n: clean[n - 1].answer[:-12] + ("," if n == 4 else "") for n in PLACES}
    finding = found(plant(clean, cut, whole=True))["truncated_answer"]
    assert (finding.count, places(finding)) == (5, [4, 17, 33]) and "5 of 80" in finding.message


def test_lists_signatures_code_and_a_set_without_marks_are_not_cut(clean, plant, found):
    ends = {4: "\n1. flour and water\n2. a warm place, and time for the dough to rise until it has doubled in size",
            17: "\nYours sincerely,\nAnna", 33: "\n```\nprint(1)\n```",
            60: " It is said \u201cso it is\u201d \u2013 Anna Miller"}
    assert found(plant(clean, ends)) == {}
    assert found(plant(clean, {n: clean[n - 1].answer[:-1] for n in range(1, 81)}, whole=True)) == {}


SORRY, HANDED = "I\u2019m sorry, this is out of scope.", "I will connect you with a human agent now."


@pytest.mark.parametrize("rows, severity", [(8, "info"), (9, "warning")])
def test_a_large_share_of_refusals_is_a_warning(clean, plant, found, rows, severity):
    finding = found(plant(clean, dict.fromkeys(range(1, rows + 1), SORRY), whole=True))["refusals"]
    assert (finding.severity, finding.count) == (severity, rows) and f"{rows / 80:.1%}" in finding.message


@pytest.mark.parametrize("rows, severity", [(20, "info"), (21, "warning")])
def test_a_large_share_of_hand_overs_is_a_warning(clean, plant, found, rows, severity):
    finding = found(plant(clean, dict.fromkeys(range(1, rows + 1), HANDED), whole=True))["escalations"]
    assert (finding.severity, finding.count) == (severity, rows)


def labelled(clean, counts: dict[str, int]):
    answers = [label for label, n in counts.items() for _ in range(n)]
    return [replace(row, messages=[row.messages[0], {"role": "assistant", "content": label}])
            for row, label in zip(clean, answers, strict=True)]


def test_label_shares_are_told_and_a_large_one_is_a_warning(clean, found):
    even = found(labelled(clean, {"good": 40, "bad": 40}))
    assert set(even) == {"labels"} and even["labels"].severity == "info" and "'good' 50.0%" in even["labels"].message
    assert set(found(labelled(clean, {"good": 56, "bad": 24}))) == {"labels"}
    uneven = found(labelled(clean, {"good": 57, "bad": 23}))
    assert set(uneven) == {"label_imbalance"} and uneven["label_imbalance"].severity == "warning"
    assert set(found(labelled(clean, {"good": 80}))) == {"label_imbalance"}


def test_short_free_text_is_no_label(clean, found):
    rows = labelled(clean, {f"Answer {n}": 1 for n in range(70)} | {"The same": 10})
    assert found(rows) == {} and quality.statistics(rows).labels == {}


def test_rows_without_licence_or_source_are_found_when_others_have_one(clean, found):
    told = {"license": "Apache-2.0", "source": "web"}
    rows = [replace(row, meta={} if n in PLACES else told) for n, row in enumerate(clean, 1)]
    findings = found(rows)
    assert set(findings) == {"license_missing", "source_missing"}
    assert all(f.severity == "warning" and f.count == 5 and places(f) == [4, 17, 33] for f in findings.values())
    assert found([replace(row, meta={"author": "Anna"}) for row in clean]) == {}


def test_non_commercial_and_unknown_licences_are_listed(clean, found):
    names = ("MIT", "CC-BY-NC-4.0", "CC BY 4.0", "unknown", "research only", "other", "Public Domain", "cc-by-nc-sa")
    findings = found([replace(row, meta={"licence": names[n % 8]}) for n, row in enumerate(clean)])
    assert {code: f.count for code, f in findings.items()} == {"license_non_commercial": 30, "license_unknown": 20}
    assert all(f.severity == "info" for f in findings.values())


@pytest.mark.parametrize("rows, severity, said", [
    (1, "warning", "less than 20%"), (9, "warning", "less than 20%"), (10, "warning", "20-40%"), (49, "warning", "20-40%"),
    (50, "info", "40-60%"), (99, "info", "40-60%"), (100, "info", "60-80%"), (499, "info", "60-80%")])
def test_size_advice_is_an_expectation_and_says_so(rows, severity, said):
    finding = quality.size_advice(rows)
    assert (finding.code, finding.severity, finding.count) == ("few_rows", severity, rows)
    assert said in finding.message and "expectation, not a measurement" in finding.message and quality.size_advice(500) is None


def test_a_tool_call_is_searched_and_its_results_may_have_tags(clean, found):
    call = {"type": "function", "function": {"name": "mail", "arguments": {"to": "jane.roe@gmail.com"}}}
    row = Row([{"role": "user", "content": "Write to her."}, {"role": "assistant", "content": "", "tool_calls": [call]},
               {"role": "tool", "content": "<p>sent</p>"}, {"role": "assistant", "content": "Done."}], "calls.jsonl:1")
    findings = found([*clean, row])
    assert set(findings) == {"personal_data:email_address"}
    assert findings["personal_data:email_address"].examples[0].startswith("calls.jsonl:1: messages[1].tool_calls at ")


def test_rows_are_read_once_and_only_the_first_examples_are_kept(clean, plant, found):
    rows = plant(clean, dict.fromkeys(range(1, 81), " \x00"))
    finding = found(row for row in rows)["control_character"]
    assert (finding.count, places(finding)) == (80, [1, 2, 3])


def test_the_worst_comes_first_and_no_rows_give_no_finding(clean, plant):
    rows = plant(clean, {3: " **Bold** it is.", 5: " \x00"})
    assert [f.code for f in quality.inspect(rows)] == ["control_character", "markdown_residue"]
    assert quality.inspect([]) == []


def test_a_row_that_ends_with_a_question_is_searched_and_has_no_answer(clean, found):
    asked = Row([{"role": "user", "content": "Bed &amp; breakfast?"}], "asked.jsonl:1")
    assert {code: f.count for code, f in found([*clean, asked]).items()} == {"html_residue": 1}
