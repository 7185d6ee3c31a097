"""The index against every pair compared: none is missed, none is made up.

    python -m pytest tests/data/test_similar.py
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.reference import without_boilerplate

from tunesmith.data.similar import Index, fold, jaccard, key, shingles

WORDS = [f"{a}{b}{c}" for a in ("st", "or", "ka", "lun") for b in ("e", "ing", "o", "ara") for c in ("n", "ck", "", "sh")]


def pairs_of_all(rows, threshold):
    """Brute force: the definition, in two loops."""
    sides = [[r.prompt for r in rows], [r.answer for r in rows]]
    sets = list(zip(*(map(shingles, side) for side in sides), *map(without_boilerplate, sides), strict=True))
    near = {}
    for i, one in enumerate(sets):
        for j in range(i):
            similarity = min(map(jaccard, one, sets[j]))
            if similarity >= threshold:
                near[i, j] = similarity
    return near


def pairs_of_index(rows, threshold):
    index = Index(rows, threshold)
    return {(i, j): similarity for i, row in enumerate(rows) for j, similarity in index.near(row) if j < i}


def groups_of_pairs(pairs):
    """Connected rows, by walking from each row to all it is near to."""
    near = {}
    for i, j in pairs:
        near.setdefault(i, []).append(j)
        near.setdefault(j, []).append(i)
    groups, seen = [], set()
    for start in near:
        reached, open_ends = {start}, [start]
        while open_ends:
            new = [j for j in near[open_ends.pop()] if j not in reached]
            reached.update(new)
            open_ends += new
        if start not in seen:
            groups.append(sorted(reached))
            seen |= reached
    return sorted(groups)


@pytest.mark.parametrize("threshold", [0.4, 0.7, 0.8, 1.0])
def test_index_finds_exactly_the_pairs_of_a_brute_force_search(chat, threshold):
    """200 texts, half of them an earlier one with up to 12 words changed: pairs on both sides of every threshold."""
    chance = random.Random(threshold)
    said: list[tuple[list[str], list[str]]] = []
    for _ in range(200):
        if said and chance.random() < 0.5:
            sides = [side.copy() for side in chance.choice(said)]
            for _ in range(chance.choice((0, 0, 1, 2, 4, 8, 12))):
                side = chance.choice(sides)
                side[chance.randrange(len(side))] = chance.choice(WORDS)
        else:
            sides = [chance.choices(WORDS, k=chance.randint(1, 30)) for _ in range(2)]
        said.append(tuple(sides))
    rows = [chat(" ".join(prompt), " ".join(answer)) for prompt, answer in said]
    expected = pairs_of_all(rows, threshold)
    assert len(expected) > 15
    assert pairs_of_index(rows, threshold) == expected
    assert Index(rows, threshold).groups() == groups_of_pairs(expected)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, database=None)
@given(texts=st.lists(st.tuples(*[st.lists(st.sampled_from(["a", "bb", "Oak St", "."]), max_size=6).map(" ".join)] * 2),
                      max_size=12), threshold=st.sampled_from([0.1, 0.5, 0.6, 0.75, 1.0]))
def test_index_agrees_with_brute_force_on_short_and_empty_texts(chat, texts, threshold):
    rows = [chat(prompt, answer) for prompt, answer in texts]
    expected = pairs_of_all(rows, threshold)
    assert pairs_of_index(rows, threshold) == expected
    assert Index(rows, threshold).groups() == groups_of_pairs(expected)


def test_query_that_is_not_in_the_index_is_compared_with_all_of_it(chat):
    rows = [chat(f"Where is {n} Cottage Grove Avenue in the town?", "In the east.") for n in (1801, 1802, 44)]
    asked = chat("Where is 1801 Cottage Grove Avenue, in the town", "in the EAST")
    assert [number for number, _ in Index(rows, 0.7).near(asked)] == [0, 1, 2]
    assert Index([], 0.7).near(asked) == [] == Index([], 0.7).groups()


def test_one_long_chain_of_small_changes_is_one_group(chat):
    """Far more near rows than are compared at once, and the ends are not near each other."""
    words = [f"{WORDS[n % 48]}{n}" for n in range(230)]
    chain = [chat(" ".join(words[n : n + 30]), "yes") for n in range(200)]
    index = Index([*chain, chat("something else", "yes"), chain[7]], 0.8)
    assert index.groups() == [[*range(200), 201]]
    assert len(index.near(chain[100])) < 20


def test_texts_of_many_batches_are_searched_as_one(chat, monkeypatch):
    rows = [chat(f"{WORDS[n % 48]} {WORDS[n * 7 % 48]} {n % 30}", f"{n % 3}") for n in range(90)]
    at_once = pairs_of_index(rows, 0.6)
    monkeypatch.setattr("tunesmith.data.shingles.BATCH_CHARACTERS", 40)
    assert pairs_of_index(rows, 0.6) == at_once != {}


@pytest.mark.parametrize("one, other", [
    ("Oak Street", "OAK STREET"), ("Oak Street", "oak,  street!"), ("don't", "DON’T"), ("ﬁne", "fine"), ("Ⅳ", "iv"),
    ("ex\u00adample", "example"), ("a\u200bb", "ab"), ("STRASSE", "straße"), ("e\u0301", "é"), ("a_b", "a b"), ("\ufeffa", "a"),
])
def test_case_punctuation_and_white_space_fold_away(one, other):
    assert fold(one) == fold(other) != ""


@pytest.mark.parametrize("one, other", [
    ("की", "का"), ("ที่", "ทา"), ("שָׁ", "שִׁ"), ("🙂", "🙁"), ("2 + 2", "2 = 2"), ("$5", "5"), ("no", "non"), ("1", "2"), ("é", "e"),
])
def test_letters_signs_and_symbols_do_not_fold_away(one, other):
    assert fold(one) != fold(other)


@settings(max_examples=200, deadline=None, database=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_folded_text_folds_to_itself(text):
    assert fold(fold(text)) == fold(text)


def test_key_holds_every_turn_but_the_system_prompt(chat):
    assert key(chat("q", "a", system="x")) == key(chat("Q!", "a.", system="y"))
    assert key(chat("q", "a")) != key(chat("a", "q"))


def test_calls_of_other_tools_are_other_rows(chat):
    def calling(x):
        row = chat("do it", "")
        row.messages[-1]["tool_calls"] = [{"function": {"name": "f", "arguments": {"x": x}}}]
        return row

    assert key(calling(1)) == key(calling(1)) != key(calling(2))
