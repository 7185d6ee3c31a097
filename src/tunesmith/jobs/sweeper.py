"""A thread of the server that takes away what has expired and what killed processes left."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tunesmith.jobs import files, uploads
from tunesmith.jobs.database import Database

EVERY_SECONDS = 600.0


class Sweeper:
    """`start()`, then `stop()`. Several servers may sweep at once."""

    def __init__(self, database: Database, say: Callable[[str], None]):
        self._database, self._say, self._closing = database, say, threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _run(self) -> None:
        while True:
            try:
                uploads.sweep(self._database)
                files.sweep(self._database)
            except Exception as error:  # a disk or a database that is away for a moment; the next time will do
                self._say(f"could not sweep files: {type(error).__name__}: {error}")
            if self._closing.wait(EVERY_SECONDS):
                return
