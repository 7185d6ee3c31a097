"""Documents beside a question: the right passage is found, shown, and only that.

    python -m pytest tests/evals/test_retrieval.py
"""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.passages import sentences
from tunesmith.errors import DataError
from tunesmith.evals.items import Item
from tunesmith.evals.retrieval import Passage, by_words, library, with_passages, words
from tunesmith.recipe.load import Loaded
from tunesmith.recipe.schema import Recipe

HANDBOOK = """# Harlow archive

The archive opens at seven. Visitors leave their bags at the desk on the left.

The code of the blue door is 4417, and it changes in spring.

# Marden depot

Parcels are weighed in hall C. The foreman of the depot is Ilse Brandt.
"""


def loaded(folder: Path, **retrieval) -> Loaded:
    recipe = {"name": "a", "base": "b", "data": {"train": "x.jsonl"}, "eval": {
        "metrics": ["exact_match"], "baselines": ["zero_shot", "retrieval"],
        "retrieval": {"documents": ["docs"], "chunk_tokens": 40} | retrieval}}
    return Loaded(Recipe.model_validate(recipe), folder / "recipe.yaml")


@pytest.fixture
def handbook(tmp_path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "handbook.md").write_text(HANDBOOK)
    return tmp_path


def test_the_passage_that_answers_is_the_first(handbook, tiny_tokenizer):
    found = library(loaded(handbook), tiny_tokenizer)
    for question, answer in (("What is the code of the blue door?", "4417"), ("Who is foreman of the depot?", "Ilse Brandt")):
        (best, score), *others = found.best(question)
        assert answer in best.text and score > 0 and all(s <= score for _, s in others)
    assert found.best("zzz qqq") == [], "nothing that fits, nothing shown"


def test_every_word_of_the_documents_is_in_a_passage_and_none_is_longer_than_asked(handbook, tiny_tokenizer):
    passages = library(loaded(handbook, chunk_tokens=60), tiny_tokenizer).passages
    assert [w for p in passages for w in words(p.text)] == words(HANDBOOK)
    assert [p.id for p in passages] == [f"docs/handbook.md#{n}" for n in range(1, len(passages) + 1)] and len(passages) > 2
    longest_sentence = max(len(tiny_tokenizer(s)["input_ids"]) for part in HANDBOOK.split("\n\n") for _, s in sentences(part))
    assert all(len(tiny_tokenizer(p.text)["input_ids"]) <= max(60, longest_sentence) for p in passages)


def test_rows_with_text_are_documents_too(tmp_path, tiny_tokenizer):
    (tmp_path / "d.jsonl").write_text('{"title": "Doors", "text": "The code is 4417."}\n{"text": "Nothing else."}\n')
    found = library(loaded(tmp_path, documents="d.jsonl"), tiny_tokenizer)
    assert [(p.id, p.text) for p in found.passages] == [("d.jsonl:1#1", "Doors\n\nThe code is 4417."),
                                                        ("d.jsonl:2#1", "Nothing else.")]


@pytest.mark.parametrize("files, message", [
    ({}, "does not exist"), ({"docs/a.txt": " \n"}, "hold no text"),
    ({"docs/a.jsonl": '{"content": "x"}\n'}, "1 problem in the"),
])
def test_documents_that_are_none_are_an_error(tmp_path, tiny_tokenizer, files, message):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        library(loaded(tmp_path), tiny_tokenizer)


def test_the_digest_follows_the_text_and_the_way_of_searching(handbook, tiny_tokenizer):
    def digest(**more):
        return library(loaded(handbook, **more), tiny_tokenizer).digest

    first = digest()
    assert first == digest() and first != digest(top=1)
    (handbook / "docs" / "handbook.md").write_text(HANDBOOK.replace("4417", "4418"))
    assert digest() != first


def test_passages_stand_before_the_last_question_and_nothing_else_changes():
    item = Item("q", [{"role": "system", "content": "S"}, {"role": "user", "content": "a"}, 
                      {"role": "assistant", "content": "b"}, {"role": "user", "content": "c?"}])
    shown = with_passages(item, [Passage("d#1", "One."), Passage("d#2", "Two.")])
    assert shown[:3] == item.messages[:3] and shown[3]["role"] == "user"
    assert re.fullmatch(r"Here is .*\n\n\[1\] One\.\n\n\[2\] Two\.\n\nc\?", shown[3]["content"])
    assert with_passages(item, []) is item.messages


def bm25(texts: list[str], question: str, k1: float = 1.5, b: float = 0.75) -> list[float]:
    """Robertson and Zaragoza 2009, with Lucene's idf, term by term."""
    counts = [Counter(words(t)) for t in texts]
    mean = sum(c.total() for c in counts) / len(texts)
    scores = []
    for c in counts:
        score = 0.0
        for word in words(question):
            having = sum(word in other for other in counts)
            idf = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
            score += idf * c[word] / (c[word] + k1 * (1 - b + b * c.total() / mean)) if c[word] else 0.0
        scores.append(score)
    return scores


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.lists(st.sampled_from(["door", "code", "blue", "archive", "4417", "the"]), min_size=1, max_size=12)
                      .map(" ".join), min_size=1, max_size=6),
       question=st.lists(st.sampled_from(["door", "code", "unknown", "the", "東京"]), max_size=5).map(" ".join))
def test_scores_are_those_of_the_formula(texts, question):
    assert by_words(texts)(question).tolist() == pytest.approx(bm25(texts, question), abs=1e-5)


def test_words_are_folded_and_chinese_is_taken_sign_by_sign():
    assert words("The Café's CODE-4417, 東京タワー") == ["the", "café", "s", "code", "4417", "東", "京", "タ", "ワ", "ー"]


@pytest.mark.real
@pytest.mark.slow
def test_meaning_finds_what_shares_no_word_and_words_do_not(handbook, tiny_tokenizer):
    question = "Who leads that warehouse?"
    by = {how: library(loaded(handbook, by=how, chunk_tokens=40), tiny_tokenizer) for how in ("bm25", "embedding")}
    assert "Ilse Brandt" in by["embedding"].best(question)[0][0].text
    assert by["bm25"].best(question) == [] and by["bm25"].digest != by["embedding"].digest
    assert by["bm25"].passages == by["embedding"].passages
