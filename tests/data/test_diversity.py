"""How varied rows are: the same for any order and any threads, right where the answer is known, and silent where it must be.

    python -m pytest tests/data/test_diversity.py
"""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from tunesmith.data import topics
from tunesmith.data.card import write_card
from tunesmith.data.diversity import FEWEST, Sample, diversity, findings, lines
from tunesmith.data.rows import Row
from tunesmith.recipe.load import load

ROOT = Path(__file__).parents[2]
FIELDS = ("pasta oven tomato garlic basil recipe boil simmer onion pepper",
          "match league player coach stadium referee penalty team goal",
          "python function loop variable class error list string import",
          "planet star galaxy orbit telescope moon comet gravity nebula",
          "loan interest credit invoice payment account deposit budget tax",
          "guitar piano chord melody drum singer album violin rhythm",
          "doctor fever vaccine patient nurse pill symptom surgery therapy",
          "garden rose soil seed tulip compost prune lawn hedge",
          "train ticket platform delay luggage seat conductor fare timetable",
          "king castle war empire treaty crown knight siege queen")
FILLERS = ("the", "of", "a", "and", "in", "how", "is", "it", "for", "you", "should", "with")


def rows_of(pairs, name: str = "a.jsonl", system: str | None = None) -> list[Row]:
    lead = [{"role": "system", "content": system}] if system else []
    return [Row([*lead, {"role": "user", "content": q}, {"role": "assistant", "content": a}], f"{name}:{n}")
            for n, (q, a) in enumerate(pairs, 1)]


def report(rows, size: int = 20_000):
    sample = Sample(size)
    assert list(sample.through(rows)) == list(rows), "whoever reads the rows sees all of them"
    return diversity(sample)


def codes(rows) -> list[tuple[str, str]]:
    return [(f.code, f.severity) for f in findings(report(rows))]


def about(field: int, chance: random.Random) -> tuple[str, str]:
    words = FIELDS[field].split()

    def phrase(n: int) -> str:
        return " ".join(f"{w} {chance.choice(FILLERS)}" for w in chance.sample(words, n))

    return f"{phrase(4)}?", f"{phrase(6)}. {phrase(5)}."


@pytest.fixture(scope="module")
def addresses() -> list[Row]:
    """Real rows: one template, one county."""
    text = (ROOT / "examples/addresses/data/train.jsonl").read_text(encoding="utf-8")
    return [Row(json.loads(line)["messages"], f"train.jsonl:{n}") for n, line in enumerate(text.splitlines(), 1)]


@pytest.fixture(scope="module")
def prose() -> list[tuple[str, str]]:
    """Real sentences that have little in common: neighbours in a novel."""
    folder = ROOT / "examples/style/data/train"
    text = " ".join(" ".join(p.read_text(encoding="utf-8").split()) for p in sorted(folder.glob("*.txt")))
    sentences = [s for s in text.split(". ") if 40 < len(s) < 400]
    return list(zip(sentences[::2], sentences[1::2], strict=False))


# ---- the same rows, the same report -----------------------------------------------------------------------------------------


@given(st.lists(st.text("abcd ", max_size=6), max_size=60), st.integers(1, 9), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_the_sample_is_the_same_in_any_order_and_a_part_of_any_larger_one(contents, size, chance):
    rows = rows_of([(text, text[::-1]) for text in contents])
    small, large, other = Sample(size), Sample(size + 3), Sample(size)
    mixed = chance.sample(rows, len(rows))
    for row, again in zip(rows, mixed, strict=True):
        small.see(row)
        large.see(row)
        other.see(again)
    assert small.drawn() == other.drawn() == large.drawn()[:size]
    assert len(small.drawn()) == min(size, len(rows)) and small.rows == len(rows)
    assert not Counter(where for where, _, _ in small.drawn()) - Counter(row.where for row in rows)


def test_any_order_and_any_number_of_threads_give_the_same_report(addresses):
    rows = addresses[:400]
    with threadpool_limits(1):
        one = report(rows)
    with threadpool_limits(2):
        assert report(random.Random(3).sample(rows, len(rows))) == one
    assert report(rows[1:]) != one, "and it can differ"


def test_the_system_prompt_does_not_count():
    chance = random.Random(0)
    pairs = [about(n % 3, chance) for n in range(120)]
    assert report(rows_of(pairs)) == report(rows_of(pairs, system="Answer with JSON, and mind your manners."))


def test_more_rows_than_are_learned_from_are_placed_by_what_was_learned(monkeypatch):
    """Shares over all of the sample, though the clusters come from a part of it."""
    monkeypatch.setattr(topics, "FIT", 200)
    monkeypatch.setattr(topics, "COMPARED", 150)
    chance = random.Random(4)
    found = report(rows_of([about(min(n % 4, 2), chance) for n in range(1000)]), size=800)
    assert found["rows"] == 1000 and found["sample"] == 800 == sum(c["rows"] for c in found["clusters"])
    assert len(found["clusters"]) == 3 and found["clusters"][0]["share"] == pytest.approx(0.5, abs=0.06)


# ---- where the answer is known ----------------------------------------------------------------------------------------------


def test_planted_topics_come_out_as_clusters_with_their_words():
    chance = random.Random(1)
    rows = rows_of([about(n % 5, chance) for n in range(300)])
    found = report(rows)
    topic = {row.where: n % 5 for n, row in enumerate(rows)}
    assert [c["rows"] for c in found["clusters"]] == [60] * 5 and found["effective_clusters"] == 5
    assert sorted(topic[c["example"]["where"]] for c in found["clusters"]) == [0, 1, 2, 3, 4]
    for c in found["clusters"]:
        own = set(FIELDS[topic[c["example"]["where"]]].split())
        assert c["terms"] and all(set(t.split()) & own for t in c["terms"]), "telling terms are of the topic"
        assert c["example"]["text"].split()[0] in own
        assert c["at"], "its number stands on the map"
    assert len(found["map"]["points"]) == 300
    assert Counter(n for _x, _y, n in found["map"]["points"]) == dict.fromkeys(range(1, 6), 60)
    assert {v for x, y, _n in found["map"]["points"] for v in (x, y)} <= set(range(1001))


def test_rows_of_one_topic_are_one_cluster():
    """k-means always finds as many clusters as it is asked for: here none of them stands apart."""
    chance = random.Random(6)
    found = report(rows_of([about(0, chance) for _ in range(300)]))
    assert len(found["clusters"]) == 1 and found["clusters"][0]["share"] == 1 and found["effective_clusters"] == 1
    assert found["silhouette"] < topics.NO_CLUSTERS and "none stand apart" in lines(found)[1]


def test_effective_number_and_vendi_score_at_their_ends():
    assert topics.effective([5, 5, 5, 5]) == pytest.approx(4) and topics.effective([7]) == 1
    assert topics.vendi(np.ones((30, 30))) == pytest.approx(1), "all the same"
    assert topics.vendi(np.eye(30)) == pytest.approx(30), "nothing in common"
    assert topics.vendi(np.kron(np.eye(3), np.ones((10, 10)))) == pytest.approx(3), "three, each ten times"


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_vendi_score_of_kinds_that_share_nothing_is_the_exponential_of_their_entropy(sizes):
    kinds = np.repeat(np.arange(len(sizes)), sizes)
    shares = [n / sum(sizes) for n in sizes]
    expected = math.exp(-sum(p * math.log(p) for p in shares))
    assert topics.vendi((kinds[:, None] == kinds[None]).astype(float)) == pytest.approx(expected)
    assert topics.effective(sizes) == pytest.approx(expected)


def test_vectors_are_those_of_an_independent_computation():
    """TF-IDF by its formula, over 1-2-grams that two texts have: (1 + ln tf)(1 + ln((1 + n) / (1 + df))), unit length."""
    texts = ["the old mill", "the old oak by the mill", "an oak 17 feet tall", "an elm 9 feet tall", "nothing else"]
    tfidf, terms = topics.vectors(texts)
    grams = [Counter(topics.grams(t)) for t in texts]
    rows_with = Counter(g for found in grams for g in found)
    assert terms == sorted(g for g, n in rows_with.items() if n > 1) and "0 feet" in terms
    for row, found in zip(tfidf.toarray(), grams, strict=True):
        weights = [(1 + math.log(found[t])) * (1 + math.log(6 / (1 + rows_with[t]))) if t in found else 0 for t in terms]
        length = math.sqrt(sum(w * w for w in weights)) or 1
        assert row == pytest.approx([w / length for w in weights], abs=1e-6)
    assert not tfidf[4].nnz and topics.cosines(tfidf)[4, 4] == 1, "a row like no other is like itself"


def test_distinct_words_of_the_answers():
    found = report(rows_of([(f"question {w}", "yes it is") for w in FIELDS[0].split() * 2]))
    assert found["distinct_1"] == pytest.approx(3 / 60, abs=1e-3) and found["distinct_2"] == pytest.approx(2 / 40, abs=1e-3)


@pytest.mark.parametrize(("text", "expected"), [
    ("Don't go, Ann-Marie!", ["don't", "go", "ann", "marie"]), ("中文 abc中 ไทย", ["中", "文", "abc", "中", "ไ", "ท", "ย"]),
    ("call 555-0100 or x9 at a.b@firm.org", ["call", "0", "0", "or", "0", "at"]), ("?!", [])])
def test_words(text, expected):
    assert topics.words(text) == expected


def test_rows_without_words_and_few_rows_are_no_trouble():
    assert report(rows_of([("?", "!")] * (FEWEST - 1))) is None
    assert lines(None) == ["diversity: not measured below 20 rows"] and findings(None) == []
    same = report(rows_of([("?", "!")] * FEWEST))
    assert same["vendi"]["score"] == 1 and len(same["clusters"]) == 1 and same["distinct_1"] is None
    assert codes(rows_of([("?", "!")] * FEWEST)) == [("low_diversity", "warning")]


def test_what_is_shown_of_rows_is_masked():
    chance = random.Random(2)
    mail, card = "maria.keller@firma.ch", "4111 1111 1111 1111"
    rows = rows_of([(f"{mail} paid {card} for {about(0, chance)[0]}", about(0, chance)[1]) for _ in range(60)])
    found = report(rows)
    said = json.dumps([found, [f.as_dict() for f in findings(found)], lines(found)])
    assert "ma*" in said and "keller" not in said and "1111" not in said
    assert all(not any(ch.isdigit() for ch in t) for c in found["clusters"] for t in c["terms"])


# ---- findings and their controls --------------------------------------------------------------------------------------------


def test_a_few_templates_with_a_word_changed_are_a_warning(prose):
    words = sorted({w.strip(",;:.!?\"'()-_").casefold() for pair in prose for w in pair[0].split()} - {""})
    forms = [("Write a short product description for a {}.", "This {} is made with care and will make your day better."),
             ("How do I clean a {} at home?", "Use warm water, wipe the {} gently and let it dry in the air."),
             ("Tell me a joke about a {}.", "Why did the {} cross the road? To get to the other side.")]
    pairs = [tuple(side.format(w) for side in forms[n % 3]) for n, w in enumerate(random.Random(0).sample(words, 300))]
    found = report(rows_of(pairs))
    low, = findings(found)
    assert (low.code, low.severity, low.count) == ("low_diversity", "warning", 300) and "templates" in low.message
    assert 2 < found["vendi"]["score"] < 15 and found["alike"] > 0.8
    assert len(low.examples) == 3 and all(e.startswith("a.jsonl:") for e in low.examples)


def test_one_topic_that_holds_97_percent_is_a_warning_and_even_topics_are_not():
    chance = random.Random(0)
    uneven = [about(0 if n % 100 < 97 else 1 + n % 9, chance) for n in range(600)]
    found = report(rows_of(uneven))
    low, = findings(found)
    assert low.severity == "warning" and "97% of the rows are one narrow kind" in low.message
    assert low.count == pytest.approx(582, abs=6)
    assert all(int(e.split(":")[1]) % 100 in (98, 99, 0) for e in low.examples), "it shows the few"
    assert found["effective_clusters"] < 1.4
    assert codes(rows_of([about(n % 10, chance) for n in range(600)])) == []


def test_one_narrow_task_is_for_information_and_strange_rows_in_it_are_a_warning(addresses, prose):
    few = addresses[:485]
    assert codes(few) == [("low_diversity", "info")]
    for size in (200, 300):
        assert codes(addresses[-size:]) in ([], [("low_diversity", "info")]), "its parts are no foreign groups"
    assert codes([*few, *rows_of(prose[:15], "b.jsonl")]) == [("low_diversity", "warning")]


def test_varied_rows_are_silent_also_with_some_of_one_task_beside(addresses, prose):
    varied = rows_of(prose, "b.jsonl")
    assert len(varied) > 90 and codes(varied) == []
    assert codes([*varied, *addresses[:4]]) == []
    assert report(varied)["vendi"]["share"] > 2 * report(addresses[: len(varied)])["vendi"]["share"]


# ---- the card --------------------------------------------------------------------------------------------------------------


def test_the_card_draws_every_row_and_names_every_cluster(dataset_of, make_recipe, tiny_tokenizer, tmp_path):
    recipe = make_recipe(**{"data.max_tokens": 1000})
    hostile = '</svg><script>alert(1)</script> "A & B"'
    chance = random.Random(3)
    rows = [(f"{hostile} {q}", a) for q, a in (about(n % 3, chance) for n in range(90))]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps({"prompt": q, "completion": a}) for q, a in rows))
    made = dataset_of(recipe)
    found = made.manifest["diversity"]
    assert found["rows"] == made.manifest["counts"]["train"] == len(found["map"]["points"]) and len(found["clusters"]) == 3
    page = write_card(made, load(recipe).recipe, tiny_tokenizer).read_text()
    drawn = page[page.index('<h2 id="diversity">') : page.index("</section>", page.index('<h2 id="diversity">'))]
    assert drawn.count("<circle ") == found["rows"] and drawn.count("<li class=") == 3
    for c in found["clusters"]:
        assert f"<b>{c['number']}</b>" in drawn and c["example"]["where"] in drawn and ", ".join(c["terms"]) in drawn
        assert f">{c['number']}</text>" in drawn, "numbers, not colours alone"
    assert "<script" not in page and "&lt;/svg&gt;&lt;script&gt;alert(1)" in drawn, "text of rows is shown as text"
    assert not re.search(r"(?:src|href|onclick)=", page), "one file, nothing is fetched, nothing runs"


def test_the_card_says_that_few_rows_were_not_measured(dataset_of, make_recipe, tiny_tokenizer, tmp_path):
    recipe = make_recipe()
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps({"prompt": f"{n} Oak", "completion": "Oak"}) for n in range(12)))
    page = write_card(dataset_of(recipe), load(recipe).recipe, tiny_tokenizer).read_text()
    assert "Too few rows to measure" in page and "<svg" not in page
