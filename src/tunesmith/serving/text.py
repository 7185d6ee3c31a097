"""Tokens to text, piece by piece: never half a character, never past a stop sequence."""

from __future__ import annotations

from dataclasses import dataclass, field

UNFINISHED = "�"
WORD_CONTEXT = 6
"""Tokens decoded again before the new ones, because a token's text can depend on its neighbours."""


@dataclass
class TextStream:
    """Text of one answer as it grows.

    `push` returns what can be shown for certain: the tail that could still become a stop sequence, or a character
    whose last bytes are missing, waits for the next token or for `finish`.
    """

    tokenizer: object
    stop: tuple[str, ...] = ()
    stopped: bool = False
    """A stop sequence was met; it is not part of the text."""
    _ids: list[int] = field(default_factory=list)
    _start: int = 0
    _text: str = ""
    """Decoded, from the beginning."""
    _shown: int = 0

    def push(self, token: int) -> str:
        self._ids.append(token)
        window = self.tokenizer.decode(self._ids[self._start :], skip_special_tokens=True)
        if window.endswith(UNFINISHED):
            return ""
        before = self.tokenizer.decode(self._ids[self._start : -1], skip_special_tokens=True).rstrip(UNFINISHED)
        self._text += window[len(before) :] if window.startswith(before) else window
        self._start = max(self._start, len(self._ids) - WORD_CONTEXT)
        return self._release()

    def finish(self) -> str:
        """The rest, when no more tokens come."""
        if self.stopped:
            return ""
        whole = self.tokenizer.decode(self._ids, skip_special_tokens=True)
        self._text = whole if whole.startswith(self._text[: self._shown]) else self._text
        rest, self._shown = self._text[self._shown :], len(self._text)
        return rest

    def _release(self) -> str:
        found = [at for s in self.stop if (at := self._text.find(s, max(0, self._shown - len(s)))) >= 0]
        if found:
            self.stopped = True
            end = max(self._shown, min(found))
        else:
            end = len(self._text) - self._waiting()
        piece, self._shown = self._text[self._shown : end], max(self._shown, end)
        return piece

    def _waiting(self) -> int:
        """Length of the longest tail that is the beginning of a stop sequence."""
        return max((n for s in self.stop for n in range(1, len(s)) if self._text.endswith(s[:n])), default=0)
