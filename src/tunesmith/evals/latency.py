"""How the server with this adapter behaves under load: the real one, in a process of its own, on loopback, asked by N clients.

    measure(run, settings, prompts)
      -> tunesmith serve --run RUN --port 0         one base, the adapter beside it
         N clients, each: ask, read the stream, ask the next      adapter first, then the base, for each N
      -> {memory_bytes, tuned[{clients, first_token_seconds, seconds, tokens_per_second, overhead, ...}], base[...]}

Nothing here waits for ever: every read has a timeout, the whole has a limit, and the server is killed at the end of both.
Quantiles have intervals from order statistics, without assuming a shape; where so few requests bound none, an end is None.
"""

from __future__ import annotations

import http.client
import json
import math
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.errors import TunesmithError
from tunesmith.recipe.evaluation import Serving
from tunesmith.training.run import Run

READY = re.compile(r"^ready: http://(.+):(\d+)/v1$")
START_SECONDS = 300.0
"""Longest time to load the base and the adapter."""
Messages = list[dict]


@dataclass(slots=True)
class Answer:
    """One request: when its tokens came, in seconds from when it was sent."""

    first: float | None = None
    seconds: float = 0.0
    tokens: int = 0
    error: str | None = None


@dataclass(slots=True)
class Server:
    """A running server."""

    process: subprocess.Popen
    host: str
    port: int
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=20))
    """The last that it said."""

    @property
    def peak_bytes(self) -> int | None:
        """Largest resident memory so far; None where the system does not tell (it does on Linux)."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        except OSError:
            return None
        found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.M)
        return int(found[1]) * 1024 if found else None


def measure(run: Run, settings: Serving, prompts: Sequence[Messages], say: Callable[[str], None] = lambda _line: None) -> dict:
    """The report's `serving`: `{settings, memory_bytes, base[], tuned[], stopped}`, one entry for each number of clients
    (`load_of`), the tuned with the `overhead` of the adapter; `stopped` says why the rest is missing, if it is.

    Raises:
        TunesmithError: the server did not start.
    """
    until = time.monotonic() + settings.limit_seconds
    found: dict = {"settings": settings.model_dump(mode="json"), "base": [], "tuned": [], "memory_bytes": None, "stopped": None}
    with server(["--run", str(run.path)], min(START_SECONDS, settings.limit_seconds)) as running:
        names = {"tuned": run.state["run_id"], "base": run.state["base"]["ref"]}
        for name in names.values():  # the first answer of each pays for what is set up once
            ask(running, name, prompts[0], 1, settings.timeout_seconds)
        for clients in settings.clients:
            for part, name in names.items():
                if time.monotonic() >= until:
                    found["stopped"] = f"the limit of {settings.limit_seconds:g} seconds was reached"
                    break
                say(f"  {part}: {clients} clients")
                load = load_of(running, name, clients, prompts, settings, until)
                found[part].append(load)
        found["memory_bytes"] = running.peak_bytes
    bases = {load["clients"]: load["tokens_per_second"] for load in found["base"]}
    for load in found["tuned"]:
        of_base = bases.get(load["clients"])
        load["overhead"] = 1 - load["tokens_per_second"] / of_base if of_base else None
    return found


def load_of(running: Server, model: str, clients: int, prompts: Sequence[Messages], settings: Serving, until: float) -> dict:
    """`{clients, requests, failed, errors, tokens, wall_seconds, tokens_per_second, first_token_seconds{p50, p95, p50_ci95,
    p95_ci95}, seconds{...}, cost_per_million_tokens}` of one model, all clients asking at once until the requests are done."""
    todo = deque(prompts[i % len(prompts)] for i in range(max(settings.requests, clients)))
    asked, answers = len(todo), []

    def client() -> None:
        while time.monotonic() < until:
            try:
                messages = todo.popleft()
            except IndexError:
                return
            left = until - time.monotonic()
            answers.append(ask(running, model, messages, settings.new_tokens, min(settings.timeout_seconds, left), until))

    began = time.perf_counter()
    threads = [threading.Thread(target=client, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=max(0.0, until - time.monotonic()) + settings.timeout_seconds)
    wall = time.perf_counter() - began
    whole = [a for a in list(answers) if a.error is None]
    tokens = sum(a.tokens for a in whole)
    errors = sorted({a.error for a in list(answers) if a.error})
    speed = tokens / wall
    price = settings.price_per_hour
    return {"clients": clients, "requests": asked, "failed": asked - len(whole), "errors": errors[:3], "tokens": tokens,
            "wall_seconds": wall, "tokens_per_second": speed,
            "first_token_seconds": quantiles([a.first for a in whole if a.first is not None]),
            "seconds": quantiles([a.seconds for a in whole]),
            "cost_per_million_tokens": price / 3600 / speed * 1e6 if price and speed else None}


def quantiles(seconds: Sequence[float]) -> dict:
    """`{p50, p95, p50_ci95, p95_ci95}`; None where there are no values."""
    found: dict = {}
    for name, q in (("p50", 0.5), ("p95", 0.95)):
        found[name], found[f"{name}_ci95"] = quantile(seconds, q)
    return found


def quantile(values: Sequence[float], q: float) -> tuple[float | None, list[float | None]]:
    """The q-quantile (the smallest value that a share q does not exceed) with a 95% interval of order statistics (Conover 1999,
    3.2): an end is None when so few values have none that bounds it."""
    from scipy.stats import binom

    ordered, n = sorted(values), len(values)
    if n == 0:
        return None, [None, None]
    fewer = binom.cdf(range(n), n, q)  # the chance that no more than k values are under the true quantile
    low = max((k for k in range(n) if fewer[k] <= 0.025), default=None)
    high = min((k for k in range(n) if fewer[k] >= 0.975), default=None)
    ends = [None if k is None else ordered[k] for k in (low, high)]
    return ordered[max(0, math.ceil(q * n) - 1)], ends


# ---- the server and its clients ------------------------------------------------------------------------------------------


def ask(running: Server, model: str, messages: Messages, new_tokens: int, timeout: float, until: float = math.inf) -> Answer:
    """One streamed chat completion. What goes wrong is in the answer: a load is measured with its failures."""
    said = [{"role": m["role"], "content": m["content"]} for m in messages]
    body = json.dumps({"model": model, "messages": said, "max_tokens": new_tokens, "temperature": 0, "stream": True,
                       "stream_options": {"include_usage": True}})
    answer, began = Answer(), time.perf_counter()
    connection = http.client.HTTPConnection(running.host, running.port, timeout=max(timeout, 0.001))
    try:
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            answer.error = f"status {response.status}: {response.read(200).decode(errors='replace')}"
            return answer
        done = False
        while line := response.readline():
            done = done or _read(line, answer, began)
            if answer.error is None and time.monotonic() > until:
                answer.error = "the limit of the whole measurement was reached"
            if answer.error:
                return answer
        if not done:
            answer.error = "the stream broke off"
    except (OSError, http.client.HTTPException, ValueError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    finally:
        answer.seconds = time.perf_counter() - began
        connection.close()
    return answer


def _read(line: bytes, answer: Answer, began: float) -> bool:
    """One line of the event stream into the answer; whether it was the last. Raises ValueError for what is no JSON."""
    if not line.startswith(b"data: "):
        return False
    if line.strip() == b"data: [DONE]":
        return True
    event = json.loads(line[6:])
    if "error" in event:
        answer.error = str(event["error"].get("message"))
        return False
    said = any(c["delta"].get("content") or c.get("finish_reason") for c in event["choices"])
    if said and answer.first is None:
        answer.first = time.perf_counter() - began
    if event.get("usage"):
        answer.tokens = event["usage"]["completion_tokens"]
    return False


@contextmanager
def server(arguments: Sequence[str], seconds: float) -> Iterator[Server]:
    """`tunesmith serve ... --port 0` in a process of its own; ended at the end, by force if need be.

    Raises:
        TunesmithError: it ended, or was not ready within so many seconds. What it said last is the reason.
    """
    process = subprocess.Popen([sys.executable, "-m", "tunesmith", "serve", *arguments, "--port", "0"], text=True,
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    running, ready = Server(process, "", 0), threading.Event()

    def listen() -> None:
        for line in process.stderr:
            running.lines.append(line.rstrip())
            if found := READY.match(line.strip()):
                running.host, running.port = found[1].strip("[]"), int(found[2])
                ready.set()
        ready.set()

    threading.Thread(target=listen, daemon=True).start()
    try:
        ready.wait(timeout=seconds)
        if not running.port:
            ended = ready.is_set()  # there is nothing more to listen to
            raise TunesmithError("the server did not start" if ended else f"the server was not ready after {seconds:g} seconds",
                                 why="; ".join(list(running.lines)[-3:]) or "it said nothing",
                                 fix="try `tunesmith serve " + " ".join(arguments) + "` by hand")
        yield running
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stderr.close()
