"""What every request passes: an id, who asks, how often, how much it sends; on the way back headers and the log of changes.

    request ── id ── key ── rate ── size and pace of the body ──> route, which asks for a scope
    answer  <── headers ── audit row (before the client hears of the change) ──┘

Whoever may not come in is sent away before a byte of the body is read. Nothing that a route raises gets out as it is.

A route finds in `request.state`: `request_id`, `caller`, and `spend(tokens)`, to be called with what an answer took.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from functools import partial

import sqlalchemy as sa
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.api.caller import Caller, authenticate
from tunesmith.api.errors import KEY, BadParameter, refusal, unexpected
from tunesmith.api.limits import RateLimits
from tunesmith.api.service import Service
from tunesmith.jobs.audit import REFUSED, Audit
from tunesmith.jobs.ids import new_id
from tunesmith.jobs.settings import Limits

REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
ANSWERS = ("/v1/chat/completions", "/v1/completions")
"""They take tokens, and change nothing."""
READS = ("GET", "HEAD", "OPTIONS")
PART = re.compile(r"/v1/uploads/[^/]+/parts")
FORM_BYTES = 64 * 1024
"""What a form has around its file."""
IDLE_SECONDS = 60.0
"""Between two pieces of a body."""
BODY_SECONDS = 3600.0
DRAIN_BYTES, DRAIN_SECONDS = 8 * 2**20, 2.0
"""Of a body that nobody wants: read so much, so that a client that is still sending hears the answer."""
HEADERS = {
    "x-content-type-options": "nosniff", "x-frame-options": "DENY", "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'", "cache-control": "no-store"}
"""Where a route does not say otherwise."""


class Guard:
    """ASGI."""

    def __init__(self, app: ASGIApp, service: Service):
        self._app, self._service = app, service
        self._rates, self._audit = RateLimits(service.settings.limits), Audit(service.database)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, state = Headers(scope=scope), scope.setdefault("state", {})
        asked = headers.get("x-request-id", "")
        state["request_id"] = asked if REQUEST_ID.fullmatch(asked) else new_id("req_")
        body = _Body(receive, _limit(scope, self._service.settings.limits))
        answer = _Answer(self, scope, body, send)
        try:
            if scope["path"].startswith("/v1/"):
                await self._admit(scope["path"], headers, state, answer)
            body.check(headers.get("content-length"))
            await self._app(scope, body, answer)
        except BadParameter as error:
            await refusal(error)(scope, body, answer)
        except ClientDisconnect:
            pass
        except Exception as error:
            told = unexpected(state["request_id"], error)
            if answer.started:
                raise
            await told(scope, body, answer)

    async def _admit(self, path: str, headers: Headers, state: dict, answer: _Answer) -> None:
        """Raises BadParameter."""
        caller: Caller = await run_in_threadpool(authenticate, self._service, headers)
        state["caller"], name = caller, caller.key_id or caller.project_id
        state["spend"] = partial(self._rates.spend, name)
        answer.headers |= self._rates.take(name, path in ANSWERS)

    async def note(self, scope: Scope, status: int, body: bytes) -> None:
        """The row of a call. What was changed is in the path, or is the answer's `id`."""
        caller, state = scope["state"].get("caller"), scope["state"]
        path = getattr(scope.get("route"), "path", None)
        object_ = " ".join(map(str, scope.get("path_params", {}).values())) if path else scope["path"]
        if not object_ and status < 300:
            object_ = _id_in(body)
        action = re.sub(r"\{[^}]*\}", "{}", path.removeprefix("/v1")) if path else ""
        try:
            await run_in_threadpool(
                self._audit.note, f"{scope['method']} {action}".strip(), status,
                object=KEY.sub("sk-...", object_ or "").replace("\0", "") or None,
                project_id=caller and caller.project_id, key_id=caller and caller.key_id, request_id=state["request_id"],
                address=scope["client"][0] if scope.get("client") else None)
        except sa.exc.SQLAlchemyError as error:  # it is done: better an answer without a row than no answer
            sys.stderr.write(f"no audit row for {scope['method']} {path}, request {state['request_id']}: {error}\n")


class _Answer:
    """Sends what a route sends, with our headers, once its row is written."""

    def __init__(self, guard: Guard, scope: Scope, body: _Body, send: Send):
        self._guard, self._scope, self._body, self._send = guard, scope, body, send
        self._start: Message | None = None
        self.headers: dict[str, str] = {}
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            for name, value in {**HEADERS, **self.headers}.items():
                headers.setdefault(name, value)
            headers["x-request-id"] = self._scope["state"]["request_id"]
            if message["status"] >= 400:
                await self._body.drain()
            changes = self._scope["method"] not in READS and self._scope["path"] not in ANSWERS
            if changes or message["status"] in REFUSED:
                self._start = message
                return
        elif self._start is not None:
            start, self._start = self._start, None
            await self._guard.note(self._scope, start["status"], message.get("body", b""))
            await self._send(start)
        await self._send(message)


class _Body:
    """Hands a body on, as long as it is not too much and keeps coming."""

    def __init__(self, receive: Receive, limit: int):
        self._receive, self._limit = receive, limit
        self._bytes, self._ended = 0, False
        self._until = asyncio.get_running_loop().time() + BODY_SECONDS

    def check(self, length: str | None) -> None:
        """Raises BadParameter: it says beforehand that it is too much."""
        if length and length.isdecimal() and int(length[:20]) > self._limit:
            raise BadParameter(f"the request is larger than {self._limit:,} bytes", None, "request_too_large", 413)

    async def __call__(self) -> Message:
        if self._ended:
            return await self._receive()
        left = self._until - asyncio.get_running_loop().time()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.001, min(IDLE_SECONDS, left)))
        except TimeoutError as error:
            self._ended = True
            raise HTTPException(408, "the request's body did not come") from error
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self._ended = not message.get("more_body", False)
            if self._bytes > self._limit:
                raise HTTPException(413, f"the request is larger than {self._limit:,} bytes")
        return message

    async def drain(self) -> None:
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self._ended and self._bytes < DRAIN_BYTES:
                    message = await self._receive()
                    self._bytes += len(message.get("body", b""))
                    self._ended = not message.get("more_body", False)
        except TimeoutError:
            pass


def _limit(scope: Scope, limits: Limits) -> int:
    if scope["method"] == "POST" and scope["path"] == "/v1/files":
        return limits.file_bytes + FORM_BYTES
    if scope["method"] == "POST" and PART.fullmatch(scope["path"]):
        return limits.part_bytes + FORM_BYTES
    return limits.body_bytes


def _id_in(body: bytes) -> str | None:
    try:
        found = json.loads(body)
    except ValueError:
        return None
    return found["id"] if isinstance(found, dict) and isinstance(found.get("id"), str) else None
