"""Answers that must have a form: JSON of a schema, or text of a grammar, by masking the logits at each step.

The library is llguidance: an Earley parser over regular lexemes, on the bytes of tokens. What it cannot hold an answer to is
refused before anything is generated; nothing of a schema is ignored.

Shapes: V = vocabulary.
"""

from __future__ import annotations

import json
from copy import copy
from functools import lru_cache
from typing import Any

import torch

from tunesmith.errors import TunesmithError, UsageError
from tunesmith.serving.text import special_tokens

WHITESPACE = r"[\x20\x0A\x0D\x09]{1,64}"
"""Between two tokens of JSON: enough for any indentation, and an end to a model that would say spaces for ever."""
OPTIONS = {"whitespace_pattern": WHITESPACE, "lenient": False, "coerce_one_of": False, "json_allowed_escapes": 'nrbtf\\"'}
"""Without \\uXXXX: spelled with it, a name that a schema describes would pass for another one, and hide it from a reader."""
MAX_DEPTH = 64
"""Of a schema. OpenAI takes 10 levels."""
MAX_CHARS = 200_000
"""Of a schema as JSON. OpenAI takes 120 000 of names and values."""

MAX_ITEMS = 20_000
"""Of the parser at one place of an answer: an object may have some thousand optional properties."""


class GrammarError(TunesmithError, RuntimeError):
    """The grammar became too complex to go on with."""


class Grammar:
    """A grammar that was compiled for a tokenizer. Each answer begins a state of its own."""

    def __init__(self, tokenizer: Any, source: str, stop_ids: frozenset[int], lark: str | None = None):
        """Raises UsageError for what cannot be compiled."""
        from llguidance import LLMatcher, LLParserLimits

        self.lark = lark
        """The same as a text in llguidance's dialect of Lark, for engines that compile it themselves."""

        limits = LLParserLimits(max_items_in_row=MAX_ITEMS, verbose_errors=False)
        self._first = LLMatcher(_vocabulary(tokenizer, stop_ids), source, log_level=0, limits=limits)
        self.stop_ids = stop_ids
        if self._first.is_error():
            raise UsageError(_short(self._first.get_error()))
        if warnings := self._first.get_grammar_warnings():
            raise UsageError(_short("; ".join(warnings)))
        probe = self._first.deep_copy()
        probe.compute_bitmask()
        if probe.is_error():
            raise UsageError("no answer can begin: the form asks for itself, or is too large", why=_short(probe.get_error()))

    def begin(self) -> State:
        return State(self._first.deep_copy(), self.stop_ids)

    def accepts(self, ids: list[int]) -> bool:
        """Whether these tokens are a whole answer."""
        state = self._first.deep_copy()
        return state.try_consume_tokens(ids) == len(ids) and state.is_accepting()


class State:
    """How far one answer has come."""

    def __init__(self, matcher: Any, stop_ids: frozenset[int]):
        self._matcher, self._stop_ids = matcher, sorted(stop_ids)

    @property
    def complete(self) -> bool:
        """Nothing may follow but an end."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def mask(self, logits_V: torch.Tensor) -> None:
        """Set the logits of what may not follow to minus infinity, in place. Raises GrammarError."""
        import numpy as np

        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise GrammarError("the grammar of this answer became too complex", why=_short(self._matcher.get_error()))
        allowed = np.zeros(len(logits_V), bool)
        known = np.unpackbits(bits, bitorder="little")[: len(allowed)].astype(bool)
        allowed[: len(known)] = known
        allowed[[s for s in self._stop_ids if s < len(allowed)]] = self._matcher.is_accepting()
        if not allowed.any():
            raise GrammarError("no token of this vocabulary can go on with the answer")
        logits_V.masked_fill_(~torch.from_numpy(allowed).to(logits_V.device), -torch.inf)

    def take(self, token: int) -> None:
        """Go on by a token that the mask allowed; a stop token ends the answer and is no part of it."""
        if token not in self._stop_ids and not self._matcher.consume_token(token):
            raise GrammarError("the grammar of this answer became too complex", why=_short(self._matcher.get_error()))


def of_json(tokenizer: Any, schema: dict, stop_ids: frozenset[int]) -> Grammar:
    """JSON that is valid against a schema, draft 2020-12 as far as llguidance goes.

    Raises:
        UsageError: the schema asks for something that cannot be held, or is none.
    """
    from llguidance import LLMatcher

    check(schema)
    try:
        source = LLMatcher.grammar_from_json_schema(_plain(schema), overrides=OPTIONS)
    except (ValueError, RecursionError) as error:
        raise UsageError(_short(str(error))) from error
    return Grammar(tokenizer, source, stop_ids, f"start: {inline(schema)}\n")


def of_lark(tokenizer: Any, text: str, stop_ids: frozenset[int]) -> Grammar:
    """Text of a grammar in llguidance's dialect of Lark. Raises UsageError."""
    from llguidance import LLMatcher

    return Grammar(tokenizer, LLMatcher.grammar_from_lark(text), stop_ids, text)


def inline(schema: dict) -> str:
    """A schema as a rule of a Lark grammar."""
    return "%json " + json.dumps(_plain(schema) | {"x-guidance": OPTIONS})


def check(schema: dict) -> None:
    """Raises UsageError for what llguidance takes and would not hold, and for schemas without measure."""
    pending: list[tuple[Any, int]] = [(schema, 1)]
    while pending:
        value, depth = pending.pop()
        if depth > 2 * MAX_DEPTH:  # a level of a schema is a keyword and what it holds
            raise UsageError(f"the schema is nested more than {MAX_DEPTH} levels deep")
        if isinstance(value, dict):
            least, required = value.get("minProperties"), value.get("required")
            named = len(set(map(str, required))) if isinstance(required, list) else 0
            if isinstance(least, int) and least > named + 1:
                raise UsageError("minProperties above the number of required properties and one more is not supported: a name "
                                 "that comes twice cannot be told from two names")
            pending += [(v, depth + 1) for v in value.values()]
        elif isinstance(value, list):
            pending += [(v, depth + 1) for v in value]
    try:
        written = json.dumps(schema, allow_nan=False)
    except ValueError as error:
        raise UsageError("the schema has a number that is not finite, which is not JSON") from error
    if len(written) > MAX_CHARS:
        raise UsageError(f"the schema is longer than {MAX_CHARS} characters")


def _plain(schema: dict) -> dict:
    """Without llguidance's own key, which would change what is held: in a schema it is an annotation."""
    return {k: v for k, v in schema.items() if k != "x-guidance"}


class _Words:
    """A vocabulary as llguidance asks for it.

    Its own reading of a tokenizer takes every added token of the form <...> for a control token, so that no text could hold
    `<think>`. Here those are special which the tokenizer itself leaves out of texts.
    """

    def __init__(self, tokenizer: Any, stop_ids: frozenset[int]):
        from llguidance.hf import from_tokenizer

        read = from_tokenizer(tokenizer, eos_token=sorted(stop_ids))
        self.tokens = [read.decode_bytes([i]) for i in range(read.vocab_size)]
        self.eos_token_id, self.bos_token_id = min(stop_ids), None
        self.special_token_ids = sorted(special_tokens(tokenizer))
        self._encode = copy(tokenizer.backend_tokenizer).encode  # of its own: it is called on the worker's thread

    def __call__(self, text: bytes) -> list[int]:
        return self._encode(text.decode(errors="replace"), add_special_tokens=False).ids


@lru_cache(maxsize=8)
def _vocabulary(tokenizer: Any, stop_ids: frozenset[int]):
    """The tokenizer's tokens as bytes. Takes up to a second, so it is kept."""
    from llguidance import LLTokenizer, TokenizerWrapper

    try:
        return LLTokenizer(TokenizerWrapper(_Words(tokenizer, stop_ids)), eos_token=sorted(stop_ids))
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError("answers of this base cannot be held to a form", why=f"its tokenizer: {_short(str(error))}") from error


def _short(text: str) -> str:
    return " ".join(text.split())[:400]
