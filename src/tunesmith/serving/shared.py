"""Requests that share the base's passes, each with its own adapters: the scheduler's plan, the runner's step, and the answers.

    add(job) ──► scheduler ──► step() ──► runner ──► logits ──► answer ──► token to the job

One thread owns all of it; the engine calls `step` as long as anything is `busy`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from tunesmith.engine.memory import available_bytes
from tunesmith.serving.adapters import Adapter, Mix, check_mix, read
from tunesmith.serving.answer import Answer, Token
from tunesmith.serving.blocks import BLOCK, Blocks, blocks_of
from tunesmith.serving.interface import Job, call
from tunesmith.serving.logprobs import Scored, score
from tunesmith.serving.runner import Runner, shapes
from tunesmith.serving.schedule import Piece, Row, Scheduler
from tunesmith.serving.shelf import Shelf

ROWS = 16
"""Requests that are answered at once; further ones wait."""
CACHE_BYTES, CACHE_SHARE = 1 << 30, 0.25
"""For keys and values, and of the memory that is free at the start: the smaller one, but room for one whole context."""


@dataclass(eq=False, slots=True)
class _Asked:
    """What a row is to us."""

    job: Job
    mix: Mix
    answer: Answer
    virtual: int
    begun: bool = field(default=False)


class Shared:
    """A base and the adapters that go beside each other on it. It takes the model over.

    Args:
        context_tokens: of a prompt and its answer.
        adapter_bytes: adapters are kept in memory up to so much; others are read again when they are asked for.
        cache_bytes: of keys and values; None: CACHE_BYTES, or CACHE_SHARE of free memory.
    """

    def __init__(self, model, context_tokens: int, adapter_bytes: int, cache_bytes: int | None = None):
        of_token = 2 * sum(heads * size for heads, size in shapes(model)) * model.dtype.itemsize
        most = ROWS * blocks_of(context_tokens)
        if cache_bytes is None:
            cache_bytes = min(CACHE_BYTES, int((available_bytes() or CACHE_BYTES) * CACHE_SHARE))
        count = max(min(most, cache_bytes // (of_token * BLOCK)), blocks_of(context_tokens))
        self._probe_table = list(range(count, count + blocks_of(context_tokens)))  # pages beyond those of requests
        self._runner = Runner(model, count + len(self._probe_table))
        self.vocabulary = self._runner.vocabulary
        self._scheduler = Scheduler(Blocks(count), ROWS)
        self._known = 0
        """Tokens of prompts that were in pages already."""
        self.read: Callable[[Path], Adapter] = lambda directory: read(directory, model, self._runner.library)
        """An adapter of a directory; on any thread. Raises AdapterError: it does not fit."""
        self.shelf = Shelf(self.read, adapter_bytes, self._left)

    def probe(self, adapter: Adapter | None, prompt: list[int]) -> torch.Tensor:
        """[V] logits of the token after a prompt, on pages that no request uses."""
        mix, virtual = _mix(adapter)
        row = Row(None, "", [*range(-1, -virtual - 1, -1), *prompt], 0, table=self._probe_table)
        given = virtual if adapter and adapter.keys_values else 0
        if given:
            self._runner.give(row.table, 0, given, mix)
        piece = Piece(row, given, len(row.tokens))
        return self._runner([piece], [mix], [piece.end - piece.begin - 1])[0]

    def add(self, job: Job) -> None:
        """Its adapters are read if they had to leave. Raises what the job is told: AdapterError, UsageError, IndexError."""
        request = job.request
        if (largest := max(request.prompt, default=0)) >= self.vocabulary:
            raise IndexError(f"token {largest} is beyond the {self.vocabulary} that the base has")
        mix = tuple((self.shelf.get(digest), weight) for digest, weight in job.served.mix)
        check_mix(mix)
        virtual = sum(adapter.virtual_tokens for adapter, _ in mix)
        given = virtual if mix and mix[0][0].keys_values else 0
        answer = Answer(0, request, self._runner.device, job.served.stop_ids)
        scored = request.echo and request.logprobs is not None
        key = " ".join(f"{digest}*{weight!r}" for digest, weight in job.served.mix)
        self._scheduler.add(Row(_Asked(job, mix, answer, virtual), key, [*range(-1, -virtual - 1, -1), *request.prompt],
                                request.max_new_tokens, given, fresh=scored))

    def drop(self, unwanted: Callable[[Job], bool]) -> list[Job]:
        """Take requests that have no token yet off."""
        gone = [row for row in self._scheduler.rows if not row.request.begun and unwanted(row.request.job)]
        for row in gone:
            self._scheduler.end(row)
        return [row.request.job for row in gone]

    @property
    def load(self) -> tuple[int, int]:
        """(requests that are read or answered, requests that wait)."""
        return self._scheduler.running, self._scheduler.waiting

    @property
    def facts(self) -> dict[str, int]:
        blocks = self._scheduler.blocks
        return {"adapters_registered": len(self.shelf), "adapters_loaded": self.shelf.loaded,
                "adapter_bytes": self.shelf.nbytes, "adapters_read_again": self.shelf.reads,
                "cache_tokens": blocks.count * BLOCK, "cache_tokens_held": (blocks.count - blocks.available) * BLOCK,
                "prompt_tokens_known": self._known, "rows_read_again": self._scheduler.preemptions}

    @property
    def busy(self) -> bool:
        return bool(self._scheduler.running or self._scheduler.waiting)

    def step(self) -> None:
        """One pass: a token for every row that answers."""
        for row in self._scheduler.rows:
            if row.request.job.cancelled:
                self._end(row)
                call(row.request.job, row.request.job.on_token, Token(0, None, "stop"))
        plan: list[Piece] = []
        try:
            plan = self._scheduler.plan()
            self._compute(plan)
        except BaseException as error:  # whatever it is, it is these requests' trouble: the next ones are answered
            for row in {piece.row: None for piece in plan} or self._scheduler.rows:
                self._end(row)
                call(row.request.job, row.request.job.on_error, error)

    def fail(self, error: BaseException) -> None:
        """End all requests."""
        for row in self._scheduler.rows:
            self._end(row)
            call(row.request.job, row.request.job.on_error, error)

    def _compute(self, plan: list[Piece]) -> None:
        for piece in plan:
            if piece.given:
                self._runner.give(piece.row.table, piece.begin, piece.end, piece.row.request.mix)
        pieces = [piece for piece in plan if not piece.given]
        if not pieces:
            self._scheduler.done(plan)
            return
        wanted, at = [], 0
        for piece in pieces:
            count = piece.end - piece.begin
            wanted += range(at, at + count) if piece.row.fresh else [at + count - 1] if piece.answers else []
            at += count
        logits_NV = self._runner(pieces, [p.row.request.mix for p in pieces], wanted)
        self._scheduler.done(plan)
        likeliest = logits_NV.argmax(-1).tolist() if any(p.answers and p.row.request.answer.greedy for p in pieces) else None
        at = 0
        for piece in pieces:
            if piece.row.fresh:
                self._score(piece, logits_NV[at : at + piece.end - piece.begin])
                at += piece.end - piece.begin - (1 if piece.answers else 0)
            if piece.answers:
                self._answer(piece.row, logits_NV[at], likeliest[at] if likeliest else None)
                at += 1

    def _score(self, piece: Piece, logits_NV: torch.Tensor) -> None:
        """Scores of the prompt's tokens that follow those of the piece."""
        asked, request = piece.row.request, piece.row.request.job.request
        if piece.begin <= asked.virtual:  # the first piece, perhaps of a row that is read again
            asked.answer.said = [Scored(request.prompt[0], None)]
        begin = max(piece.begin, asked.virtual)
        end = min(piece.end, len(piece.row.tokens) - 1)
        if begin < end:
            ids = piece.row.tokens[begin + 1 : end + 1]
            asked.answer.said += score(logits_NV[begin - piece.begin : end - piece.begin], ids, request.logprobs)

    def _answer(self, row: Row, logits_V: torch.Tensor, likeliest: int | None) -> None:
        asked = row.request
        job, row.fresh = asked.job, False
        token = asked.answer.next(logits_V, likeliest, job.cancelled)
        if not asked.begun:
            asked.begun, token = True, replace(token, known=max(row.cached - asked.virtual, 0))
        if token.finish or token.error:
            self._end(row)
        else:
            row.tokens.append(token.id)
        if token.error:
            call(job, job.on_error, token.error)
        else:
            call(job, job.on_token, token)

    def _end(self, row: Row) -> None:
        self._scheduler.end(row)
        self._known += row.cached
        for adapter, _ in row.request.mix:
            if adapter not in self.shelf:
                self._left(adapter)

    def _left(self, adapter: Adapter) -> None:
        """An adapter is on the shelf no more: what the layers remember of it goes with its last request."""
        if not any(adapter is used for row in self._scheduler.rows for used, _ in row.request.mix):
            self._runner.sites.forget(adapter)


def _mix(adapter: Adapter | None) -> tuple[Mix, int]:
    return ((adapter, 1.0),) if adapter else (), adapter.virtual_tokens if adapter else 0

