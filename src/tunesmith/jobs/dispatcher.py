"""Starts workers for queued jobs, on a thread of the server, and tells the queue of those that died."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import sqlalchemy as sa

from tunesmith.jobs import places, queue
from tunesmith.jobs.database import Database, clock
from tunesmith.jobs.queue import Claim
from tunesmith.jobs.settings import Settings
from tunesmith.jobs.tables import work
from tunesmith.jobs.worker import KINDS

LOOK_SECONDS = 0.5
STOP_SECONDS = 60.0


class Dispatcher:
    """Up to `settings.workers` jobs at once on this machine. `start()`, then `stop()`; `nudge()` looks at the queue now."""

    def __init__(self, database: Database, settings: Settings, say: Callable[[str], None]):
        self.database, self.settings, self._say = database, settings, say
        self._host = platform.node()
        self._workers: dict[subprocess.Popen, Claim] = {}
        self._news, self._closing = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def nudge(self) -> None:
        self._news.set()

    def stop(self) -> None:
        """Workers write a checkpoint and give their jobs back; one that takes more than a minute is killed."""
        self._closing = True
        self.nudge()
        if self._thread.is_alive():
            self._thread.join(timeout=30)
        for process in self._workers:
            process.send_signal(signal.SIGTERM)
        until = time.monotonic() + STOP_SECONDS
        for process in self._workers:
            try:
                process.wait(timeout=max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._reap()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        while not self._closing:
            self._news.wait(LOOK_SECONDS)
            self._news.clear()
            try:
                self._reap()
                while not self._closing and len(self._workers) < self.settings.workers and self._room():
                    mine = queue.claim(self.database, self._host, tuple(KINDS))
                    if mine is None:
                        break
                    self._workers[self._begin(mine)] = mine
            except Exception as error:  # a database that is away for a moment must not end the queue
                self._say(f"could not look at the queue: {type(error).__name__}: {error}")
                time.sleep(LOOK_SECONDS)

    def _room(self) -> bool:
        """Workers that a killed server left go on, and count."""
        with self.database.read() as connection:
            running = connection.execute(sa.select(sa.func.count()).select_from(work).where(
                work.c.status == "running", work.c.owner == self._host, work.c.lease_until > clock(connection))).scalar_one()
        return running < self.settings.workers

    def _begin(self, mine: Claim) -> subprocess.Popen:
        folder = places.job_dir(mine.id)
        folder.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {
            "TUNESMITH_DATABASE": self.database.url, "TUNESMITH_SERVICE": str(places.service()),
            "TUNESMITH_HOME": str(places.project_home(mine.project_id)), "TUNESMITH_SETTINGS": self.settings.model_dump_json()}
        with open(folder / "worker.log", "ab") as log:
            # In a session of its own: Ctrl-C at the server's terminal is the server's, and a killed server leaves it working.
            return subprocess.Popen([sys.executable, "-m", "tunesmith.jobs.worker", mine.id, str(mine.attempt)],
                                    env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def _reap(self) -> None:
        for process in [p for p in self._workers if p.poll() is not None]:
            mine = self._workers.pop(process)
            queue.abandon(self.database, mine)


