"""One job in a process of its own: `python -m tunesmith.jobs.worker JOB_ID ATTEMPT`, started by the dispatcher.

    TUNESMITH_DATABASE   the database's URL
    TUNESMITH_SERVICE    the service's directory
    TUNESMITH_HOME       the home of the job's project

A thread renews the lease and looks at what is wanted. What is to stop is told as everybody tells it, by SIGTERM: a training
writes a checkpoint and returns, anything else is interrupted where it is. Then the job is paused or cancelled, as was asked, or
goes back to the queue when nobody asked (the server stops). A worker that was killed leaves a lease that runs out.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import sqlalchemy as sa

from tunesmith.errors import TunesmithError
from tunesmith.jobs import queue
from tunesmith.jobs.database import Database, opened
from tunesmith.jobs.events import tell
from tunesmith.jobs.queue import LEASE_SECONDS, Claim, Lost
from tunesmith.jobs.settings import Settings
from tunesmith.jobs.tables import work as work_table

KINDS = {"fine_tuning": "tunesmith.jobs.finetune", "eval_run": "tunesmith.jobs.evaluate"}
"""The module of each kind of job has `work(task)`, which does it from wherever an earlier attempt got to, and
`failed(connection, task, error)`, which writes down why it failed."""
LOOK_SECONDS = 1.0
INSIST_SECONDS = 5.0


class Interrupted(BaseException):
    """SIGTERM, outside of a training. No Exception: nobody may take it for a failure of theirs."""


class Task:
    """A job in the hands of its worker."""

    def __init__(self, database: Database, claim: Claim, settings: Settings, lease_seconds: float = LEASE_SECONDS):
        self.database, self.claim, self.settings = database, claim, settings
        self.id, self.project_id = claim.id, claim.project_id
        self.wanted, self.lost = "run", False
        self._lease, self._done = lease_seconds, threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="lease", daemon=True)
        self.every: list[Callable[[], None]] = []
        """Called once a second while the job runs, on a thread: to tell what a training writes into its files."""

    def say(self, line: str) -> None:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    def tell(self, key: str, message: str, *, level: str = "info", kind: str = "message", data: Mapping | None = None) -> None:
        """An event, in a transaction of its own. Raises Lost."""
        with self.database.write() as connection:
            queue.still_mine(connection, self.claim)
            tell(connection, self.id, key, message, level=level, kind=kind, data=data)

    def begin(self) -> None:
        self._watcher.start()

    def end(self) -> None:
        self._done.set()
        if self._watcher.is_alive():
            self._watcher.join(timeout=30)

    def _watch(self) -> None:
        renewed = told = 0.0
        while not self._done.wait(LOOK_SECONDS):
            try:
                if time.monotonic() - renewed > self._lease / 3:
                    self.wanted, renewed = queue.renew(self.database, self.claim, self._lease), time.monotonic()
                else:
                    with self.database.read() as connection:
                        self.wanted = connection.execute(sa.select(work_table.c.wanted)
                                                         .where(work_table.c.id == self.id)).scalar_one()
                for look in self.every:
                    look()
            except Lost:
                self.lost = True
            except Exception as error:  # a database that is away for a moment; the lease says when it was too long
                self.say(f"could not look at the job: {type(error).__name__}: {error}")
            if (self.lost or self.wanted != "run") and time.monotonic() - told > INSIST_SECONDS:
                told = time.monotonic()
                os.kill(os.getpid(), signal.SIGTERM)


def main(job_id: str, attempt: int) -> int:
    settings = Settings.model_validate_json(os.environ.get("TUNESMITH_SETTINGS", "{}"))
    with opened(os.environ["TUNESMITH_DATABASE"]) as database:
        with database.read() as connection:
            row = connection.execute(sa.select(work_table).where(work_table.c.id == job_id)).mappings().one()
        task = Task(database, Claim(job_id, row["kind"], row["project_id"], attempt, row["fruitless"]), settings)
        kind = importlib.import_module(KINDS[row["kind"]])
        signal.signal(signal.SIGTERM, _interrupt)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's, which tells its workers
        try:
            return _carry_out(task, kind)
        except Lost as error:
            task.say(str(error))
            return 1


def _carry_out(task: Task, kind) -> int:
    """Raises Lost."""
    error: Exception | None = None
    task.begin()
    try:
        if task.claim.fruitless >= task.settings.attempts:
            raise TunesmithError(f"{task.claim.fruitless} workers in a row died on this job without a step forward",
                                 fix="see the worker's log; a machine with too little memory kills it each time")
        kind.work(task)
    except Interrupted:
        pass
    except Exception as failure:
        error = failure
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        task.end()
    if isinstance(error, Lost | sa.exc.OperationalError | sa.exc.InterfaceError) or task.lost:
        task.say(str(error))
        return 1  # of a database that was away, too: whoever claims the job when the lease has run out goes on
    with task.database.write() as connection:
        try:
            wanted = queue.still_mine(connection, task.claim)
        except Lost:
            return 0  # `work` ended it
        if error and wanted != "cancel":
            task.say(f"{type(error).__name__}: {error}")
            queue.end(connection, task.claim, "failed")
            kind.failed(connection, task, error)
        elif (status := queue.give_back(connection, task.claim)) != "queued":
            tell(connection, task.id, f"{status}-{task.claim.attempt}", f"The job was {status}")
    return 1 if error else 0


def _interrupt(_signum, _frame) -> None:
    raise Interrupted


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1], int(sys.argv[2])))
