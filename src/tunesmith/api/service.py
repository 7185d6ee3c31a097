"""What every route works with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastapi import Request

from tunesmith.api.engines import Engines
from tunesmith.jobs.database import Database
from tunesmith.jobs.dispatcher import Dispatcher
from tunesmith.jobs.settings import Settings

if TYPE_CHECKING:
    from tunesmith.api.observe import Metrics


def _metrics() -> Metrics:
    from tunesmith.api.observe import Metrics

    return Metrics()


@dataclass
class Service:
    engines: Engines
    database: Database
    settings: Settings
    dispatcher: Dispatcher | None = None
    """None: jobs wait for another server."""
    keyless: bool = True
    """Requests need no key as long as none was made: the server listens on loopback."""
    receiving: dict[str, int] = field(default_factory=dict)
    """Bytes of files that are on their way, by project; the event loop's."""
    metrics: Metrics = field(default_factory=_metrics)

    def nudge(self) -> None:
        """A job was queued or asked to stop: look at the queue now."""
        if self.dispatcher:
            self.dispatcher.nudge()


def service_of(request: Request) -> Service:
    return request.app.state.service
