"""Documents beside a question: the baseline that needs no training, where what is missing are facts.

    files -> passages of at most `chunk_tokens` tokens -> the best for a question -> put before it in the user's message

BM25 is bm25s' (Lu 2024, arXiv:2407.03618): Lucene's variant, in NumPy alone, released this year; rank-bm25, the usual choice,
had its last release in 2022. Words are folded as duplicates are (case, accents' forms, punctuation), Chinese and Japanese
taken sign by sign; no stop words and no stemming, which would have to know the language: rare words weigh most anyway.
Embeddings are those of `evals.embed`.

Shapes: P = passages, D = the embedder's width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.data.passages import passages as cut
from tunesmith.data.read import find_files, is_text, name_of, read_records, read_text
from tunesmith.data.rows import Message
from tunesmith.data.similar import fold
from tunesmith.errors import DataError, Problem
from tunesmith.evals.items import Item
from tunesmith.recipe.evaluation import Retrieval
from tunesmith.recipe.load import Loaded
from tunesmith.store.files import sha256_json

if TYPE_CHECKING:
    import numpy as np

WORD = re.compile(r"[぀-ヿ㐀-鿿豈-﫿]|[^\W぀-ヿ㐀-鿿豈-﫿]+")
INTRODUCTION = "Here is what the documents say. Use it where it helps."
Search = Callable[[str], "np.ndarray"]
"""A question to a score for each passage, [P]; nothing is shown that scores 0 or less."""


@dataclass(frozen=True, slots=True)
class Passage:
    id: str
    """`file#n`: the n-th passage of a file; `file:line#n` of a row."""
    text: str


@dataclass(frozen=True, slots=True)
class Library:
    """Passages, and how the best for a question are found."""

    passages: list[Passage]
    search: Search
    top: int
    digest: str
    """Of the passages, the way of searching, and the embedder's bytes."""
    found: dict[str, list[tuple[Passage, float]]] = field(default_factory=dict)
    """What was found before: several systems ask the same."""

    def best(self, question: str) -> list[tuple[Passage, float]]:
        """Up to `top` passages with their scores, the best first; of equal ones the earlier first."""
        import numpy as np

        if question not in self.found:
            scores_P = self.search(question)
            order = np.argsort(-scores_P, kind="stable")[: self.top]
            self.found[question] = [(self.passages[i], float(scores_P[i])) for i in order if scores_P[i] > 0]
        return self.found[question]


def library(loaded: Loaded, tokenizer) -> Library:
    """What `eval.retrieval` names, read and indexed.

    Raises:
        DataError: files that are missing, empty or unreadable, or rows without text.
        BaseModelError: the embedder cannot be had.
    """
    asked = loaded.recipe.eval.retrieval
    found = list(_passages(asked, loaded.folder, tokenizer))
    texts = [p.text for p in found]
    search, extra = _by_meaning(texts, asked.embedder, loaded.folder) if asked.by == "embedding" else (by_words(texts), None)
    return Library(found, search, asked.top, sha256_json([[p.id, p.text] for p in found] + [asked.by, asked.top, extra]))


def with_passages(item: Item, shown: list[Passage]) -> list[Message]:
    """The item's messages, with passages before the question in the user's last one; as they are if there are none."""
    if not shown:
        return item.messages
    last = max(i for i, m in enumerate(item.messages) if m["role"] == "user")
    told = "\n\n".join(f"[{n}] {p.text}" for n, p in enumerate(shown, 1))
    asked = {**item.messages[last], "content": f"{INTRODUCTION}\n\n{told}\n\n{item.messages[last]['content']}"}
    return [*item.messages[:last], asked, *item.messages[last + 1 :]]


def by_words(texts: list[str]) -> Search:
    """BM25 (k1 1.5, b 0.75) over the words of texts."""
    import logging

    import bm25s
    import numpy as np

    logging.getLogger("bm25s").setLevel(logging.WARNING)
    index = bm25s.BM25(backend="numpy")
    index.index([words(t) for t in texts], show_progress=False)

    def search(question: str) -> np.ndarray:
        known = [w for w in words(question) if w in index.vocab_dict]
        return index.get_scores(known) if known else np.zeros(len(texts))

    return search


def words(text: str) -> list[str]:
    return WORD.findall(fold(text))


def _by_meaning(texts: list[str], ref: str, folder: Path) -> tuple[Search, str]:
    """Cosine of embeddings; and the embedder's digest."""
    from tunesmith.evals.embed import load

    embed = load(ref, folder)
    passages_PD = embed(texts)
    return lambda question: passages_PD @ embed([question])[0], embed.base.digest


def _passages(asked: Retrieval, folder: Path, tokenizer) -> Iterator[Passage]:
    def tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    any_text = False
    for name, text in _texts(asked, folder):
        paragraphs = [p.strip() for p in re.split(r"\n\s*\n", text.replace("\r\n", "\n")) if p.strip()]
        for number, passage in enumerate(cut(paragraphs, asked.chunk_tokens, tokens), 1):
            any_text = True
            yield Passage(f"{name}#{number}", passage.text)
    if not any_text:
        raise DataError("the documents hold no text", where=str(folder), fix="see eval.retrieval.documents")


def _texts(asked: Retrieval, folder: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of each document."""
    problems = []
    for path in dict.fromkeys(find_files(asked.documents, folder)):
        name = name_of(path, folder)
        if is_text(path):
            yield name, read_text(path, name)
            continue
        for record in read_records(path, name):
            if isinstance(record, Problem):
                problems.append(record)
            elif not isinstance(record.value.get("text"), str):
                problems.append(Problem(code="no_text", where=record.where, message="a document without `text`",
                                        fix="give each row a key `text`, and perhaps `title`"))
            else:
                title = record.value.get("title")
                yield record.where, (f"{title}\n\n" if isinstance(title, str) else "") + record.value["text"]
    if problems:
        raise DataError(f"{len(problems)} problem{'s' * (len(problems) > 1)} in the documents", problems=problems[:20])
