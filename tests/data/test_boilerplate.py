"""Instructions inside of prompts make no two rows alike; variants of one row stay near-duplicates.

    python -m pytest tests/data/test_boilerplate.py
"""

from __future__ import annotations

import random

import pytest
from tests.data.reference import without_boilerplate
from tests.data.test_similar import groups_of_pairs, pairs_of_all, pairs_of_index

from tunesmith.data.leaks import find_leaks
from tunesmith.data.similar import Index, fold

SYLLABLES = ("ba", "lo", "mir", "ten", "su", "ga", "rol", "ik", "dem", "po", "tas", "ne", "vu", "hal", "cor", "shi")
TEMPLATES = (
    "Split this address line into its fields, answer with JSON and with nothing else around it: {}",
    "{}\n\nTell what the line above says about the place, as briefly as you can, and do not explain it.",
    "### Task\nRead the input and give back its parts in the order they are asked for.\n### Input\n{}\n### Output, in one line",
)


def words(chance, n):
    return [("".join(chance.choices(SYLLABLES, k=chance.randint(3, 5)))) for _ in range(n)]


def changed(said, chance):
    at = chance.randrange(len(said))
    return [*said[:at], *words(chance, 1), *said[at + 1 :]]


def corpus(chat, templates, size, length, chance, where="train"):
    return [chat(templates[n % len(templates)].format(" ".join(words(chance, length))), f"yes {n % 3}", f"{where}:{n}")
            for n in range(size)]


def codes(findings):
    return {f.code: f.count for f in findings}


@pytest.mark.parametrize("wordings", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 3, 8])
def test_rows_that_share_only_an_instruction_raise_no_alarm(chat, wordings, length):
    """With a slot of one word nine tenths of all prompts are the same, and so are the answers of a third."""
    chance = random.Random(f"{wordings} {length}")
    templates = TEMPLATES[:wordings]
    train = corpus(chat, templates, 150, length, chance)
    test = corpus(chat, templates, 60, length, chance, "test")
    index = Index(train, 0.8)
    assert find_leaks(train, {"test": test}, index) == []
    assert index.groups() == []


@pytest.mark.parametrize("wordings", [1, 2, 3])
def test_rows_with_one_word_changed_are_found_inside_of_instructions(chat, wordings):
    """All 210 that are planted, each by its own plant, and nothing else."""
    chance = random.Random(wordings)
    train = corpus(chat, TEMPLATES[:wordings], 300, 30, chance)
    said = [words(chance, 30) for _ in range(210)]

    def row(text, n, where):
        return chat(TEMPLATES[n % wordings].format(" ".join(text)), "yes", f"{where}:{n}")

    planted = [row(changed(text, chance), n, "planted") for n, text in enumerate(said)]
    index = Index([*train, *planted], 0.8)
    test = [row(text, n, "test") for n, text in enumerate(said)]
    assert [[number - len(train) for number, _ in near] for near in index.near_each(test)] == [[n] for n in range(210)]
    found = find_leaks([*train, *planted], {"test": test}, index)
    assert sum(f.count for f in found if f.severity == "error") == 210
    assert codes(found).keys() <= {"leak_near:test", "leak_contained:test"}


def test_question_is_found_inside_of_a_text_without_the_instruction(chat):
    """And in one with another instruction: neither is part of what was asked."""
    chance = random.Random(5)
    train = corpus(chat, TEMPLATES, 300, 20, chance)
    question = " ".join(words(chance, 20))
    for inside in ("Note: {} That was it.", TEMPLATES[1]):
        stands = chat(inside.format(question), "as it was", "planted:1")
        rows = [*train, stands]
        found = find_leaks(rows, {"test": [chat(TEMPLATES[0].format(question), "as it was", "test:1")]}, Index(rows, 0.8))
        assert codes(found) == {"leak_contained:test": 1}


def test_control_same_rows_are_near_without_the_rule(chat, monkeypatch):
    """What the rule is for: with it switched off, rows of one instruction are near-duplicates."""
    train = corpus(chat, TEMPLATES[:1], 150, 1, random.Random(0))
    assert Index(train, 0.8).groups() == []
    monkeypatch.setattr("tunesmith.data.similar.boilerplate", lambda _texts, _found: None)
    assert Index(train, 0.8).groups() != []


def test_variants_of_one_row_stay_near_duplicates(chat):
    """A corpus of nothing but variants: all is shared, and nothing is an instruction."""
    chance = random.Random(3)
    said = words(chance, 60)
    rows = [chat(" ".join(changed(said, chance)), "At nine.", f"a:{n}") for n in range(120)]
    assert Index(rows, 0.8).groups() == [list(range(120))]
    held = chat(" ".join(changed(said, chance)), "At nine.", "test:1")
    assert codes(find_leaks(rows, {"test": [held]}, Index(rows, 0.8))) == {"leak_near:test": 1}


def test_few_rows_of_one_instruction_are_compared_whole(chat):
    """Twenty rows are too few to say what is an instruction."""
    rows = corpus(chat, TEMPLATES[:1], 20, 1, random.Random(0))
    assert Index(rows, 0.8).groups() != []


def test_same_content_in_another_common_ending_is_not_near(chat):
    """What is left of two addresses without their towns is the same, and they are two addresses."""
    chance = random.Random(9)
    towns = ("north brentwood falls", "south harrington mills", "cape elizabeth township")
    rows = [chat(f"{n} {' '.join(words(chance, 1))} {towns[n % 3]}", "ok", f"a:{n}") for n in range(300)]
    rows += [chat(f"17 loik {town}", "ok", f"b:{n}") for n, town in enumerate(towns)]
    near = Index(rows, 0.8).near(rows[-1])
    assert near == [(302, 1.0)]


@pytest.mark.parametrize("threshold", [0.4, 0.8])
def test_index_finds_exactly_the_pairs_of_the_definition_inside_of_templates(chat, threshold):
    chance = random.Random(threshold)
    said = []
    for _ in range(150):
        near = said and chance.random() < 0.5
        said.append(changed(chance.choice(said), chance) if near else words(chance, chance.randint(8, 30)))
    rows = [chat(TEMPLATES[chance.randrange(2)].format(" ".join(text)), f"It is {' '.join(text[:2])}, and that is all of it.")
            for text in said]
    assert without_boilerplate([r.prompt for r in rows]) != without_boilerplate([r.prompt for r in rows[:10]])
    expected = pairs_of_all(rows, threshold)
    assert len(expected) > 10
    assert pairs_of_index(rows, threshold) == pytest.approx(expected)
    assert Index(rows, threshold).groups() == groups_of_pairs(expected)


def test_own_words_are_those_of_the_slot(chat):
    chance = random.Random(2)
    train = corpus(chat, TEMPLATES, 300, 6, chance)
    index = Index(train, 0.8)

    def own(text: str) -> str:
        (mask,) = index.own_words([text], 0)
        return " ".join(word for word, mine in zip(text.split(), mask, strict=True) if mine)

    for template in TEMPLATES:
        slot = " ".join(words(chance, 6))
        assert own(fold(template.format(slot))) == slot
    assert own("something else entirely that nobody said") == "something else entirely that nobody said"
    assert list(Index([], 0.8).own_words(["some text"], 0)) == [[True, True]]
