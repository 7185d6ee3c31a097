"""Planted leaks of every kind are found, each with its evidence; boilerplate, labels and clean data raise no alarm.

    python -m pytest tests/data/test_leaks.py
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.leaks import PARTIAL, REFUSING, find_leaks, leaked_rows
from tunesmith.data.rows import Row
from tunesmith.data.similar import Index

ADDRESSES = Path(__file__).parents[2] / "examples" / "addresses" / "data"
NOUNS = ("mill", "lane", "village", "letter", "clock", "harbour", "orchard", "winter", "soldier", "market", "river", "bell",
         "candle", "shepherd", "ledger", "window", "garden", "stranger", "bridge", "chapel", "kettle", "saddle", "lantern",
         "quarry")
QUESTION = ("The mill at the end of the lane had been silent since the spring of the twelfth year, and nobody in the "
            "village, not even the 1,300 men who once worked there, could say who held the keys.")
ANSWER = "Old Marten held the keys, and he had thrown them into the river."


def prose(n, words=25):
    chance = random.Random(n)
    return " ".join(chance.choice(NOUNS) for _ in range(words))


@pytest.fixture(scope="module")
def others(chat):
    """100 training rows of prose and 20 held-out ones, from the same words."""
    rows = [chat(f"{prose(n)}?", f"{prose(1000 + n, 12)}.", f"train.jsonl:{n + 1}", "Be brief.") for n in range(100)]
    return rows, [chat(f"{prose(5000 + n)}?", f"{prose(6000 + n, 12)}.", f"test.jsonl:{n + 1}", "Be brief.") for n in range(20)]


def leaks(train, test, near=0.8):
    return find_leaks(train, {"test": test}, Index(train, near) if near else None)


def codes(findings):
    return {f.code: f.count for f in findings}


def shuffled(text):
    words = text.split()
    random.Random(1).shuffle(words)
    return " ".join(words)


def spelled(text):
    return text.replace("twelfth", "12th").replace("1,300", "one thousand three hundred")


PLANTS = {
    "exact": lambda t: t, "normalised": lambda t: f" {t.upper().replace(',', ' -')}!\n", "numbers": spelled,
    "reordered": shuffled, "near": lambda t: t.replace("spring", "winter"),
    "contained": lambda t: f"{prose(1)} {' '.join(t.split()[2:-2])} {prose(2)}",
}


def test_clean_data_has_no_finding(others):
    assert leaks(*others) == []


@pytest.mark.parametrize("kind", PLANTS)
def test_planted_leak_is_found_in_its_layer_with_evidence_on_both_sides(others, chat, kind):
    train, test = others
    stands = chat(PLANTS[kind](QUESTION), ANSWER, "train.jsonl:101")
    asked = chat(QUESTION, ANSWER, "test.jsonl:21", "Other system prompt.")
    (found,) = leaks([*train, stands], [*test, asked])
    assert (found.code, found.severity, found.count) == (f"leak_{kind}:test", "error", 1)
    (place,) = found.examples
    match = re.fullmatch(r'(\S+) ([=~]) (\S+) (question|answer) \[(\d+):(\d+)\] \2 \[(\d+):(\d+)\] "(.*?)(\.\.\.)?" '
                         r'similarity (\d\.\d\d)', place)
    assert match, place
    sign = "=" if kind in ("exact", "normalised") else "~"
    assert (match[1], match[2], match[3]) == ("test.jsonl:21", sign, "train.jsonl:101")
    side = {"question": "prompt", "answer": "answer"}[match[4]]
    here, there = getattr(asked, side)[int(match[5]) : int(match[6])], getattr(stands, side)[int(match[7]) : int(match[8])]
    assert " ".join(here.split()).startswith(match[9]) and len(match[9]) > 20
    assert re.findall(r"\w+", here.casefold()) == re.findall(r"\w+", there.casefold())
    assert leaked_rows([found.as_dict()], "test") == 1


@settings(max_examples=60, deadline=None, database=None)
@given(data=st.data())
def test_any_held_out_row_is_found_under_any_mix_of_surface_changes(chat, others, data):
    train, test = others
    row = data.draw(st.sampled_from(test))

    def changed(text):
        text = "".join(c.upper() if data.draw(st.booleans()) else c for c in text[:30]) + text[30:]
        gap = data.draw(st.sampled_from([" ", "  ", "\n", ", ", " - ", "\u00a0"]))
        return gap.join(text.split(" ")) + data.draw(st.sampled_from(["", ".", "?!", " \u2026"]))

    planted = chat(changed(row.prompt), changed(row.answer), "train.jsonl:101")
    at = data.draw(st.integers(0, len(train)))
    found = leaks([*train[:at], planted, *train[at:]], test, near=None)
    assert sum(codes(found).get(f"leak_{kind}:test", 0) for kind in ("exact", "normalised")) == 1 == sum(f.count for f in found)


def test_each_row_is_counted_once_in_the_strictest_layer(others, chat):
    train, test = others
    stands = [chat(change(QUESTION), ANSWER, f"train.jsonl:{101 + n}") for n, change in enumerate(PLANTS.values())]
    found = leaks([*train, *stands], [*test, chat(QUESTION, ANSWER, "test.jsonl:21")])
    assert codes(found) == {"leak_exact:test": 1}
    found = leaks([*train, *reversed(stands[1:])], [*test, chat(QUESTION, ANSWER, "test.jsonl:21")])
    assert codes(found) == {"leak_normalised:test": 1}


def test_a_row_that_train_repeats_often_leaks_all_the_same(others, chat):
    train, test = others
    copies = [chat(QUESTION, ANSWER, f"train.jsonl:{101 + n}") for n in range(200)]
    asked = chat(QUESTION, ANSWER, "test.jsonl:21")
    assert codes(leaks([*train, *copies], [*test, asked], near=None)) == {"leak_exact:test": 1}
    inside = [chat(f"Read this. {QUESTION}", ANSWER, "train.jsonl:101") for n in range(200)]
    assert codes(leaks([*train, *inside], [*test, asked], near=None)) == {"leak_contained:test": 1}


# ---- half a row


def test_question_with_another_answer_is_a_warning_that_no_gate_counts(others, chat):
    train, test = others
    stands = chat(QUESTION.upper(), "Nobody did.", "train.jsonl:101")
    (found,) = leaks([*train, stands], [*test, chat(QUESTION, ANSWER, "test.jsonl:21")])
    assert (found.code, found.severity, found.count) == ("leak_prompt:test", "warning", 1)
    assert "test.jsonl:21 ~ train.jsonl:101 question" in found.examples[0]
    assert leaked_rows([found.as_dict()], "test") == 0


@pytest.mark.parametrize("kind", ["numbers", "reordered", "contained"])
def test_question_is_recognised_in_every_form(others, chat, kind):
    train, test = others
    stands = chat(PLANTS[kind](QUESTION), "Nobody did.", "train.jsonl:101")
    assert codes(leaks([*train, stands], [*test, chat(QUESTION, ANSWER)])) == {"leak_prompt:test": 1}


def test_long_answer_under_another_question_is_a_warning_and_a_short_one_is_not(others, chat):
    train, test = others
    stands = [chat(prose(900), ANSWER, "train.jsonl:101"), chat(prose(901), "Old Marten.", "train.jsonl:102")]
    asked = [chat(prose(902), ANSWER.lower(), "test.jsonl:21"), chat(prose(903), "Old Marten.")]
    (found,) = leaks([*train, *stands], [*test, *asked])
    assert (found.code, found.severity, found.count) == ("leak_answer:test", "warning", 1)
    assert "test.jsonl:21 ~ train.jsonl:101 answer [0:" in found.examples[0]


def test_short_answer_must_be_the_answer_to_refuse_and_a_long_one_may_stand_anywhere(others, chat):
    train, test = others
    inside = f"Read this. {QUESTION}"
    for trained, asked, code in (("No.", "no", "contained"), ("No, never.", "no", "contained"),
                                 ("There is no key.", "no", "prompt"), (f"I think: {ANSWER} Truly.", ANSWER, "contained")):
        found = leaks([*train, chat(inside, trained)], [*test, chat(QUESTION, asked)], near=None)
        assert codes(found) == {f"leak_{code}:test": 1}, trained


# ---- what must not alarm


def test_one_instruction_over_all_rows_is_no_leak(chat):
    """Style: the prompt is the same everywhere, the passages are not. Also in a set of very few rows."""
    for trained, held in ((200, 40), (3, 10), (10, 3)):
        train = [chat("Continue the narrative in the same voice.", prose(n, 60)) for n in range(trained)]
        assert leaks(train, [chat("Continue the narrative in the same voice.", prose(7000 + n, 60)) for n in range(held)]) == []


def test_labels_and_json_with_the_same_keys_are_no_leak(chat):
    labels = ["positive", "negative", json.dumps({"sentiment": "positive", "confidence": "high", "language": "English"})]
    def review(n):
        return chat(f"Is this review positive or negative? {prose(n)}", labels[n % 3])

    assert leaks([review(n) for n in range(300)], [review(7000 + n) for n in range(60)]) == []


def test_canned_refusal_that_many_rows_share_is_no_leak_and_one_that_two_rows_share_is(chat):
    def talk(n, canned):
        return chat(prose(n), "I am sorry, but I cannot help you with that." if canned else prose(9000 + n))

    test = [talk(7000, True), *(talk(7001 + n, False) for n in range(20))]
    assert leaks([talk(n, n % 5 == 0) for n in range(200)], test) == []
    assert codes(leaks([talk(n, n == 5) for n in range(200)], test)) == {"leak_answer:test": 1}


def test_small_talk_is_no_leak(others, chat):
    train, test = others
    talk = [chat(said, prose(800 + n)) for n, said in enumerate(("Hello!", "Go on.", "Thank you!"))]
    assert leaks([*train, *talk], [*test, *(chat(row.prompt, prose(850 + n)) for n, row in enumerate(talk))]) == []


def test_long_question_around_a_shared_short_middle_is_no_leak(others, chat):
    """Half of a held-out question in train is not four fifths of it."""
    train, test = others
    half = " ".join(QUESTION.split()[8:24])
    assert leaks([*train, chat(f"{prose(1)} {half} {prose(2)}", ANSWER[:20])], [*test, chat(QUESTION, "Another one.")]) == []


def addresses(*names):
    return [Row(json.loads(line)["messages"], f"{name}:{n}") for name in names
            for n, line in enumerate((ADDRESSES / name).read_text(encoding="utf-8").splitlines(), 1)]


TEMPLATE = "Take apart this address line, and answer with JSON as the system prompt says and with nothing else around it: "


@pytest.mark.parametrize("template", [pytest.param("", id="as it is"), pytest.param(TEMPLATE, id="instruction")])
def test_addresses_example_is_clean(template):
    """1,500 rows of one template against 1,014: same instruction, same JSON keys, same towns."""
    def under(rows):
        return [Row([{**m, "content": template + m["content"]} if m["role"] == "user" else m for m in row.messages], row.where)
                for row in rows]

    train = under(addresses("train.jsonl"))
    held_out = {"linn": under(addresses("test.jsonl")), "hand": under(addresses("hand_test.jsonl"))}
    assert find_leaks(train, held_out, Index(train, 0.8)) == []


def test_row_planted_in_the_addresses_example_is_the_only_alarm():
    train, test = addresses("train.jsonl"), addresses("test.jsonl")
    victim = test[17]
    turned = [{**m, "content": shuffled(m["content"])} if m["role"] == "user" else m for m in victim.messages]
    (found,) = find_leaks([*train, Row(turned, "planted:1")], {"linn": test}, None)
    assert (found.code, found.count) == ("leak_reordered:linn", 1)
    assert found.examples[0].startswith("test.jsonl:18 ~ planted:1 ")


# ---- sets, turns, calls


def test_sets_are_told_apart_and_kinds_keep_their_order(others, chat):
    train, test = others
    sets = {"one": [*test, train[3]], "two": train[:4], "three": test, "none": []}
    found = find_leaks(train, sets, None)
    assert codes(found) == {"leak_exact:one": 1, "leak_exact:two": 4}
    assert [leaked_rows([f.as_dict() for f in found], name) for name in sets] == [1, 4, 0, 0]
    assert find_leaks(train, {}, None) == [] == find_leaks([], {"one": test}, Index([], 0.8))


def test_every_turn_of_a_conversation_counts_and_tool_calls_too():
    def talk(first, call, where):
        return Row([{"role": "user", "content": first}, {"role": "assistant", "content": "Which one do you mean, please?"},
                    {"role": "user", "content": "The one with a red door, beside the mill."},
                    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": call, "arguments": {}}}]}], where)

    train = [talk("Find me a house.", "find", "train.jsonl:1")]
    assert codes(leaks(train, [talk("find me a house", "find", "t:1")], None)) == {"leak_normalised:test": 1}
    assert codes(leaks(train, [talk("Find me a house.", "sell", "t:1")], None)) == {"leak_prompt:test": 1}


def test_kinds_that_refuse_and_kinds_that_warn_do_not_overlap():
    assert not set(REFUSING) & set(PARTIAL)
    counted = [{"code": f"{code}:a", "count": 1} for code in (*REFUSING, *PARTIAL)]
    assert leaked_rows(counted, "a") == len(REFUSING) and leaked_rows(counted, "b") == 0
