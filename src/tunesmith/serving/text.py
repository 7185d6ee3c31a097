"""Tokens to text, piece by piece: never half a character, never past a stop sequence."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import lru_cache

UNFINISHED = "�"
ENCODING = threading.Lock()
"""Held by who turns text into tokens. A tokenizer is told how to read special tokens, and then it reads: of two threads at once
one would get the other's way. Tokens to text needs no lock."""


def decode(tokenizer, ids: list[int], keep: frozenset[int] = frozenset()) -> str:
    """Text of an answer: without special tokens, but for those to `keep`, and exactly as it was generated (no "clean-up" of
    spaces)."""
    if keep:
        ids = [i for i in ids if i in keep or i not in special_tokens(tokenizer)]
    return tokenizer.decode(ids, skip_special_tokens=not keep, clean_up_tokenization_spaces=False)


@lru_cache(maxsize=32)
def special_tokens(tokenizer) -> dict[int, str]:
    """Tokens that are no text, and how templates write them."""
    found = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    return found | {i: t.content for i, t in tokenizer.added_tokens_decoder.items() if t.special}


@dataclass
class TextStream:
    """Text of one answer as it grows.

    `push` returns what can be shown for certain: the tail that could still become a stop sequence, or a character
    whose last bytes are missing, waits for the next token or for `finish`.

        ids     t0 t1 t2 | t3 t4 | t5 t6         t5 may end in half a character: it waits for t6
                         context read            decoded again with what follows, because a token's text can
                                                 depend on the one before it
    """

    tokenizer: object
    stop: tuple[str, ...] = ()
    keep: frozenset[int] = frozenset()
    """Special tokens that are text here: marks of a call."""
    stopped: bool = False
    """A stop sequence was met; it is not part of the text."""
    _ids: list[int] = field(default_factory=list)
    _context: int = 0
    _read: int = 0
    """Tokens whose text is in `_text`."""
    _text: str = ""
    _shown: int = 0

    def push(self, token: int) -> str:
        self._ids.append(token)
        window = decode(self.tokenizer, self._ids[self._context :], self.keep)
        if window.endswith(UNFINISHED):
            return ""
        self._take(window)
        return self._release(hold=True)

    def finish(self) -> str:
        """The rest, when no more tokens come."""
        if self._read < len(self._ids):
            self._take(decode(self.tokenizer, self._ids[self._context :], self.keep))
        return self._release(hold=False)

    def _take(self, window: str) -> None:
        known = decode(self.tokenizer, self._ids[self._context : self._read], self.keep)
        self._text += window[len(known) :]
        self._context, self._read = self._read, len(self._ids)

    def _release(self, hold: bool) -> str:
        """What is new up to the stop sequence that is complete first, or up to what may become one."""
        if self.stopped:
            return ""
        found = [(at + len(s), at) for s in self.stop if (at := self._text.find(s, self._shown)) >= 0]
        self.stopped = bool(found)
        end = min(found)[1] if found else len(self._text) - (self._waiting() if hold else 0)
        piece, self._shown = self._text[self._shown : end], end
        return piece

    def _waiting(self) -> int:
        """Length of the longest tail that is the beginning of a stop sequence."""
        return max((n for s in self.stop for n in range(1, len(s)) if self._text.endswith(s[:n])), default=0)
