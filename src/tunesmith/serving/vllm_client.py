"""A vLLM server over HTTP: one thread with an event loop, on which all answers arrive."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from tunesmith.errors import NotFoundError, UsageError
from tunesmith.serving.vllm_process import VllmError

QUICK_SECONDS = 30
LOAD_SECONDS = 300
"""For an adapter to be loaded."""


class Unreachable(VllmError):
    """Nobody listens there: what was asked did not arrive."""


class Client:
    """`url` and `key` may change while it lives: a child that was started again listens elsewhere."""

    def __init__(self, url: str, key: str | None, trust_environment: bool):
        self.url, self._key, self._trust = url.rstrip("/"), key, trust_environment
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="vllm", daemon=True)
        self._http: Any = None
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def wait(self, work: Coroutine) -> Any:
        """Its result, from any thread but the loop's own."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def close(self) -> None:
        """All answers end with an error."""
        async def end() -> None:
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)
            if self._http is not None:
                await self._http.aclose()

        if self.alive:
            self.wait(end())
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()
            self.loop.close()

    def get(self, path: str) -> dict:
        return self.wait(self.call("GET", path))

    def post(self, path: str, body: dict) -> dict:
        return self.wait(self.call("POST", path, body))

    async def call(self, method: str, path: str, body: dict | None = None, seconds: float = LOAD_SECONDS) -> dict:
        """Raises as `answer`."""
        async with self.answer(method, path, body, seconds) as response:
            text = (await response.aread()).decode(errors="replace")
        return json.loads(text) if text.startswith(("{", "[")) else {"text": text}

    async def chunks(self, path: str, body: dict) -> AsyncIterator[dict]:
        """What a stream says, until it says that it is done. Raises as `answer`; VllmError: it ended before that."""
        async with self.answer("POST", path, body, None) as response:
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    return
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    raise VllmError("vLLM could not go on", why=str(chunk["error"].get("message", chunk["error"])))
                yield chunk
        raise VllmError("vLLM ended the answer in the middle")

    @asynccontextmanager
    async def answer(self, method: str, path: str, body: dict | None, seconds: float | None):
        """The response, when its status is one of success.

        Raises:
            NotFoundError: 404. UsageError: another refusal. VllmError: it failed, or cannot be reached.
        """
        import httpx2

        if self._http is None:
            self._http = httpx2.AsyncClient(trust_env=self._trust, limits=httpx2.Limits(max_connections=None))
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        timeout = httpx2.Timeout(seconds, connect=QUICK_SECONDS)
        try:
            async with self._http.stream(method, self.url + path, json=body, headers=headers, timeout=timeout) as response:
                if response.status_code >= 400:
                    raise _refusal(response.status_code, (await response.aread()).decode(errors="replace"), path)
                yield response
        except httpx2.ConnectError as error:
            raise Unreachable("vLLM cannot be reached", where=self.url, why=str(error),
                              fix="start it, or give the URL at which it listens") from error
        except httpx2.HTTPError as error:
            raise VllmError("vLLM went away", where=self.url, why=f"{type(error).__name__}: {error}") from error


def _refusal(status: int, text: str, path: str) -> Exception:
    try:
        found = json.loads(text)
        said = found.get("error", found)
        message = str(said.get("message", said) if isinstance(said, dict) else said)
    except (ValueError, AttributeError):
        message = text
    message = " ".join(message.split())[:500]
    if status == 404:
        return NotFoundError("vLLM does not have it", where=path, why=message)
    if status in (400, 422):
        return UsageError("vLLM refuses the request", why=message)
    if status in (401, 403):
        return UsageError("vLLM wants another key", why=message, fix="set TUNESMITH_VLLM_KEY to the server's --api-key")
    return VllmError("vLLM failed", where=path, why=f"{status} {message}")
