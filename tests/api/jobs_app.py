"""The application in this process, with the worker's own code to do its jobs: no process has to start."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from fastapi import FastAPI
from openai import OpenAI
from tests.api.jobs_live import settings_file

from tunesmith.jobs import places, queue, worker
from tunesmith.jobs.database import Database, opened
from tunesmith.jobs.settings import Settings


@dataclass
class App:
    database: Database
    app: FastAPI
    settings: Settings

    def http(self, key: str | None = None):
        from fastapi.testclient import TestClient

        return TestClient(self.app, base_url="http://127.0.0.1", raise_server_exceptions=False, client=("127.0.0.1", 5),
                          headers={"Authorization": f"Bearer {key}"} if key else None)

    def openai(self, key: str = "none") -> OpenAI:
        return OpenAI(base_url="http://127.0.0.1/v1", api_key=key, max_retries=0, http_client=self.http())

    def project(self, name: str) -> tuple[str, OpenAI]:
        """(the id of a new project, a client with a key of it). From then on everybody needs a key."""
        from tunesmith.jobs import keys, projects

        row = projects.add(self.database, name)
        return row["id"], self.openai(keys.add(self.database, row["id"], ("admin",))[1])

    def do(self, kind=None) -> str | None:
        """Do the next job that waits, as a worker does; the job's id."""
        claim = queue.claim(self.database, "here", tuple(worker.KINDS))
        if claim is None:
            return None
        from tunesmith.jobs import finetune

        before = signal.getsignal(signal.SIGTERM)
        with pytest.MonkeyPatch.context() as patch:
            service = places.service()
            patch.setenv("TUNESMITH_SERVICE", str(service))
            patch.setenv("TUNESMITH_HOME", str(places.project_home(claim.project_id)))
            try:
                worker._carry_out(worker.Task(self.database, claim, self.settings), kind or finetune)
            finally:
                signal.signal(signal.SIGTERM, before)
        return claim.id


@contextmanager
def app_over(folder: Path, base: Path, url: str | None = None, **changes) -> Iterator[App]:
    """TUNESMITH_HOME is what it is; `changes` of server.yaml."""
    from tunesmith.api.app import create_app
    from tunesmith.api.engines import Engines
    from tunesmith.api.service import Service
    from tunesmith.jobs.projects import ensure_default

    settings = Settings.model_validate(yaml.safe_load(settings_file(folder, base, **changes).read_text()))
    with opened(url or places.default_database()) as database:
        ensure_default(database)
        engines = Engines(settings, database)
        yield App(database, create_app(Service(engines, database, settings)), settings)
        engines.close()
