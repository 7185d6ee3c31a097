"""Servers and workers that are killed at any moment: no file is lost, no event lost or told twice, every job ends as it would.

make test-slow, or: pytest -m slow tests/api/test_crash.py
"""

from __future__ import annotations

import random
import secrets
import sqlite3
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
import torch
from openai import APIConnectionError, APIError, OpenAI
from safetensors.torch import load_file
from tests.api.jobs_live import MODEL, jsonl, kill, rows, settings_file, told, wait, worker_of

KILLS = 50
EXAMPLES, EPOCHS, STEPS = 24, 8, 24
"""Three steps an epoch."""


class Watched:
    """A server that is started again when it was killed, and a client that remembers what it was promised."""

    def __init__(self, start_server, home: Path, config: Path):
        self.home, self._start = home, lambda: start_server(home, "--config", str(config))
        self.files: dict[str, bytes] = {}
        self.jobs: list[str] = []
        self.begin()

    def begin(self) -> None:
        self.server = self._start()
        self.client = OpenAI(base_url=self.server.url, api_key="none", max_retries=0, timeout=60)

    def kill(self) -> None:
        self.server.process.kill()
        self.server.process.wait()

    def wait_for_news(self, seconds: float) -> None:
        """Until something more was told of a job, so that not all are killed while they are still starting."""
        def heard() -> list[int]:
            return [len(told(self.client, job)) for job in self.jobs]

        before, until = heard(), time.monotonic() + seconds
        while heard() == before and time.monotonic() < until:
            time.sleep(0.05)

    def upload(self) -> str | None:
        """What is kept is what was answered: a call that broke off may or may not have been heard."""
        content = jsonl(rows(EXAMPLES, len(self.files)))
        try:
            file = self.client.files.create(file=("training.jsonl", content), purpose="fine-tune")
        except (APIConnectionError, APIError):
            return None
        self.files[file.id] = content
        return file.id

    def create(self, file: str) -> None:
        try:
            job = self.client.fine_tuning.jobs.create(training_file=file, model=MODEL, seed=1, hyperparameters={
                "n_epochs": EPOCHS, "batch_size": 8})
        except (APIConnectionError, APIError):
            return
        self.jobs.append(job.id)


def adapter(home: Path, job: str) -> dict[str, torch.Tensor]:
    with sqlite3.connect(home / "service" / "service.db") as connection:
        (run,) = connection.execute("SELECT run_id FROM fine_tuning_jobs WHERE id = ?", (job,)).fetchone()
    return load_file(home / "runs" / run / "adapter" / "adapter_model.safetensors")


def whole(client, id: str) -> None:
    """A job that ended as one that nobody killed: every event once, in order."""
    steps = [e.data["step"] for e in client.fine_tuning.jobs.list_events(id, limit=100) if e.type == "metrics"]
    assert steps[::-1] == list(range(1, STEPS + 1)), "each step once, in order"
    seen = told(client, id)
    assert len(seen) == len(set(seen)) and seen[-1] == "The job has successfully completed", seen
    (table,) = client.fine_tuning.jobs.retrieve(id).result_files
    assert len(client.files.content(table).read().splitlines()) == STEPS + 1


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_fifty_kills(start_server, lively_base, tmp_path_factory):
    """A worker or the server, whichever the dice say, while files come in and jobs are trained."""
    folder = tmp_path_factory.mktemp("crash")
    watched = Watched(start_server, folder / "home", settings_file(folder, lively_base, attempts=KILLS))
    dice, same = random.Random(secrets.randbits(32)), None
    while same is None:
        same = watched.upload()
    kills = {"worker": 0, "server": 0}
    while sum(kills.values()) < KILLS:
        if len(watched.jobs) < 2 or dice.random() < 0.05:
            watched.create(same)
        watched.upload()
        time.sleep(dice.uniform(0, 1.5))
        if dice.random() < 0.5:
            watched.wait_for_news(20)
        if dice.random() < 0.4:
            watched.kill()
            kills["server"] += 1
            watched.begin()
            continue
        running = [pid for job in watched.jobs if (pid := worker_of(watched.home, job))]
        for pid in running[:1]:
            kill(pid)
            kills["worker"] += 1
        if not running and all(watched.client.fine_tuning.jobs.retrieve(j).status == "succeeded" for j in watched.jobs):
            watched.create(same)
    assert min(kills.values()) > 5, kills

    client = watched.client
    for job in watched.jobs:
        wait(client, job, ("succeeded",), seconds=600)
        whole(client, job)
    for id, content in watched.files.items():
        assert client.files.content(id).read() == content, "a file that was promised is not what was sent"
    first, *others = [adapter(watched.home, job) for job in watched.jobs]
    assert others
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first), "equal jobs, killed elsewhere, differ"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_servers_share_one_queue(start_server, lively_base, tmp_path_factory, postgresql, monkeypatch):
    """On PostgreSQL: no job runs twice; when one server is killed, the other has all of it done."""
    name = f"t{secrets.token_hex(6)}"
    admin = sa.create_engine(postgresql, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    url = postgresql.set(database=name).render_as_string(hide_password=False)
    monkeypatch.setenv("TUNESMITH_DATABASE", url)
    folder = tmp_path_factory.mktemp("two")
    config, home = settings_file(folder, lively_base), folder / "home"
    one, two = (start_server(home, "--config", str(config), "--workers", "2") for _ in range(2))
    clients = [OpenAI(base_url=s.url, api_key="none", max_retries=0) for s in (one, two)]
    file = clients[0].files.create(file=("training.jsonl", jsonl(rows(EXAMPLES))), purpose="fine-tune")
    jobs = [clients[n % 2].fine_tuning.jobs.create(training_file=file.id, model=MODEL, hyperparameters={
        "n_epochs": EPOCHS, "batch_size": 8}).id for n in range(4)]
    wait(clients[1], jobs[0], ("running", "succeeded"))
    one.process.kill()
    for job in jobs:
        wait(clients[1], job, ("succeeded",), seconds=400)
        whole(clients[1], job)
    database = sa.create_engine(url)
    with database.connect() as connection:
        tried = connection.execute(sa.text("SELECT attempt FROM work")).scalars().all()
        runs = connection.execute(sa.text("SELECT run_id FROM fine_tuning_jobs")).scalars().all()
    database.dispose()
    assert tried == [1, 1, 1, 1], "a worker goes on without its server: nothing was done twice"
    assert sorted(runs) == sorted(p.name for p in (home / "runs").iterdir() if not p.name.startswith("."))
