"""Scores of tokens as OpenAI writes them: one shape for completions, another for chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunesmith.serving.logprobs import Scored
from tunesmith.serving.text import UNFINISHED


def of_text(tokenizer: Any, scores: Sequence[Scored], offset: int) -> dict:
    """`logprobs` of a completion's choice: four lists, an entry a token. A stop token is among them, an echoed prompt too.

    `text_offset` counts characters of the tokens' own texts from `offset`. Tokens with the same text (halves of a character)
    share an entry of `top_logprobs`, the likeliest one's.
    """
    texts = [words(tokenizer, [s.id]) for s in scores]
    offsets = [offset]
    for text in texts:
        offsets.append(offsets[-1] + len(text))
    return {"tokens": texts, "token_logprobs": [s.logprob for s in scores],
            "top_logprobs": [None if s.logprob is None else _by_word(tokenizer, s) for s in scores],
            "text_offset": offsets[:-1]}


def of_chat(tokenizer: Any, scores: Sequence[Scored]) -> dict:
    """`logprobs` of a chat's choice."""
    return {"content": [_entry(tokenizer, s.id, s.logprob) | {"top_logprobs": [_entry(tokenizer, *t) for t in s.top]}
                        for s in scores], "refusal": None}


def words(tokenizer: Any, ids: list[int]) -> str:
    """Text of tokens, the special ones included."""
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def _by_word(tokenizer: Any, scored: Scored) -> dict[str, float]:
    found: dict[str, float] = {}
    for token, logprob in (*scored.top, (scored.id, scored.logprob)):
        found.setdefault(words(tokenizer, [token]), logprob)
    return found


def _entry(tokenizer: Any, token: int, logprob: float) -> dict:
    text = words(tokenizer, [token])
    return {"token": text, "logprob": logprob, "bytes": None if UNFINISHED in text else list(text.encode())}
