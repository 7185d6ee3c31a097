"""A client that goes away ends its generation; the others never notice.

The server runs in a thread of this process, on a real socket, so that the worker can be held between two tokens while
the client leaves: nothing here depends on who is faster.

pytest tests/api/test_disconnect.py
"""

import threading
from contextlib import contextmanager

import httpx2
import pytest
import uvicorn
from openai import OpenAI

from tunesmith.api.app import create_app
from tunesmith.api.engines import Engines
from tunesmith.api.server import listen
from tunesmith.api.service import Service
from tunesmith.jobs.database import opened
from tunesmith.jobs.projects import ensure_default
from tunesmith.jobs.settings import Settings
from tunesmith.models.base import resolve
from tunesmith.models.load import tokenizer_of
from tunesmith.serving.engine import Engine
from tunesmith.serving.sampling import Request

QUESTION = [{"role": "user", "content": "5003 Oak Street"}]
LONGEST_WAIT = 60


@pytest.fixture(scope="module")
def engine(lively_base):
    base = resolve(str(lively_base))
    engine = Engine(base, tokenizer_of(base), "float32", "cpu", 0)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def url(engine, tmp_path_factory):
    place = tmp_path_factory.mktemp("service") / "service.db"
    with listen("127.0.0.1", 0) as listener, opened(f"sqlite:///{place}") as database:
        ensure_default(database)
        settings = Settings()
        app = create_app(Service(Engines(settings, database, engine), database, settings))
        running = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=running.run, args=([listener],))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        running.should_exit = True
        thread.join(LONGEST_WAIT)


@pytest.fixture(scope="module")
def client(url):
    return OpenAI(base_url=url, api_key="none", max_retries=0)


def until(condition) -> None:
    """Wait for what must come; how soon does not matter."""
    pause = threading.Event()
    for _ in range(LONGEST_WAIT * 100):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it never came")


def queued(engine, count: int) -> list:
    until(lambda: len(engine._waiting) == count)
    return list(engine._waiting)


class Hold:
    """A request whose `at_token`th and last token holds the worker until `go` is set."""

    def __init__(self, engine, at_token: int = 1):
        self.reached, self.go = threading.Event(), threading.Event()
        self._made, self._at_token = 0, at_token
        engine.submit(engine.find(engine.base.ref), Request(prompt=[5, 6], max_new_tokens=at_token), self._on_token, print)

    def _on_token(self, _token) -> None:
        self._made += 1
        if self._made == self._at_token:
            self.reached.set()
            self.go.wait(LONGEST_WAIT)


@contextmanager
def busy(engine):
    """The worker is held: what comes meanwhile waits."""
    hold = Hold(engine)
    try:
        assert hold.reached.wait(LONGEST_WAIT)
        yield hold
    finally:
        hold.go.set()


def check_it_goes_on(engine, client):
    made = client.chat.completions.create(model=engine.base.ref, messages=QUESTION, max_tokens=3, temperature=0)
    assert made.usage.completion_tokens == 3
    until(lambda: engine.load == {"running": 0, "waiting": 0})


def test_leaving_in_mid_stream_cancels_the_generation(engine, client):
    with busy(engine):
        companion = Hold(engine, at_token=6)
        stream = client.chat.completions.create(model=engine.base.ref, messages=QUESTION, stream=True, temperature=0)
        _, job = queued(engine, 2)  # they will be one batch
    try:
        assert companion.reached.wait(LONGEST_WAIT)
        assert next(c.choices[0].delta.content for c in stream if c.choices[0].delta.content)
        assert engine.load["running"] == 1 and not job.cancelled
        stream.close()
        until(lambda: job.cancelled)
    finally:
        companion.go.set()
    check_it_goes_on(engine, client)


def test_leaving_while_waiting_cancels_too(engine, client):
    with busy(engine):
        stream = client.chat.completions.create(model=engine.base.ref, messages=QUESTION, stream=True)
        assert next(iter(stream)).choices[0].delta.role == "assistant"
        (job,) = queued(engine, 1)
        stream.close()
        until(lambda: job.cancelled)
    check_it_goes_on(engine, client)


def test_leaving_a_whole_answer_cancels_too(engine, url, client):
    with busy(engine):
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{url}/chat/completions", json={"model": engine.base.ref, "messages": QUESTION, "n": 2}, timeout=1)
        jobs = queued(engine, 2)
        until(lambda: all(job.cancelled for job in jobs))
    check_it_goes_on(engine, client)


def test_an_error_in_the_worker_is_a_server_error_whole_and_streamed(engine, client):
    """The tokenizer knows more tokens than the model has: an odd base, and the only way from here to a broken worker."""
    import openai

    tokenizer = engine.find(engine.base.ref).tokenizer
    tokenizer.add_tokens(["<unheard>"])
    asked = {"model": engine.base.ref, "prompt": "a <unheard>", "max_tokens": 4}
    with pytest.raises(openai.InternalServerError, match="generation failed") as raised:
        client.completions.create(**asked)
    assert raised.value.body["type"] == "server_error"
    with pytest.raises(openai.APIError, match="generation failed"):
        list(client.completions.create(**asked, stream=True))
    check_it_goes_on(engine, client)
