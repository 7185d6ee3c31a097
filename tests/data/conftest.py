"""Rows by hand, files by line, and a dataset without the rest of a run."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def write(tmp_path):
    """`write("a.jsonl", value, "a raw line", ...)`: a file of JSON values and lines as they are; returns its path."""

    def make(name: str, *lines, end: str = "\n", encoding: str = "utf-8"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
        path.write_bytes("".join(line + end for line in text).encode(encoding))
        return path

    return make


@pytest.fixture(scope="session")
def chat():
    """`chat(question, answer, where)`: a row."""
    from tunesmith.data.rows import Row

    def make(question: str, answer: str, where: str = "a.jsonl:1", system: str | None = None):
        turns = [("system", system), ("user", question), ("assistant", answer)]
        return Row([{"role": role, "content": text} for role, text in turns if text is not None], where)

    return make


@pytest.fixture
def dataset_of(home, tiny_tokenizer):
    """`dataset_of(recipe_path)`: prepare it with the tiny tokenizer."""
    from tunesmith.data.prepare import prepare
    from tunesmith.recipe.load import load

    def run(recipe, tokenizer=tiny_tokenizer):
        return prepare(load(recipe), tokenizer)

    return run
