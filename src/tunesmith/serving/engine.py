"""One base, many adapters, by name; requests from many threads, answered by one.

A worker thread owns the model. It takes the oldest request, adds the waiting ones for the same adapter, and
generates them as one batch, token by token; each token goes to its request's callback at once. Adapters come and go on the
same thread, between two batches and before whatever waits: nothing is loaded into a model that is generating, and a load
waits for one batch at most.

Adapters of one kind that PEFT can hold beside each other (LoRA; QLoRA; IA3) share a tree of modules. Every other one,
virtual tokens, bottlenecks or whole weights, has a tree of its own. All trees share the base's weights, so a tree costs
nothing but what is new in it: an adapter, 4-bit copies of the layers (QLoRA), or a second model (full).
"""

from __future__ import annotations

import copy
import itertools
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Any

from tunesmith.errors import AdapterError, TemplateError, UsageError
from tunesmith.models.base import Base
from tunesmith.serving.answer import Token
from tunesmith.serving.generate import generate
from tunesmith.serving.interface import BaseEngine, Job, Served, call, closed, unknown
from tunesmith.serving.sampling import Request
from tunesmith.serving.text import ENCODING
from tunesmith.template.fingerprint import PROBES, fingerprint
from tunesmith.template.render import generation_prompt, stop_ids

MAX_BATCH = 16
BESIDE = ("lora", "ia3")
"""Methods of which several adapters go on one tree of modules; QLoRA's too, where the base is quantised in the same way."""


class Engine(BaseEngine):
    """Serve a base and adapters. Close it with `close()`."""

    def __init__(self, base: Base, tokenizer, dtype: str, device: str, created: int):
        import torch

        from tunesmith.engine.memory import keep_pages
        from tunesmith.models.load import model_of

        keep_pages()
        self.base, self.dtype = base, dtype
        self._model = model_of(base, getattr(torch, dtype), device)
        self._trees: dict[str, Any] = {}
        """What carries adapters, by kind; a kind that stands alone has the adapter's name behind it."""
        self._carriers: dict[str, Any] = {}
        """The tree of each adapter."""
        self._context_tokens = int(getattr(self._model.config, "max_position_embeddings", 2048))
        self._numbers = itertools.count()
        self.served = {base.ref: Served(base.ref, None, tokenizer, frozenset(stop_ids(tokenizer)), created, base.ref,
                                        self._context_tokens)}
        """By name. Replaced as a whole by every change, so that it can be read on any thread."""
        self._waiting: deque[Job] = deque()
        self._changes: deque[tuple[Callable[[], None], Future]] = deque()
        self._running: list[Job] = []
        self._news = threading.Condition()
        self._closing = False
        self._worker = threading.Thread(target=self._work, name="generation", daemon=True)
        self._worker.start()

    def add(self, names: list[str], adapter_dir: Path, tokenizer, template_fingerprint: str, created: int) -> None:
        """Load an adapter and serve it under these names, at any time. Waits for the batch that is being generated.

        Raises:
            TemplateError: the tokenizer would prompt it otherwise than it was trained.
            AdapterError: it does not fit the base, or changes nothing.
            UsageError: a name is taken.
            TunesmithError: the engine is closed.
        """
        with ENCODING:
            found = fingerprint(tokenizer)
        if found != template_fingerprint:
            raise TemplateError("the chat template is not the one this adapter was trained with", where=str(adapter_dir),
                                why=f"fingerprint {found}, the release's is {template_fingerprint}",
                                fix="restore the release's tokenizer directory")
        self._change(lambda: self._load(names, adapter_dir, tokenizer, created))

    def remove(self, name: str) -> None:
        """Serve this name no more, and free the adapter if it was its last one. Waits for the batch that is being generated;
        requests for the adapter that wait get an error.

        Raises:
            NotFoundError: no such name.
            UsageError: it is the base.
            TunesmithError: the engine is closed.
        """
        self._change(lambda: self._unload(name))

    def _change(self, change: Callable[[], None]) -> None:
        """Have the worker do this between two batches, and wait for it."""
        done: Future = Future()
        with self._news:
            if self._closing:
                raise closed()
            self._changes.append((change, done))
            self._news.notify()
        done.result()

    def _load(self, names: list[str], adapter_dir: Path, tokenizer, created: int) -> None:
        from tunesmith import methods
        from tunesmith.engine.fast import fuse

        if taken := next((n for n in names if n in self.served), None):
            raise UsageError(f"the name `{taken}` is served already", fix="remove it first, or take another name")
        inside = f"a{next(self._numbers)}"
        tree = kind = methods.kind(adapter_dir)
        if kind == "qlora":
            tree = f"qlora {(adapter_dir / methods.QUANTISATION_FILE).read_text(encoding='utf-8')}"
        elif kind not in BESIDE:
            tree = f"{kind} {inside}"
        made = methods.load(self._trees[tree] if tree in self._trees else _twin(self._model), adapter_dir, name=inside)
        made.eval()
        fuse(made)
        self._carriers[inside] = self._trees[tree] = made
        try:
            self._probe(inside, tokenizer, adapter_dir)
        except Exception:
            self._free(inside)
            raise
        with ENCODING:
            stops = frozenset(stop_ids(tokenizer))
        room = self._context_tokens - getattr(made, "virtual_tokens", 0)
        self.served = self.served | {name: Served(name, inside, tokenizer, stops, created, str(adapter_dir), room)
                                     for name in names}

    def _unload(self, name: str) -> None:
        gone = self.find(name)
        if gone.adapter is None:
            raise UsageError("the base cannot be removed", why=f"`{name}` is what the adapters stand on")
        self.served = {n: s for n, s in self.served.items() if n != name}
        if all(s.adapter != gone.adapter for s in self.served.values()):
            self._free(gone.adapter)
            with self._news:
                stranded = [j for j in self._waiting if j.served.adapter == gone.adapter]
                self._waiting = deque(j for j in self._waiting if j not in stranded)
            for job in stranded:
                call(job, job.on_error, unknown(job.served.name, self.served))

    def _free(self, inside: str) -> None:
        """Drop an adapter's weights, and its tree if nothing else is on it."""
        from tunesmith.engine.memory import give_back

        made = self._carriers.pop(inside)
        beside = next((name for name, tree in self._carriers.items() if tree is made), None)
        if beside:
            made.set_adapter(beside)
            made.delete_adapter(inside)
        else:
            self._trees = {kind: tree for kind, tree in self._trees.items() if tree is not made}
        del made
        give_back()

    def submit(self, served: Served, request: Request, on_token: Callable[[Token], None],
               on_error: Callable[[BaseException], None]) -> Job:
        """Queue a request: it gets tokens until one with `finish`, or one error. The callbacks run on the worker's
        thread: keep them short.

        Raises:
            NotFoundError: the adapter was removed since it was found.
            TunesmithError: the engine is closed.
        """
        job = Job(served, request, on_token, on_error)
        with self._news:
            if self._closing:
                raise closed()
            if served.adapter is not None and served.adapter not in self._carriers:
                raise unknown(served.name, self.served)
            self._waiting.append(job)
            self._news.notify()
        return job

    def together(self) -> threading.Condition:
        return self._news

    @property
    def load(self) -> dict[str, int]:
        """Requests that are being generated, and requests that wait for their turn."""
        return {"running": len(self._running), "waiting": len(self._waiting)}

    @property
    def alive(self) -> bool:
        """Whether requests are still being answered."""
        return self._worker.is_alive()

    def close(self) -> None:
        """End the worker. Requests that are not finished get an error: half an answer must not look like a whole one."""
        with self._news:
            self._closing = True
            self._news.notify()
        self._worker.join(timeout=60)

    def _work(self) -> None:
        while (work := self._next()) is not None:
            if isinstance(work, tuple):
                _settle(*work)
                continue
            try:
                self._generate(work)
            except BaseException as error:  # whatever it is, it is these requests' trouble: the next ones are answered
                failed, self._running = self._running, []
                for job in failed:
                    call(job, job.on_error, error)
            del work
        for _, done in self._changes:
            done.set_exception(closed())
        for job in self._waiting:
            call(job, job.on_error, closed())

    def _generate(self, batch: list[Job]) -> None:
        stops = set().union(*(j.served.stop_ids for j in batch))
        model = self._answering(batch[0].served.adapter)
        with closing(generate(model, [j.request for j in batch], stops, lambda row: batch[row].cancelled)) as tokens:
            for token in tokens:
                if self._closing:
                    raise closed()
                job = batch[token.row]
                if token.finish or token.error:
                    self._running.remove(job)
                if token.error:
                    call(job, job.on_error, token.error)
                else:
                    call(job, job.on_token, token)

    def _next(self) -> list[Job] | tuple[Callable[[], None], Future] | None:
        """A change of what is served, or the oldest request and its companions; None when closing."""
        with self._news:
            self._news.wait_for(lambda: self._waiting or self._changes or self._closing)
            if self._closing:
                return None
            if self._changes:
                return self._changes.popleft()
            adapter = self._waiting[0].served.adapter
            batch = [j for j in self._waiting if j.served.adapter == adapter][:MAX_BATCH]
            for job in batch:
                self._waiting.remove(job)
            self._running = list(batch)
            return batch

    def _answering(self, adapter: str | None):
        """The model that answers as this adapter, or as the base."""
        if adapter is None:
            return self._model
        model = self._carriers[adapter]
        if adapter in model.peft_config:  # on a tree of its own there is nothing to choose
            model.set_adapter(adapter)
        return model

    def _probe(self, adapter: str, tokenizer, adapter_dir: Path) -> None:
        """An adapter that is loaded and answers like the base is the quietest of all failures."""
        import torch

        with ENCODING:
            ids = torch.tensor([generation_prompt(tokenizer, PROBES["one_turn"][0][:1])], device=self._model.device)
        logits = []
        for name in (None, adapter):
            with torch.inference_mode():
                logits.append(self._answering(name)(input_ids=ids, use_cache=False).logits[:, -1])
        if torch.equal(logits[0].float(), logits[1].float()):
            raise AdapterError("the adapter changes nothing", where=str(adapter_dir),
                               why="a probe question has the same logits with it and without it",
                               fix="train it again; its weights may never have been saved")


def _twin(model):
    """Another tree of modules over the same weights: adapting one leaves the other as it is."""
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def _settle(change: Callable[[], None], done: Future) -> None:
    try:
        change()
    except BaseException as error:  # the caller's, who waits for it
        done.set_exception(error)
    else:
        done.set_result(None)


