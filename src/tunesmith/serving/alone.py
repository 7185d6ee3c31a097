"""Models that cannot share the base's pass: full fine-tunes, whole copies of modules, quantised bases, and every adapter on an
architecture that steps are not known to be exact for. They are answered batch by batch, a token of each row at a time.

Adapters of one kind that PEFT can hold beside each other (LoRA, IA3, QLoRA on one quantisation) share a tree of modules;
every other one has a tree of its own. All trees share the base's weights: a tree costs what is new in it, an adapter, 4-bit
copies of the layers, or a second model.
"""

from __future__ import annotations

import copy
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tunesmith.serving.answer import Token
from tunesmith.serving.generate import generate
from tunesmith.serving.interface import Job, call

MAX_BATCH = 16
BESIDE = ("lora", "ia3")
"""Methods of which several adapters go on one tree of modules; QLoRA's too, where the base is quantised in the same way."""


class Alone:
    """`model()` loads the base; it is called when the first tree is needed. But for `model`, not safe for two threads."""

    def __init__(self, model: Callable[[], Any]):
        self._load_model, self._model = model, None
        self._loading = threading.Lock()
        self._trees: dict[str, Any] = {}
        """What carries adapters, by kind; a kind that stands alone has the adapter's name behind it."""
        self._carriers: dict[str, Any] = {}
        """The tree of each adapter."""
        self._numbers = itertools.count()
        self._waiting: deque[Job] = deque()
        self._batch: list[Job] = []
        self._live: list[Job] = []
        self._tokens: Iterator[Token] | None = None

    @property
    def model(self):
        """The base, as transformers has it."""
        with self._loading:
            if self._model is None:
                self._model = self._load_model()
            return self._model

    def put(self, adapter_dir: Path) -> str:
        """The name that it has here. Raises AdapterError."""
        from tunesmith import methods
        from tunesmith.engine.fast import fuse

        inside = f"a{next(self._numbers)}"
        tree = kind = methods.kind(adapter_dir)
        if kind == "qlora":
            tree = f"qlora {(adapter_dir / methods.QUANTISATION_FILE).read_text(encoding='utf-8')}"
        elif kind not in BESIDE:
            tree = f"{kind} {inside}"
        made = methods.load(self._trees[tree] if tree in self._trees else _twin(self.model), adapter_dir, name=inside)
        made.eval()
        fuse(made)
        self._carriers[inside] = self._trees[tree] = made
        return inside

    def virtual_tokens(self, inside: str) -> int:
        return getattr(self._carriers[inside], "virtual_tokens", 0)

    def free(self, inside: str) -> None:
        """Drop an adapter's weights, and its tree if nothing else is on it. A batch that uses it is finished first."""
        from tunesmith.engine.memory import give_back

        while self._live and self._live[0].served.adapter == inside:
            self.step()
        made = self._carriers.pop(inside)
        beside = next((name for name, tree in self._carriers.items() if tree is made), None)
        if beside:
            made.set_adapter(beside)
            made.delete_adapter(inside)
        else:
            self._trees = {kind: tree for kind, tree in self._trees.items() if tree is not made}
        del made
        give_back()

    def answering(self, inside: str | None):
        """The model that answers as this adapter, or as the base."""
        if inside is None:
            return self.model
        model = self._carriers[inside]
        if inside in model.peft_config:  # on a tree of its own there is nothing to choose
            model.set_adapter(inside)
        return model

    def probe(self, inside: str | None, prompt: list[int]):
        """[V] logits of the token after a prompt."""
        import torch

        ids = torch.tensor([prompt], device=self.model.device)
        with torch.inference_mode():
            return self.answering(inside)(input_ids=ids, use_cache=False).logits[0, -1].float()

    def add(self, job: Job) -> None:
        self._waiting.append(job)

    def drop(self, unwanted: Callable[[Job], bool]) -> list[Job]:
        """Take requests that wait off the queue."""
        gone = [job for job in self._waiting if unwanted(job)]
        self._waiting = deque(job for job in self._waiting if job not in gone)
        return gone

    @property
    def load(self) -> tuple[int, int]:
        """(requests that are being generated, requests that wait)."""
        return len(self._live), len(self._waiting)

    @property
    def busy(self) -> bool:
        return bool(self._live or self._waiting)

    def step(self) -> None:
        """A token for each request of the batch; the oldest request and its companions are the next batch."""
        if not self._live:
            self._begin()
        try:
            for _ in range(len(self._live)):
                self._tell(next(self._tokens))
        except BaseException as error:  # whatever it is, it is these requests' trouble: the next ones are answered
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """End the batch."""
        failed, self._live, tokens, self._tokens = self._live, [], self._tokens, None
        if tokens is not None:
            tokens.close()
        for job in failed:
            call(job, job.on_error, error)

    def _begin(self) -> None:
        adapter = self._waiting[0].served.adapter
        batch = [j for j in self._waiting if j.served.adapter == adapter][:MAX_BATCH]
        self.drop(batch.__contains__)
        self._batch, self._live = batch, list(batch)
        stops = set().union(*(j.served.stop_ids for j in batch))
        self._tokens = self._answers(adapter, batch, stops)

    def _answers(self, adapter: str | None, batch: list[Job], stops: set[int]) -> Iterator[Token]:
        """A generator, so that what fails before the first token fails there."""
        yield from generate(self.answering(adapter), [j.request for j in batch], stops, lambda row: batch[row].cancelled)

    def _tell(self, token: Token) -> None:
        job = self._batch[token.row]
        if token.finish or token.error:
            self._live.remove(job)
        if token.error:
            call(job, job.on_error, token.error)
        else:
            call(job, job.on_token, token)


def _twin(model):
    """Another tree of modules over the same weights: adapting one leaves the other as it is."""
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)
