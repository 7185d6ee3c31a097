"""What an operator sees: one line of JSON a request on stderr, and counters for Prometheus at `/metrics`.

A line holds the request's id, method, route (the pattern, not what was asked for), status, milliseconds, project and address.
Never a key, a prompt or an answer.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import sqlalchemy as sa
from fastapi import APIRouter, Depends, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from tunesmith.api.caller import Caller, may
from tunesmith.api.service import Service, service_of
from tunesmith.jobs.tables import models, work

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
UNKNOWN = "none"
"""The route of what no route answers: a label a path would be a label for everything that anybody ever asks."""

FACTS = {"adapters_registered": "Adapters that share the base's passes.", "adapters_loaded": "Of these, in memory.",
         "adapter_bytes": "Bytes of them.", "adapters_read_again": "How often one came back that had left.",
         "cache_tokens": "Tokens whose keys and values there is room for.", "cache_tokens_held": "Of these, held by requests.",
         "prompt_tokens_known": "Tokens of prompts that did not have to be read.",
         "rows_read_again": "How often a request had to make room for an older one."}
"""What engines say of themselves (`BaseEngine.facts`)."""

router = APIRouter()


class Metrics:
    """The counters of one application."""

    def __init__(self):
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter("tunesmith_http_requests", "Requests answered.", ["method", "route", "status"],
                                registry=registry)
        self.seconds = Histogram("tunesmith_http_request_seconds", "From a request to the end of its answer.", ["route"],
                                 buckets=SECONDS, registry=registry)
        self.open = Gauge("tunesmith_http_requests_open", "Requests that are being answered.", registry=registry)
        self.tokens = Counter("tunesmith_tokens", "Tokens read (prompt) and made (completion).", ["kind"], registry=registry)
        self.first_token = Histogram("tunesmith_first_token_seconds", "From a request to its first token.", buckets=SECONDS,
                                     registry=registry)
        self.generating = Gauge("tunesmith_generating", "Rows that are being generated, and that wait.", ["state"],
                                registry=registry)
        self.loaded = Gauge("tunesmith_models_loaded", "Names that answer without loading.", registry=registry)
        self.facts = {name: Gauge(f"tunesmith_{name}", what, registry=registry) for name, what in FACTS.items()}
        self.models = Gauge("tunesmith_fine_tuned_models", "Models that jobs made and nobody deleted.", registry=registry)
        self.jobs = Gauge("tunesmith_jobs", "Jobs in the database.", ["kind", "status"], registry=registry)

    def text(self, service: Service) -> bytes:
        """All of it, with gauges as they are now, in Prometheus' text format."""
        state = service.engines.state
        self.loaded.set(state["models"])
        for name in ("running", "waiting"):
            self.generating.labels(name).set(state[name])
        facts = service.engines.facts
        for name, gauge in self.facts.items():
            gauge.set(facts[name])
        with service.database.read() as connection:
            counted = connection.execute(sa.select(work.c.kind, work.c.status, sa.func.count())
                                         .group_by(work.c.kind, work.c.status)).all()
            self.models.set(connection.execute(sa.select(sa.func.count()).select_from(models)
                                               .where(models.c.deleted_at.is_(None))).scalar_one())
        self.jobs.clear()
        for kind, status, count in counted:
            self.jobs.labels(kind, status).set(count)
        return generate_latest(self.registry)


@router.get("/metrics", include_in_schema=False)
def metrics(_caller: Caller = Depends(may("admin")), service: Service = Depends(service_of)) -> Response:
    return Response(service.metrics.text(service), media_type=CONTENT_TYPE_LATEST)


class Observed:
    """ASGI: counts and logs each request when its answer has ended, however it ended."""

    def __init__(self, app, metrics: Metrics, log: Callable[[dict], None] | None = None):
        self._app, self._metrics, self._log = app, metrics, log or _to_stderr

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, sent = time.perf_counter(), 499, 0  # the client went away before there was an answer

        async def watched(message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                sent += len(message.get("body", b""))
            await send(message)

        self._metrics.open.inc()
        try:
            await self._app(scope, receive, watched)
        except Exception:
            status = 500
            raise
        finally:
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", UNKNOWN)
            self._metrics.open.dec()
            self._metrics.requests.labels(scope["method"], route, status).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            state = scope.get("state", {})
            caller = state.get("caller")
            self._log({
                "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "request_id": state.get("request_id"),
                "method": scope["method"], "route": route, "status": status, "milliseconds": round(seconds * 1000, 1),
                "bytes": sent, "project": caller.project_id if caller else None, "key": caller.key_id if caller else None,
                "address": scope["client"][0] if scope.get("client") else None})


def _to_stderr(facts: dict) -> None:
    """JSON for a machine; for a person at a terminal what a person would read."""
    if sys.stderr.isatty():
        line = f"{facts['at'][11:19]}  {facts['status']}  {facts['milliseconds']:>8.0f} ms  {facts['method']} {facts['route']}"
    else:
        line = json.dumps(facts)
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
