"""The application in this process, with the official client before it and the queue's work done when a test says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from openai import OpenAI

from tunesmith.jobs.database import Database


@dataclass
class App:
    client: OpenAI
    database: Database
    fastapi: object
    engine: object

    def work(self) -> str | None:
        """Do the oldest job as its worker does. What came of it; None: nothing waits."""
        from tunesmith.jobs import evaluate, queue
        from tunesmith.jobs.settings import Settings
        from tunesmith.jobs.worker import Task

        mine = queue.claim(self.database, "here", ("eval_run",))
        if mine is None:
            return None
        task = Task(self.database, mine, Settings())
        try:
            evaluate.work(task)
        except Exception as error:
            with self.database.write() as connection:
                queue.end(connection, mine, "failed")
                evaluate.failed(connection, task, error)
            return "failed"
        return "succeeded"


@contextmanager
def app_over(home: Path, base: Path, url: str | None = None) -> Iterator[App]:
    """`home` must be TUNESMITH_HOME. `url`: of a database that is not the usual one."""
    from fastapi.testclient import TestClient

    from tunesmith.api.app import create_app
    from tunesmith.api.engines import Engines
    from tunesmith.api.service import Service
    from tunesmith.jobs import places
    from tunesmith.jobs.database import opened
    from tunesmith.jobs.projects import ensure_default
    from tunesmith.jobs.settings import Settings
    from tunesmith.models.base import resolve
    from tunesmith.models.load import tokenizer_of
    from tunesmith.serving.engine import Engine

    found = resolve(str(base))
    engine = Engine(found, tokenizer_of(found), "float32", "cpu", 0)
    settings = Settings(aliases={"gpt-4o-mini": str(base)}, bases=[str(base)])
    with opened(url or places.default_database()) as database:
        ensure_default(database)
        fastapi = create_app(Service(Engines(settings, database, engine), database, settings))
        with TestClient(fastapi, base_url="http://127.0.0.1", raise_server_exceptions=False) as http:
            client = OpenAI(base_url="http://127.0.0.1/v1", api_key="none", max_retries=0, http_client=http)
            yield App(client, database, fastapi, engine)
        engine.close()
