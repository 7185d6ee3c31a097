"""What an engine is to the rest of the house: names that are served, and requests that get tokens.

Two kinds implement it: `serving.engine`, in this process, and one that asks a vLLM server. Callers see no difference but speed.
"""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.errors import AdapterError, NotFoundError, TemplateError, TunesmithError, UsageError
from tunesmith.models.base import Base
from tunesmith.serving.answer import Token
from tunesmith.serving.grammar import GrammarError
from tunesmith.serving.sampling import Request
from tunesmith.serving.text import ENCODING
from tunesmith.template.fingerprint import fingerprint


@dataclass(frozen=True, slots=True)
class Served:
    """One name that requests can ask for."""

    name: str
    adapter: str | None
    """What the engine knows it by; None is the base."""
    tokenizer: Any
    stop_ids: frozenset[int]
    created: int
    root: str
    """Where it comes from: the base's reference or the adapter's directory."""
    context_tokens: int
    """Of a prompt and its answer together; virtual tokens are taken off."""
    mix: tuple[tuple[str, float], ...] = ()
    """(digest, weight) of the adapters that go beside others on the base's passes; () for the base, and where one cannot."""
    adds_up: bool = False
    """Whether it can be mixed with others: it is a sum that has a weight."""
    template: str = ""
    """The chat template, to tell whether two can be asked as one."""


@dataclass(eq=False)
class Job:
    """A request on its way. `cancel()` ends it between two tokens."""

    served: Served
    request: Request
    on_token: Callable[[Token], None]
    on_error: Callable[[BaseException], None]
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()


class BaseEngine(ABC):
    """Serve a base and adapters by name, at any time and from any thread."""

    base: Base
    dtype: str
    served: dict[str, Served]
    """By name. Replaced as a whole by every change, so that it can be read on any thread."""

    @abstractmethod
    def add(self, names: list[str], adapter_dir: Path, tokenizer, template_fingerprint: str, created: int) -> None:
        """Serve an adapter under these names.

        Raises:
            TemplateError: the tokenizer would prompt it otherwise than it was trained.
            AdapterError: it does not fit the base, or changes nothing.
            UsageError: a name is taken.
            TunesmithError: the engine is closed.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Serve this name no more, and free the adapter if it was its last one.

        Raises:
            NotFoundError: no such name.
            UsageError: it is the base.
            TunesmithError: the engine is closed.
        """

    @abstractmethod
    def submit(self, served: Served, request: Request, on_token: Callable[[Token], None],
               on_error: Callable[[BaseException], None]) -> Job:
        """Queue a request: it gets tokens until one with `finish`, or one error. The callbacks run on the engine's
        thread: keep them short.

        Raises:
            NotFoundError: the adapter was removed since it was found.
            TunesmithError: the engine is closed.
        """

    @property
    @abstractmethod
    def load(self) -> dict[str, int]:
        """Requests that are being generated, and requests that wait for their turn."""

    @property
    def facts(self) -> dict[str, int]:
        """What else an operator wants to see, by names of `api.observe`; empty where the engine keeps no account."""
        return {}

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Whether requests are still being answered."""

    @abstractmethod
    def close(self) -> None:
        """End. Requests that are not finished get an error: half an answer must not look like a whole one."""

    def find(self, name: str) -> Served:
        """Raises NotFoundError for a name that is not served; never falls back to the base."""
        served = self.served
        if name not in served:
            raise unknown(name, served)
        return served[name]

    def ask(self, served: Served, requests: list[Request]) -> list[list[Token]]:
        """The tokens of each request, when all are answered: blocks. They are queued together, so that the same requests
        share the same batches each time that nobody else asks. One that its grammar ends has a last token with the error.

        Raises TunesmithError when closed, or what else made one fail."""
        news: queue.Queue[tuple[int, Token | BaseException]] = queue.Queue()
        found: list[list[Token]] = [[] for _ in requests]
        with self.together():
            jobs = [self.submit(served, request, lambda token, at=at: news.put((at, token)),
                                lambda error, at=at: news.put((at, error))) for at, request in enumerate(requests)]
        try:
            left = len(jobs)
            while left:
                at, token = news.get()
                if isinstance(token, GrammarError):
                    token = Token(at, None, "stop", error=token)
                if isinstance(token, BaseException):
                    raise token
                found[at].append(token)
                left -= token.finish is not None
        finally:
            for job in jobs:
                job.cancel()
        return found

    def refuse_if_full(self) -> None:  # noqa: B027 - an engine that keeps no queue of its own has nothing to refuse
        """Raises BusyError when so many requests wait that a further one should come back later. `submit` takes it all the
        same: who asks for all items of an evaluation has nobody to send away."""

    def mixed(self, parts: Sequence[tuple[Served, float]]) -> Served:
        """What answers with several adapters at once, each with its weight.

        Raises:
            UsageError: they cannot be mixed, or this engine mixes none.
        """
        raise UsageError("this engine mixes no adapters", fix="serve with --engine tunesmith, or `tunesmith compose` them")

    def together(self) -> AbstractContextManager:
        """Inside, requests are queued and none begins before the others are queued too, where the engine can do that."""
        return nullcontext()


def call(job: Job, callback: Callable, value) -> None:
    """A callback that fails (its event loop is gone, say) ends its own request, not the worker or its companions."""
    try:
        callback(value)
    except Exception:
        job.cancel()


def same_template(tokenizer, template_fingerprint: str, adapter_dir: Path) -> None:
    """Raises TemplateError: the tokenizer would prompt the adapter otherwise than it was trained."""
    with ENCODING:
        found = fingerprint(tokenizer)
    if found != template_fingerprint:
        raise TemplateError("the chat template is not the one this adapter was trained with", where=str(adapter_dir),
                            why=f"fingerprint {found}, the release's is {template_fingerprint}",
                            fix="restore the release's tokenizer directory")


def no_effect(adapter_dir: Path) -> AdapterError:
    """An adapter that is loaded and answers like the base is the quietest of all failures."""
    return AdapterError("the adapter changes nothing", where=str(adapter_dir),
                        why="a probe question has the same logits with it and without it",
                        fix="train it again; its weights may never have been saved")


def unknown(name: str, served: dict[str, Served]) -> NotFoundError:
    return NotFoundError(f"The model `{name}` does not exist or you do not have access to it.",
                         why=f"served here: {', '.join(served)}")


def closed() -> TunesmithError:
    return TunesmithError("the server is stopping", fix="ask again when it is back")
