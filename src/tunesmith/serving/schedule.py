"""Which tokens the next step computes: one of every row that answers, and pieces of the prompts of those that have just come.

    add ──► waiting ──► running: reading, then answering ──► end
               ▲                    │
               └──── preempted ─────┘      no block left: the youngest waits and is read again

A row's `tokens` are its adapters' virtual tokens, its prompt and its answer so far; `computed` counts those whose keys and
values are in its blocks. When all are, the logits of its last token are the next one's. Prompts are read in pieces
between the answers of others, so that a long one holds up nobody (Sarathi, arXiv 2308.16369), and full blocks are shared
(`serving.blocks`).

Rows begin in the order in which they came, and none overtakes another. The oldest one that runs gets a piece in every step: the
others give their blocks for it, youngest first. So each row ends, whatever comes after it.

    plan = scheduler.plan()
    ...                                     # write what is given, compute the rest
    scheduler.done(plan)
    for piece in plan:
        if piece.answers:                   # draw the next token from the logits of token piece.end - 1
            piece.row.tokens.append(token)  # or, after its last one: scheduler.end(piece.row)
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal

from tunesmith.errors import UsageError
from tunesmith.serving.blocks import BLOCK, Blocks, blocks_of, link, root

TOKENS_A_STEP = 256


@dataclass(eq=False, slots=True)
class Row:
    """A request on its way through the steps. Raises ValueError if there is nothing to compute."""

    request: Any
    """The caller's own; not looked at."""
    key: str
    """What its keys and values depend on beside the tokens: digests and weights of its adapters, "" for the base."""
    tokens: list[int]
    """Virtual ones first, as -1 to -n, then the prompt; the caller appends the answer. It only grows."""
    answer: int
    """At most so many tokens are asked for. With 0 the prompt is read and no more."""
    given: int = 0
    """So many first tokens have keys and values that are written as they are, not computed: a prefix."""
    fresh: bool = False
    """Compute every token and take no known block: for who wants scores of the prompt. May be unset once they are there."""
    computed: int = 0
    table: list[int] = field(default_factory=list)
    """Its blocks: token i is at offset i % BLOCK of block table[i // BLOCK]. Only ever extended, until it is preempted."""
    cached: int = 0
    """How many of its tokens others had computed when it was read for the first time."""
    preemptions: int = 0
    state: Literal["new", "waiting", "running", "ended"] = "new"
    longest: int = field(init=False)
    """Tokens that it may come to have in its blocks; the last one of an answer is not read again."""
    _digests: list[bytes] = field(default_factory=list)

    def __post_init__(self):
        if not 0 <= self.given < len(self.tokens):
            raise ValueError(f"{self.given} of {len(self.tokens)} tokens are given: none is left to compute")
        self.longest = len(self.tokens) + max(self.answer - 1, 0)

    @property
    def left(self) -> int:
        """Tokens that are not in its blocks yet."""
        return len(self.tokens) - self.computed

    def digest(self, at: int) -> bytes:
        """Of its block number `at`, all of whose tokens it has."""
        while len(self._digests) <= at:
            begin = BLOCK * len(self._digests)
            before = self._digests[-1] if self._digests else root(self.key)
            self._digests.append(link(before, self.tokens[begin : begin + BLOCK]))
        return self._digests[at]


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens [begin, end) of a row in one step."""

    row: Row
    begin: int
    end: int
    given: bool = False
    """Their keys and values are written, not computed."""
    answers: bool = False
    """The last of them is the row's last: its logits are those of the next token."""


class Scheduler:
    """Rows, steps and blocks. One thread owns it."""

    def __init__(self, blocks: Blocks, rows_at_most: int, tokens_a_step: int = TOKENS_A_STEP):
        """Raises UsageError if a step had no room for a token of every row."""
        if not 0 < rows_at_most <= tokens_a_step:
            raise UsageError(f"{rows_at_most} rows at once do not fit into steps of {tokens_a_step} tokens",
                             why="every row that answers has one token in each step", fix="more tokens a step, or fewer rows")
        self.blocks, self.rows_at_most, self.tokens_a_step = blocks, rows_at_most, tokens_a_step
        self.preemptions = 0
        self._running: list[Row] = []
        self._queue: deque[Row] = deque()
        """Both in the order in which the rows came, and all that run before all that wait."""

    @property
    def rows(self) -> list[Row]:
        """All of them, oldest first."""
        return [*self._running, *self._queue]

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def add(self, row: Row) -> None:
        """A new row waits for its turn.

        Raises:
            UsageError: it could not be held by all blocks together.
        """
        room = self.blocks.count * BLOCK
        if row.longest > room:
            raise UsageError(f"a prompt and an answer of {row.longest} tokens do not fit into the memory for keys and values",
                             why=f"all of it holds {room} tokens", fix="a shorter prompt or a smaller `max_tokens`")
        if row.state != "new":
            raise ValueError(f"the row is {row.state}")
        row.state = "waiting"
        self._queue.append(row)

    def end(self, row: Row) -> None:
        """The row has its answer, or nobody wants it any more. At any time, also between `plan` and `done`; more than once does
        nothing. Its blocks are given back."""
        if row.state == "running":
            self._running.remove(row)
        elif row.state == "waiting":
            self._queue.remove(row)
        self._let_go(row)
        row.state = "ended"

    cancel = end  # what the engine calls it when the client has gone

    def plan(self) -> list[Piece]:
        """The next step. First the pieces that are given, then those to compute, rows of the same key beside each other.

        Empty when no row has anything to compute. Nothing counts as computed before `done`: a step that failed may be planned
        again.
        """
        for row in self._running:
            self._take_known(row)
        pieces: list[Piece] = []
        making: set[bytes] = set()
        answering = {row for row in self._running if row.left == 1}
        spare = self.tokens_a_step - len(answering)
        at = 0
        while at < len(self._running):  # a piece may preempt rows behind it
            row = self._running[at]
            spare -= self._cut(row, 1 if row in answering else spare, pieces, making) - (row in answering)
            at += 1
        while spare and self._queue and len(self._running) < self.rows_at_most and self._fits(self._queue[0]):
            row = self._queue.popleft()
            row.state = "running"
            self._running.append(row)
            self._take_known(row)
            spare -= self._cut(row, spare, pieces, making)
        return sorted(pieces, key=lambda piece: (not piece.given, piece.row.key))

    def done(self, plan: list[Piece]) -> None:
        """The step was computed: its full blocks can be found from now on. Pieces of rows that ended meanwhile are left out.

        Raises ValueError for another plan than the last one.
        """
        for piece in plan:
            row = piece.row
            if row.state == "ended":
                continue
            if row.state != "running" or row.computed != piece.begin:
                raise ValueError(f"not the last plan: a piece from token {piece.begin}, and {row.computed} are computed")
            row.computed = piece.end
            for at in range(piece.begin // BLOCK, piece.end // BLOCK):
                self.blocks.publish(row.table[at], row.digest(at))

    def _take_known(self, row: Row) -> None:
        """Go on behind the blocks that others have filled."""
        for block in self._known(row):
            self.blocks.hold(block)
            row.table.append(block)
            row.computed += BLOCK
            row.cached += 0 if row.preemptions else BLOCK

    def _known(self, row: Row) -> list[int]:
        """Known blocks that come next in a row that stands at the end of a block. Its last token is always computed."""
        found: list[int] = []
        at = len(row.table)
        if row.fresh or row.computed != at * BLOCK:
            return found
        while (at + 1) * BLOCK < len(row.tokens) and (block := self.blocks.find(row.digest(at))) is not None:
            found.append(block)
            at += 1
        return found

    def _cut(self, row: Row, most: int, pieces: list[Piece], making: set[bytes]) -> int:
        """Add pieces of at most so many tokens to compute; how many they are. `making`: digests of blocks that the pieces
        before fill, now or in the steps to come: who needs the same one next waits for it."""
        begin, size = row.computed, len(row.tokens)
        if not most or begin == size:
            return 0
        at = begin // BLOCK
        can_share = not row.fresh and begin % BLOCK == 0 and (at + 1) * BLOCK < size
        if can_share and row.digest(at) in making:
            return 0
        first = max(begin, row.given)
        end = self._make_room(row, min(size, first + most))
        if begin < min(end, row.given):
            pieces.append(Piece(row, begin, min(end, row.given), given=True))
        if first < end:
            pieces.append(Piece(row, first, end, answers=end == size))
        making.update(row.digest(n) for n in range(at, min(blocks_of(end), size // BLOCK)))
        return max(end - first, 0)

    def _make_room(self, row: Row, end: int) -> int:
        """Take blocks for its tokens before `end`, from younger rows if need be; up to where there are blocks now. The youngest
        keeps what it has and waits, until an older one needs it."""
        while len(row.table) * BLOCK < end:
            if not self.blocks.available:
                if self._running[-1] is row:
                    break
                self._preempt()
                continue
            row.table.append(self.blocks.take())
        return min(end, len(row.table) * BLOCK)

    def _preempt(self) -> None:
        row = self._running.pop()
        self._let_go(row)
        row.state = "waiting"
        row.preemptions += 1
        self.preemptions += 1
        self._queue.appendleft(row)

    def _fits(self, row: Row) -> bool:
        """Whether a waiting row can be read whole without taking blocks that those that run need for what they have, and for
        one more block each: it would soon have to give them back."""
        if not self._running:
            return True
        promised = sum(max(blocks_of(len(r.tokens)) - len(r.table), 0) + 1 for r in self._running)
        found = self._known(row)
        needed = blocks_of(len(row.tokens)) - sum(self.blocks.holders(block) > 0 for block in found)
        return promised + needed <= self.blocks.available

    def _let_go(self, row: Row) -> None:
        self.blocks.release(row.table)
        row.table.clear()
        row.computed = 0
