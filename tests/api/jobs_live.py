"""A live server that trains tiny bases, and jobs for it: for tests that kill, pause and wait.

    server = settings_file(folder, base, ...)        server.yaml with OpenAI's names for the tiny base
    job = create(client, rows, n_epochs=2)            upload, create
    wait(client, job.id)                              until it has ended; prints the events of one that failed
    worker_of(home, job.id)                           the process id of the worker that has it now, or None
"""

import json
import os
import signal
import sqlite3
import time
from pathlib import Path

import yaml
from tests.conftest import STREETS, street_row

ENDED = ("succeeded", "failed", "cancelled")
MODEL = "gpt-4o-mini-2024-07-18"


def settings_file(folder: Path, base: Path, **changes) -> Path:
    """`tunesmith serve --config` of this: every OpenAI name is `base`, nothing is tracked, small steps, float32."""
    recipe = {"method": {"type": "lora", "rank": 4, "alpha": 8}, "data": {"max_tokens": 128},
              "train": {"dtype": "float32", "learning_rate": 0.01, "checkpoint": {"every_steps": 2}},
              "eval": {"samples": 8, "max_new_tokens": 8}, "track": {"mlflow": None}}
    settings = {"organization": "acme", "aliases": {"gpt-4o-mini*": str(base), "gpt-3.5-turbo*": str(base)},
                "recipe": recipe} | changes
    path = folder / "server.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def rows(count: int, first: int = 0) -> list[dict]:
    """So many different examples."""
    return [street_row((n + first) * 37 + 11, STREETS[(n + first) % 8]) for n in range(count)]


def jsonl(examples: list[dict]) -> bytes:
    return "".join(json.dumps(e) + "\n" for e in examples).encode()


def upload(client, examples: list[dict] | bytes, purpose: str = "fine-tune"):
    content = examples if isinstance(examples, bytes) else jsonl(examples)
    return client.files.create(file=("training.jsonl", content), purpose=purpose)


def create(client, examples: list[dict] | int = 24, validation: list[dict] | None = None, *, n_epochs: int = 2,
           batch_size: int = 8, **fields):
    """A supervised job of these examples, or so many."""
    file = upload(client, rows(examples) if isinstance(examples, int) else examples)
    held_out = {"validation_file": upload(client, validation).id} if validation else {}
    given = {"model": MODEL, "hyperparameters": {"n_epochs": n_epochs, "batch_size": batch_size}} | fields
    return client.fine_tuning.jobs.create(training_file=file.id, **held_out, **given)


def wait(client, id: str, statuses: tuple[str, ...] = ENDED, seconds: float = 240):
    """The job once it is one of these."""
    until = time.monotonic() + seconds
    while True:
        job = client.fine_tuning.jobs.retrieve(id)
        if job.status in statuses:
            return job
        assert job.status not in ENDED and time.monotonic() < until, (job.status, job.error, told(client, id))
        time.sleep(0.1)


def told(client, id: str) -> list[str]:
    """Messages of all events, oldest first."""
    return [e.message for e in client.fine_tuning.jobs.list_events(id, limit=100)][::-1]


def worker_of(home: Path, id: str) -> int | None:
    """The process that has a job now: its command line names it."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                line = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"tunesmith.jobs.worker" in line and id.encode() in line:
                return int(process.name)
    return None


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def attempts(home: Path, id: str) -> int:
    """How often a worker took the job (SQLite in `home`)."""
    with sqlite3.connect(home / "service" / "service.db") as connection:
        return connection.execute("SELECT attempt FROM work WHERE id = ?", (id,)).fetchone()[0]
