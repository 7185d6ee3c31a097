"""A live server over a release that was really trained, and what plain transformers and PEFT answer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fastapi import FastAPI

    from tunesmith.jobs.database import Database

READY = re.compile(r"^ready: (http://\S+)$", re.MULTILINE)
LONGEST_START = 120


@dataclass
class Server:
    """`python -m tunesmith serve` in a process of its own."""

    process: subprocess.Popen
    log: Path
    """What it wrote to stderr."""

    @cached_property
    def url(self) -> str:
        """Where it listens; waits until it does."""
        deadline = time.monotonic() + LONGEST_START
        while not (found := READY.search(self.log.read_text(encoding="utf-8"))):
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text(encoding="utf-8")
            time.sleep(0.05)
        return found[1]


@pytest.fixture(scope="session")
def start_server(tmp_path_factory):
    """`start_server(home, *arguments)`: a server on a free port; it is still starting."""
    started = []

    def start(home: Path, *arguments: str) -> Server:
        log = tmp_path_factory.mktemp("server") / "stderr.txt"
        with open(log, "wb") as stderr:
            process = subprocess.Popen([sys.executable, "-m", "tunesmith", "serve", *arguments, "--port", "0"], stderr=stderr,
                                       stdout=subprocess.DEVNULL, env=os.environ | {"TUNESMITH_HOME": str(home)})
        started.append(process)
        return Server(process, log)

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def server(finished, start_server, tmp_path_factory) -> Server:
    """The finished project's release, by its id and as the channel `production`, beside its base."""
    import tunesmith

    home = tmp_path_factory.mktemp("served") / "home"
    shutil.copytree(finished.home, home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_HOME", str(home))
        tunesmith.promote(finished.done["release_id"], "production")
    return start_server(home, "--channel", "production", "--release", finished.done["release_id"])


@pytest.fixture(scope="session")
def client(server):
    """The official client, as it comes."""
    from openai import OpenAI

    return OpenAI(base_url=server.url, api_key="none", max_retries=0)


@pytest.fixture(scope="session")
def base(lively_base) -> str:
    """The model name of the base."""
    return str(lively_base)


@pytest.fixture(scope="session")
def tuned(finished) -> str:
    """The model name of the release."""
    return finished.done["release_id"]


@pytest.fixture(scope="session")
def tokenizer(lively_base):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(lively_base)


@pytest.fixture(scope="session")
def alone(finished, lively_base, base, tuned, tokenizer):
    """`alone(name, prompt ids, n)`: (answer ids, finish reason) of transformers and PEFT, one prompt, greedy."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def load():
        return AutoModelForCausalLM.from_pretrained(lively_base, dtype=torch.float32).eval()

    models = {base: load(), tuned: PeftModel.from_pretrained(load(), finished.release_dir / "adapter").eval()}

    def answer(name: str, prompt: list[int], n: int) -> tuple[list[int], str]:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            out = models[name].generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False,
                                        eos_token_id=tokenizer.eos_token_id, pad_token_id=0)[0, len(prompt):].tolist()
        return (out[:-1], "stop") if out[-1] == tokenizer.eos_token_id else (out, "length")

    return answer


@pytest.fixture(scope="session")
def bare(start_server, tmp_path_factory) -> tuple[Server, Path]:
    """(a server without models and keys that takes files of 200 kB, its home)."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "config.yaml").write_text("aliases: {small: ./nowhere}\nworkers: 0\nlimits: {file_bytes: 200000}\n",
                                        encoding="utf-8")
    return start_server(folder / "home", "--config", str(folder / "config.yaml")), folder / "home"


@dataclass
class Inside:
    """The application in this process, over a database and a directory of its own. No model is loaded."""

    database: Database
    app: FastAPI

    def http(self, key: str | None = None, **options):
        """A client of its routes, from this machine; with a key it sends that."""
        from fastapi.testclient import TestClient

        return TestClient(self.app, base_url="http://127.0.0.1", raise_server_exceptions=False, client=("127.0.0.1", 5),
                          headers={"Authorization": f"Bearer {key}"} if key else None, **options)

    def openai(self, key: str = "none", **options):
        """The official client."""
        from openai import OpenAI

        return OpenAI(base_url="http://127.0.0.1/v1", api_key=key, max_retries=0, http_client=self.http(), **options)

    def key(self, *scopes: str, project: str = "default") -> str:
        from tunesmith.jobs import keys

        return keys.add(self.database, project, scopes)[1]

    def log(self) -> list:
        """The audit log, oldest first."""
        from tunesmith.jobs import audit

        with self.database.read() as connection:
            return audit.entries(connection, 10_000)[::-1]


@pytest.fixture
def inside(home):
    """`inside(**settings)`: one of them; `keyless=False` for a server that others can reach."""
    from tunesmith.api.app import create_app
    from tunesmith.api.engines import Engines
    from tunesmith.api.service import Service
    from tunesmith.jobs import places
    from tunesmith.jobs.database import Database
    from tunesmith.jobs.projects import ensure_default
    from tunesmith.jobs.settings import Settings

    made = []

    def make(keyless: bool = True, **settings) -> Inside:
        settings, database = Settings(**settings), Database(places.default_database())
        ensure_default(database)
        made.append(database)
        return Inside(database, create_app(Service(Engines(settings, database), database, settings, keyless=keyless)))

    yield make
    for database in made:
        database.close()
