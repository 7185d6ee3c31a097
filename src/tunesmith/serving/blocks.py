"""Who holds which block of keys and values, and which blocks are known by what they hold.

Bookkeeping alone: numbers of blocks, no tensor. After PagedAttention (arXiv 2309.06180).

    free ──take──► held, being filled ──publish──► held, full and known ──release by all──► idle, still known
      ▲                    │                              ▲                                     │     │
      └──────release───────┘                              └───────────────hold──────────────────┘     │
      └───────────────────────────────take: the longest idle, which is forgotten──────────────────────┘

A full block is known by the SHA-256 of its adapters' key and of every token from the first to its last, so two that are known
by the same digest hold the same numbers. A block that is known is never written again.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from struct import Struct

BLOCK = 32
"""Tokens of a block; the same as the kernels' page."""
_TOKENS = Struct(f"<{BLOCK}q")


def root(key: str) -> bytes:
    """Where the chain of digests of these adapters begins."""
    return hashlib.sha256(hashlib.sha256(key.encode()).digest()).digest()  # twice: no key can pass for a link of a chain


def link(before: bytes, tokens: Sequence[int]) -> bytes:
    """The digest of a full block: of all before it, and of its own BLOCK tokens. Virtual tokens are negative."""
    return hashlib.sha256(before + _TOKENS.pack(*tokens)).digest()


def blocks_of(tokens: int) -> int:
    """How many blocks so many tokens fill, the last one perhaps in part."""
    return -(-tokens // BLOCK)


class Blocks:
    """A pool of `count` blocks, 0 to count - 1. One thread owns it."""

    def __init__(self, count: int):
        self.count = count
        self._holders = [0] * count
        self._free = list(range(count - 1, -1, -1))
        """Taken from the end, so that memory that was used before is used again first."""
        self._idle: OrderedDict[int, None] = OrderedDict()
        """Known and held by nobody, longest first."""
        self._known: dict[bytes, int] = {}
        self._digests: dict[int, bytes] = {}

    @property
    def available(self) -> int:
        """How many can be taken now: those that are free, and those that are idle."""
        return len(self._free) + len(self._idle)

    @property
    def known(self) -> int:
        """How many are full and can be found."""
        return len(self._known)

    def take(self) -> int:
        """A block to fill, held once. Raises LookupError when all are held."""
        if self._free:
            block = self._free.pop()
        elif self._idle:
            block, _ = self._idle.popitem(last=False)
            del self._known[self._digests.pop(block)]
        else:
            raise LookupError(f"all {self.count} blocks are held")
        self._holders[block] = 1
        return block

    def find(self, digest: bytes) -> int | None:
        """The block that is known by this digest. It may be gone after the next `take` unless it is held."""
        return self._known.get(digest)

    def holders(self, block: int) -> int:
        """How many rows hold it."""
        return self._holders[block]

    def hold(self, block: int) -> None:
        """One more row reads this block, which `find` has just returned."""
        self._idle.pop(block, None)
        self._holders[block] += 1

    def publish(self, block: int, digest: bytes) -> None:
        """This held block is full now and can be found. If another one is known by the digest already, that one stays, and
        this one remains its row's own."""
        if digest not in self._known:
            self._known[digest] = block
            self._digests[block] = digest

    def release(self, table: Sequence[int]) -> None:
        """A row lets go of its blocks. Its last one will be taken first: without the first ones the others cannot be found."""
        for block in reversed(table):
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            if block in self._digests:
                self._idle[block] = None
            else:
                self._free.append(block)
