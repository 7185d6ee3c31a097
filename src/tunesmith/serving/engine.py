"""One base, many adapters, by name; requests from many threads, answered by one.

A worker thread owns the models. It works in steps: one pass of the base for all requests whose adapters can share it
(`shared`), and one token of a batch of those that cannot (`alone`). Adapters come and go on the same thread, between two steps;
they are read before, on the thread that asks for it.

                             ┌─► Shared: scheduler, runner, adapters as data ─┐
    submit ─► waiting ─► admit                                                ├─► on_token, on_error
                             └─► Alone: models of their own, batch by batch ──┘
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

from tunesmith.errors import BusyError, UsageError
from tunesmith.models.base import Base
from tunesmith.serving.adapters import Adapter, why_alone
from tunesmith.serving.answer import Token
from tunesmith.serving.interface import BaseEngine, Job, Served, call, closed, no_effect, same_template, unknown
from tunesmith.serving.sampling import Request
from tunesmith.serving.text import ENCODING
from tunesmith.template.fingerprint import PROBES
from tunesmith.template.render import generation_prompt, stop_ids

ADAPTER_BYTES = 1 << 30
"""Of adapters in memory, unless it is said otherwise."""
PROBE_TOKENS = 8
"""Last ones of a question that an adapter has to change the logits of: the shorter, the sooner it is loaded."""
WAITING_MOST = 512
"""Requests that may wait; who comes then is told to come back."""


class Engine(BaseEngine):
    """Serve a base and adapters. Close it with `close()`."""

    def __init__(self, base: Base, tokenizer, dtype: str, device: str, created: int, *, adapter_bytes: int = ADAPTER_BYTES,
                 cache_bytes: int | None = None, waiting_most: int = WAITING_MOST):
        from tunesmith.engine.fast import why_not_base
        from tunesmith.engine.memory import keep_pages
        from tunesmith.serving.alone import Alone
        from tunesmith.serving.shared import Shared

        keep_pages()
        self.base, self.dtype, self._device = base, dtype, device
        model = self._new_model()
        self._context_tokens = int(getattr(model.config, "max_position_embeddings", 2048))
        self.why_alone = why_not_base(model.config, self._context_tokens)
        """Why requests for this base cannot share its passes, or None."""
        self._shared = None
        if not self.why_alone:
            self._shared, model = Shared(model, self._context_tokens, adapter_bytes, cache_bytes), None
        self._alone = Alone(self._new_model if model is None else lambda: model)
        self.served = {base.ref: Served(base.ref, None, tokenizer, frozenset(stop_ids(tokenizer)), created, base.ref,
                                        self._context_tokens)}
        self._adapters: frozenset[str] = frozenset()
        """Of all that is served."""
        self._base_probes: dict[tuple[int, ...], object] = {}
        self._waiting_most = waiting_most
        self._waiting: deque[Job] = deque()
        self._changes: deque[tuple[Callable[[], None], Future]] = deque()
        self._news = threading.Condition()
        self._closing = False
        self._worker = threading.Thread(target=self._work, name="generation", daemon=True)
        self._worker.start()

    def _new_model(self):
        import torch

        from tunesmith.models.load import model_of

        return model_of(self.base, getattr(torch, self.dtype), self._device)

    def add(self, names: list[str], adapter_dir: Path, tokenizer, template_fingerprint: str, created: int) -> None:
        same_template(tokenizer, template_fingerprint, adapter_dir)
        alone = self._shared is None or why_alone(adapter_dir)
        adapter = None if alone else self._shared.read(adapter_dir)
        if alone:
            self._alone.model  # noqa: B018 - loaded here, if it is the first, and not between two steps
        with ENCODING:
            stops = frozenset(stop_ids(tokenizer))
            prompt = generation_prompt(tokenizer, PROBES["one_turn"][0][:1])[-PROBE_TOKENS:]
        made = Served("", None, tokenizer, stops, created, str(adapter_dir), self._context_tokens,
                      template=tokenizer.chat_template or "")
        self._change(lambda: self._load(names, made, adapter, prompt))

    def remove(self, name: str) -> None:
        """Serve this name no more, and free the adapter if it was its last one. Answers that have begun are finished;
        requests that wait get an error.

        Raises:
            NotFoundError: no such name.
            UsageError: it is the base.
            TunesmithError: the engine is closed.
        """
        self._change(lambda: self._unload(name))

    def mixed(self, parts: Sequence[tuple[Served, float]]) -> Served:
        """What answers with several adapters at once, each with its weight: y = W x + sum of weight * s B A x.

        Raises:
            UsageError: they are not LoRAs of one chat template, or a weight is no number.
        """
        first = parts[0][0]
        for served, weight in parts:
            if not math.isfinite(weight):
                raise UsageError(f"the weight of `{served.name}` is {weight}", fix="give a finite number")
            if not served.adds_up:
                raise UsageError(f"`{served.name}` cannot be mixed", fix="mix LoRA adapters of one base",
                                 why="only LoRA without DoRA is a sum that has a weight")
            if served.template != first.template:
                raise UsageError(f"`{served.name}` and `{first.name}` have different chat templates",
                                 fix="mix adapters that were trained with the same one")
        mix = tuple((served.mix[0][0], float(weight)) for served, weight in parts)
        return replace(first, name=" + ".join(f"{weight:g} {served.name}" for served, weight in parts), mix=mix,
                       adapter=" ".join(digest for digest, _ in mix))

    def _change(self, change: Callable[[], None]) -> None:
        """Have the worker do this between two steps, and wait for it."""
        done: Future = Future()
        with self._news:
            if self._closing:
                raise closed()
            self._changes.append((change, done))
            self._news.notify()
        done.result()

    def _load(self, names: list[str], made: Served, adapter: Adapter | None, prompt: list[int]) -> None:
        """`adapter`: None if it has to stand alone."""
        adapter_dir = Path(made.root)
        if taken := next((n for n in names if n in self.served), None):
            raise UsageError(f"the name `{taken}` is served already", fix="remove it first, or take another name")
        fresh = adapter is None or adapter.digest not in self._adapters
        if adapter is None:
            inside = self._alone.put(adapter_dir)
            virtual = self._alone.virtual_tokens(inside)
        else:
            self._shared.shelf.put(adapter, adapter_dir)
            inside, virtual = adapter.digest, adapter.virtual_tokens
        try:
            self._probe(prompt, inside, adapter, adapter_dir)
        except Exception:
            if fresh:
                self._free(inside, adapter is None)
            raise
        made = replace(made, adapter=inside, context_tokens=self._context_tokens - virtual)
        if adapter:
            made = replace(made, mix=((inside, 1.0),), adds_up=adapter.adds_up)
        self.served = self.served | {name: replace(made, name=name) for name in names}
        self._adapters = self._adapters | {inside}

    def _unload(self, name: str) -> None:
        gone = self.find(name)
        if gone.adapter is None:
            raise UsageError("the base cannot be removed", why=f"`{name}` is what the adapters stand on")
        self.served = {n: s for n, s in self.served.items() if n != name}
        if any(s.adapter == gone.adapter for s in self.served.values()):
            return

        def stranded(job: Job) -> bool:
            return gone.adapter in needed(job.served)

        self._adapters = self._adapters - {gone.adapter}
        with self._news:
            left = [job for job in self._waiting if stranded(job)]
            self._waiting = deque(job for job in self._waiting if job not in left)
        left += self._alone.drop(stranded) + (self._shared.drop(stranded) if self._shared else [])
        for job in left:
            call(job, job.on_error, unknown(job.served.name, self.served))
        self._free(gone.adapter, not gone.mix)

    def _free(self, inside: str, alone: bool) -> None:
        if alone:
            self._alone.free(inside)
        else:
            self._shared.shelf.forget(inside)

    def submit(self, served: Served, request: Request, on_token: Callable[[Token], None],
               on_error: Callable[[BaseException], None]) -> Job:
        job = Job(served, request, on_token, on_error)
        with self._news:
            if self._closing:
                raise closed()
            if not needed(served) <= self._adapters:
                raise unknown(served.name, self.served)
            self._waiting.append(job)
            self._news.notify()
        return job

    def refuse_if_full(self) -> None:
        if self.load["waiting"] >= self._waiting_most:
            raise BusyError(f"{self._waiting_most} requests are waiting already", fix="ask again in a moment")

    def together(self) -> threading.Condition:
        return self._news

    @property
    def load(self) -> dict[str, int]:
        parts = [part.load for part in (self._shared, self._alone) if part]
        return {"running": sum(running for running, _ in parts),
                "waiting": sum(waiting for _, waiting in parts) + len(self._waiting)}

    @property
    def facts(self) -> dict[str, int]:
        return self._shared.facts if self._shared else {}

    @property
    def alive(self) -> bool:
        return self._worker.is_alive()

    def close(self) -> None:
        with self._news:
            self._closing = True
            self._news.notify()
        self._worker.join(timeout=60)

    def _work(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._waiting or self._changes or self._closing or self._busy)
                if self._closing:
                    break
                changes, self._changes = list(self._changes), deque()
                arrived = []
                if not changes:
                    arrived, self._waiting = list(self._waiting), deque()
            for change, done in changes:
                _settle(change, done)
            for job in arrived:
                self._admit(job)
            if self._shared and self._shared.busy:
                self._shared.step()
            if self._alone.busy:
                self._alone.step()
        for _, done in self._changes:
            done.set_exception(closed())
        for part in (self._shared, self._alone):
            if part:
                part.fail(closed())
        for job in self._waiting:
            call(job, job.on_error, closed())

    @property
    def _busy(self) -> bool:
        return self._alone.busy or bool(self._shared and self._shared.busy)

    def _admit(self, job: Job) -> None:
        if self._shared is None or (job.served.adapter and not job.served.mix):
            self._alone.add(job)
            return
        try:
            self._shared.add(job)
        except BaseException as error:  # this request's trouble alone
            call(job, job.on_error, error)

    def _probe(self, prompt: list[int], inside: str, adapter: Adapter | None, adapter_dir: Path) -> None:
        """An adapter that is loaded and answers like the base is the quietest of all failures."""
        import torch

        key = (adapter is None, *prompt)
        if key not in self._base_probes:
            self._base_probes[key] = (self._shared if adapter else self._alone).probe(None, prompt)
        with_it = self._shared.probe(adapter, prompt) if adapter else self._alone.probe(inside, prompt)
        if torch.equal(self._base_probes[key], with_it):
            raise no_effect(adapter_dir)


def needed(served: Served) -> set[str]:
    """Adapters that answer for it."""
    return {digest for digest, _ in served.mix} or ({served.adapter} if served.adapter else set())


def _settle(change: Callable[[], None], done: Future) -> None:
    try:
        change()
    except BaseException as error:  # the caller's, who waits for it
        done.set_exception(error)
    else:
        done.set_result(None)
