"""The engine that asks a vLLM server: a child of this process, or one that is somewhere else.

    names, adapters, template guard, probe        here, as for the engine in this process
    prompt ids, sampling ──> /v1/completions      vLLM; token ids come back, one callback each
    adapter directory ──> copy under its digest ──> /v1/load_lora_adapter

vLLM knows an adapter by its digest, both as name and as path: what it has cached of a prompt belongs to a name, and would
outlive the weights otherwise. A child that dies is started again, later each time, and gets all adapters again.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.errors import AdapterError, NotFoundError, TunesmithError, UsageError
from tunesmith.models.base import Base
from tunesmith.serving.interface import BaseEngine, Job, Served, call, closed, no_effect, same_template, unknown
from tunesmith.serving.sampling import Request
from tunesmith.serving.text import ENCODING
from tunesmith.serving.vllm_adapters import HERE, copied, fitting_rank, linear_layers, same_tokenizer, servable
from tunesmith.serving.vllm_client import Client, Unreachable
from tunesmith.serving.vllm_process import Child, VllmError
from tunesmith.serving.vllm_wire import TOP, Reader, body
from tunesmith.template.fingerprint import PROBES
from tunesmith.template.render import generation_prompt, stop_ids

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before a child that died is started again: twice as long each time that it dies within STEADY seconds."""
STEADY = 300.0
HEALTH_SECONDS = 5.0
"""Between two questions to a server that is somewhere else, whether it is well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmOptions:
    url: str | None = None
    """Of a server that runs somewhere; None: a child is started."""
    key: str | None = None
    """Of that server."""
    adapters: Path | None = None
    """Directory that this process and that server see under the same path; None: a temporary one of this machine."""
    max_loras: int = 8
    """Adapters in one step of the child."""
    max_cpu_loras: int = 64
    """Adapters that the child holds in memory; others are read again from disk when they are asked."""
    max_lora_rank: int = 64
    """Of the child; memory is set aside for it."""
    arguments: Sequence[str] = ()
    """More of `vllm serve`, for the child: they count before ours."""


@dataclass(eq=False)
class _Asked(Job):
    """A request on its way to vLLM."""

    loop: asyncio.AbstractEventLoop | None = None
    task: asyncio.Task | None = None
    begun: bool = field(default=False)

    def cancel(self) -> None:
        if not self.cancelled:
            super().cancel()
            if self.loop and not self.loop.is_closed():
                self.loop.call_soon_threadsafe(lambda: self.task and self.task.cancel())


class VllmEngine(BaseEngine):
    """Serve a base and adapters through vLLM. Close it with `close()`.

    Raises:
        UsageError: vLLM is not installed, or the server at `url` serves another base.
        VllmError: it does not start, or cannot be reached.
    """

    def __init__(self, base: Base, tokenizer, dtype: str, created: int, options: VllmOptions = VllmOptions()):
        self.base, self.dtype, self._options = base, dtype, options
        config = base.config()
        config = config.get("text_config", config)
        self._vocabulary = int(config["vocab_size"])
        self._context_tokens = int(config.get("max_position_embeddings", 2048))
        self._layers = linear_layers(base)
        self._closing = threading.Event()
        self._up = threading.Event()
        self._changing, self._entering = threading.Lock(), threading.Lock()
        self._pushed: dict[str, Path] = {}
        """By its name in vLLM: where vLLM reads the adapter."""
        self._jobs: set[_Asked] = set()
        self._scratch = Path(tempfile.mkdtemp(prefix="tunesmith-vllm-", dir=options.adapters))
        self._child: Child | None = None
        self._client: Client | None = None
        try:
            if options.url is None:
                self._child = Child(self._arguments(), self._scratch / "vllm.log")
                self._client = Client(self._child.start(), self._child.key, trust_environment=False)
            else:
                self._client = Client(options.url.removesuffix("/").removesuffix("/v1"), options.key, trust_environment=True)
            self._model, room = self._base_of_server()
            if options.url is not None:
                same_tokenizer(self._client, self._model, base, tokenizer)
        except BaseException:
            self.close()
            raise
        self._context_tokens = min(self._context_tokens, room)
        self._up.set()
        self.served = {base.ref: Served(base.ref, None, tokenizer, frozenset(stop_ids(tokenizer)), created, base.ref,
                                        self._context_tokens)}
        threading.Thread(target=self._watch if self._child else self._ask_health, name="vllm-watch", daemon=True).start()

    def _arguments(self) -> list[str]:
        o = self._options
        return [str(self.base.path), "--served-model-name", "base", "--dtype", self.dtype, "--max-model-len",
                str(self._context_tokens), "--generation-config", "vllm", "--max-logprobs", str(TOP), "--enable-lora",
                "--lora-target-modules", *self._layers, "--max-lora-rank", str(fitting_rank(o.max_lora_rank)),
                "--max-loras", str(o.max_loras), "--max-cpu-loras", str(max(o.max_loras, o.max_cpu_loras)),
                "--structured-outputs-config", '{"backend": "guidance"}', "--disable-uvicorn-access-log", *o.arguments]

    def _base_of_server(self) -> tuple[str, int]:
        """(name of the base in vLLM, tokens of its context)."""
        models = self._client.get("/v1/models")["data"]
        own = [m for m in models if not m.get("parent")]
        if len(own) != 1 or not own[0].get("max_model_len"):
            raise UsageError("this is no vLLM server with one base", where=self._client.url,
                             why=f"its models: {', '.join(m['id'] for m in models)}")
        return own[0]["id"], int(own[0]["max_model_len"])

    # ---- adapters ----------------------------------------------------------------------------------------------------

    def add(self, names: list[str], adapter_dir: Path, tokenizer, template_fingerprint: str, created: int) -> None:
        """As `BaseEngine.add`; AdapterError, too, for what vLLM cannot serve."""
        same_template(tokenizer, template_fingerprint, adapter_dir)
        servable(adapter_dir, fitting_rank(self._options.max_lora_rank) if self._child else None, self._layers)
        with self._changing:
            if self._closing.is_set():
                raise closed()
            if taken := next((n for n in names if n in self.served), None):
                raise UsageError(f"the name `{taken}` is served already", fix="remove it first, or take another name")
            place = copied(adapter_dir, self._scratch)
            inside = place.name
            if inside not in self._pushed:
                self._pushed[inside] = place
                try:
                    self._push(inside, adapter_dir)
                    self._probe(inside, tokenizer, adapter_dir)
                except BaseException:
                    self._free(inside)
                    raise
            with ENCODING:
                stops = frozenset(stop_ids(tokenizer))
            self.served = self.served | {name: Served(name, inside, tokenizer, stops, created, str(adapter_dir),
                                                      self._context_tokens) for name in names}

    def _push(self, inside: str, adapter_dir: Path) -> None:
        self._ready()
        try:
            self._client.wait(self._load(inside))
        except (UsageError, NotFoundError, VllmError) as error:
            if isinstance(error, VllmError) and not self._up.is_set():
                raise
            raise AdapterError("vLLM does not load the adapter", where=str(adapter_dir), why=error.why, fix=HERE) from error

    async def _load(self, inside: str) -> None:
        try:
            await self._client.call("POST", "/v1/load_lora_adapter",
                                    {"lora_name": inside, "lora_path": str(self._pushed[inside])})
        except UsageError as error:
            if "already been loaded" not in (error.why or ""):  # by its name it is the same
                raise

    def _probe(self, inside: str, tokenizer, adapter_dir: Path) -> None:
        """Asked with a salt each, so that neither answer comes from what vLLM has cached."""
        with ENCODING:
            ids = generation_prompt(tokenizer, PROBES["one_turn"][0][:1])
        found = []
        for model in (self._model, inside):
            said = self._client.post("/v1/completions", {
                "model": model, "prompt": ids, "max_tokens": 1, "temperature": 0.0, "logprobs": TOP, "ignore_eos": True,
                "return_tokens_as_token_ids": True, "cache_salt": f"probe {inside} {model} {time.monotonic_ns()}"})
            found.append(said["choices"][0]["logprobs"]["top_logprobs"][0])
        if found[0] == found[1]:
            raise no_effect(adapter_dir)

    def remove(self, name: str) -> None:
        with self._changing:
            if self._closing.is_set():
                raise closed()
            gone = self.find(name)
            if gone.adapter is None:
                raise UsageError("the base cannot be removed", why=f"`{name}` is what the adapters stand on")
            self.served = {n: s for n, s in self.served.items() if n != name}
            if all(s.adapter != gone.adapter for s in self.served.values()):
                self._free(gone.adapter)

    def _free(self, inside: str) -> None:
        """From vLLM, and its copy. A server that is away has forgotten it."""
        place = self._pushed.pop(inside)
        with suppress(NotFoundError, UsageError, VllmError):
            self._client.post("/v1/unload_lora_adapter", {"lora_name": inside})
        shutil.rmtree(place, ignore_errors=True)

    # ---- requests ----------------------------------------------------------------------------------------------------

    def submit(self, served: Served, request: Request, on_token: Callable, on_error: Callable[[BaseException], None]) -> Job:
        """As `BaseEngine.submit`; UsageError for what vLLM cannot be asked."""
        if self._closing.is_set():
            raise closed()
        if served.adapter is not None and served.adapter not in self._pushed:
            raise unknown(served.name, self.served)
        asking = body(request, served.stop_ids, served.adapter or self._model, self._vocabulary)
        job = _Asked(served, request, on_token, on_error, loop=self._client.loop)
        with self._entering:
            if self._closing.is_set():
                raise closed()
            self._jobs.add(job)
            job.loop.call_soon_threadsafe(self._begin, job, asking)
        return job

    def _begin(self, job: _Asked, asking: dict) -> None:
        reader = Reader(job.request, job.served.stop_ids)

        def end(task: asyncio.Task) -> None:
            self._jobs.discard(job)
            error = closed() if task.cancelled() and self._closing.is_set() else None if task.cancelled() else task.exception()
            if reader.finished:
                return
            if error is None:
                call(job, job.on_token, reader.cancelled())
            else:
                call(job, job.on_error, error)

        job.task = job.loop.create_task(self._answer(job, asking, reader))
        job.task.add_done_callback(end)
        if job.cancelled:
            job.task.cancel()

    async def _answer(self, job: _Asked, asking: dict, reader: Reader) -> None:
        try:
            while True:
                while self._child and not self._up.is_set():  # it is being started again
                    await asyncio.sleep(0.1)
                try:
                    return await self._stream(job, asking, reader)
                except Unreachable:
                    if self._child is None:
                        raise
                    await asyncio.sleep(0.1)  # it has died, and whoever starts it again has yet to see that
        except NotFoundError:
            inside = job.served.adapter
            if inside not in self._pushed:
                raise unknown(job.served.name, self.served) from None
            await self._load(inside)  # the server was started again
            await self._stream(job, asking, reader)

    async def _stream(self, job: _Asked, asking: dict, reader: Reader) -> None:
        if asking["stream"]:
            async with aclosing(self._client.chunks("/v1/completions", asking)) as chunks:
                async for chunk in chunks:
                    for choice in chunk["choices"]:
                        self._tell(job, reader, choice)
                    if reader.finished:
                        return
        else:
            said = await self._client.call("POST", "/v1/completions", asking)
            self._tell(job, reader, said["choices"][0])
        if not reader.finished:
            raise VllmError("vLLM ended the answer in the middle")

    @staticmethod
    def _tell(job: _Asked, reader: Reader, choice: dict) -> None:
        job.begun = True
        for token in reader.read(choice):
            if token.error:
                call(job, job.on_error, token.error)
            else:
                call(job, job.on_token, token)

    # ---- life --------------------------------------------------------------------------------------------------------

    @property
    def load(self) -> dict[str, int]:
        """Requests that have got a token, and those that have got none yet."""
        begun = sum(job.begun for job in list(self._jobs))
        return {"running": begun, "waiting": len(self._jobs) - begun}

    @property
    def alive(self) -> bool:
        return self._up.is_set() and self._client.alive

    @property
    def process_group(self) -> int | None:
        """Of the child; None for a server that is somewhere else."""
        return self._child.group if self._child else None

    def close(self) -> None:
        """End the requests with an error, and the child; take our adapters off a server that stays."""
        with self._entering:
            if self._closing.is_set():
                return
            self._closing.set()
        self._up.clear()
        if self._client:
            if self._child is None:
                for inside in list(self._pushed):
                    self._free(inside)
            self._client.close()
        if self._child:
            self._child.stop()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _ready(self) -> None:
        """Wait for a child that is being started again."""
        while not self._up.wait(0.2):
            if self._closing.is_set():
                raise closed()

    def _watch(self) -> None:
        """Start the child again whenever it has ended, as long as we have not."""
        pause = FIRST_PAUSE
        while True:
            began = time.monotonic()
            self._child.wait()
            self._up.clear()
            if time.monotonic() - began > STEADY:
                pause = FIRST_PAUSE
            while not self._closing.wait(pause):
                pause = min(2 * pause, LONGEST_PAUSE)
                try:
                    self._client.url = self._child.start()
                    for inside in list(self._pushed):
                        with suppress(UsageError, NotFoundError):  # it is pushed again, and says why, when it is asked for
                            self._client.wait(self._load(inside))
                except (TunesmithError, OSError):
                    self._child.halt()
                    continue  # its log has why
                self._up.set()
                break
            else:
                return

    def _ask_health(self) -> None:
        while not self._closing.wait(HEALTH_SECONDS):
            try:
                self._client.wait(self._client.call("GET", "/health", seconds=HEALTH_SECONDS))
            except (TunesmithError, RuntimeError, CancelledError):  # the last two: it is being closed
                self._up.clear()
            else:
                self._up.set()
