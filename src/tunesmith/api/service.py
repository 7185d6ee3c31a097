"""What every route works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request

from tunesmith.api.engines import Engines
from tunesmith.jobs.database import Database
from tunesmith.jobs.settings import Settings


def _nobody() -> None:
    return None


@dataclass
class Service:
    engines: Engines
    database: Database
    settings: Settings
    nudge: Callable[[], None] = _nobody
    """A job was queued or asked to stop: look at the queue now."""
    keyless: bool = True
    """Requests need no key: on loopback, as long as none was made."""


def service_of(request: Request) -> Service:
    return request.app.state.service
