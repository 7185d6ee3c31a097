"""The load on the real server, and what a measurement does when a server hangs, lies or dies.

pytest tests/evals/test_latency.py
"""

import json
import socket
import threading
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from scipy import stats

from tunesmith.errors import TunesmithError
from tunesmith.evals.html import render_report
from tunesmith.evals.latency import Server, ask, load_of, quantile, quantiles, server
from tunesmith.recipe.evaluation import Serving
from tunesmith.training.run import Run

QUESTION = [{"role": "user", "content": "12 Oak Street"}]


@pytest.mark.slow
def test_the_real_server_is_measured_with_base_and_adapter(project, command):
    run_id = project.done["run_id"]
    path = project.run_dir / "recipe.resolved.json"
    recipe = json.loads(path.read_text())
    recipe["eval"] |= {"metrics": ["loss"], "baselines": ["zero_shot"],
                       "serving": {"clients": [1, 3], "requests": 4, "new_tokens": 8, "price_per_hour": 3.6}}
    recipe["gates"]["serving"] = {"max_overhead": 1.0, "clients": 3}
    path.write_text(json.dumps(recipe))
    done = command("eval", run_id, "--json", check=0).json
    serving = done["serving"]
    assert serving == project.report["serving"]
    assert serving["stopped"] is None and serving["memory_bytes"] > 100_000_000
    for part in ("base", "tuned"):
        assert [load["clients"] for load in serving[part]] == [1, 3]
        for load in serving[part]:
            assert (load["requests"], load["failed"], load["errors"]) == (4, 0, [])
            assert 0 < load["tokens"] <= 4 * 8
            assert load["tokens_per_second"] == pytest.approx(load["tokens"] / load["wall_seconds"])
            assert 0 < load["first_token_seconds"]["p50"] <= load["seconds"]["p95"] <= load["wall_seconds"]
            assert load["cost_per_million_tokens"] == pytest.approx(1000 / load["tokens_per_second"])
    for base, tuned in zip(serving["base"], serving["tuned"], strict=True):
        assert tuned["overhead"] == pytest.approx(1 - tuned["tokens_per_second"] / base["tokens_per_second"])
    page = (project.run_dir / "report" / "report.html").read_text()
    assert 'id="serving"' in page and "3, tuned" in page and "per million tokens" in page
    gates = {g["name"]: g for g in command("release", run_id, "--json").json["gates"]}
    assert gates["serving"]["evidence"]["clients"] == 3 and gates["serving"]["verdict"] in ("pass", "fail")
    assert Run(project.run_dir).state["status"] == "finished"


def test_without_serving_nothing_is_said_of_it(finished):
    assert "serving" not in finished.report and 'id="serving"' not in render_report(finished.report)


# ---- servers that do wrong ---------------------------------------------------------------------------------------------


@contextmanager
def speaking(words: list[bytes], pause: float = 0.0):
    """A server on loopback that says this to whoever comes, and then nothing more until it is closed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closing = threading.Event()

        def answer(connection):
            with connection, connection.makefile("rb") as question:
                head = {k.lower(): v for k, _, v in (line.partition(b": ") for line in iter(question.readline, b"\r\n"))}
                question.read(int(head[b"content-length"]))  # what is left unread when it closes would reset the connection
                for part in words:
                    with suppress(OSError):  # the client has gone
                        connection.sendall(part)
                    closing.wait(pause)
                if pause == 0.0 and words and words[-1].endswith(b"[DONE]\n\n"):
                    return
                closing.wait(20)

        def accept():
            while not closing.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield Server(None, "127.0.0.1", listener.getsockname()[1])
        closing.set()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def event(text=None, finish=None, **more):
    delta = {} if text is None else {"content": text}
    return b"data: " + json.dumps({"choices": [{"delta": delta, "finish_reason": finish}]} | more).encode() + b"\n\n"


def test_a_stream_is_read_as_it_comes():
    usage = b'data: {"choices": [], "usage": {"completion_tokens": 7}}\n\n'
    with speaking([HEAD, event(""), event("a"), event("b", "stop"), usage, b"data: [DONE]\n\n"]) as running:
        answer = ask(running, "m", QUESTION, 8, 5.0)
    assert (answer.error, answer.tokens) == (None, 7) and 0 < answer.first <= answer.seconds


@pytest.mark.parametrize("words, said", [
    ([], "timed out"),
    ([HEAD], "timed out"),
    ([HEAD, event("a")], "timed out"),
    ([HEAD, b"data: {not json}\n\n"], "Error"),
    ([HEAD, b'data: {"error": {"message": "out of memory"}}\n\n'], "out of memory"),
    ([b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy"], "status 503: busy"),
])
def test_a_server_that_hangs_or_fails_is_a_failed_request_not_a_wait(words, said):
    with speaking(words) as running:
        answer = ask(running, "m", QUESTION, 8, 0.3)
    assert said in answer.error


def test_a_server_that_is_not_there_is_a_failed_request():
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    assert "refused" in ask(Server(None, "127.0.0.1", port), "m", QUESTION, 8, 1.0).error


def test_a_server_that_trickles_for_ever_ends_at_the_limit():
    with speaking([HEAD, *[event("a")] * 200], pause=0.05) as running:
        load = load_of(running, "m", 2, [QUESTION], Serving(requests=4), time.monotonic() + 1.0)
    assert (load["requests"], load["failed"], load["tokens_per_second"]) == (4, 4, 0.0)
    assert load["first_token_seconds"]["p50"] is None and load["cost_per_million_tokens"] is None


def test_failed_requests_are_counted_and_told_beside_those_that_were_not_sent():
    with speaking([b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy"]) as running:
        load = load_of(running, "m", 2, [QUESTION], Serving(requests=5), time.monotonic() + 10)
    assert (load["failed"], load["errors"]) == (5, ["status 503: busy"])


def test_a_server_that_does_not_start_says_why(home):
    with pytest.raises(TunesmithError, match="did not start") as raised, server(["--run", "no-such-run"], 60.0):
        pass
    assert "no-such-run" in raised.value.why
    with pytest.raises(TunesmithError, match="was not ready after"), server(["--help"], 0.01):
        pass


# ---- quantiles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, q", [(20, 0.5), (100, 0.5), (100, 0.95), (400, 0.95)])
def test_the_interval_of_a_quantile_holds_it_95_times_of_100(n, q):
    random, truth = np.random.default_rng(0), stats.gamma(2).ppf(q)
    held = 0
    for _ in range(1000):
        value, (low, high) = quantile(random.gamma(2, size=n), q)
        assert low <= value <= high
        held += low <= truth <= high
    assert 0.94 <= held / 1000 <= 0.99, "order statistics jump: never under 95, sometimes over"


def test_few_values_bound_no_quantile_and_say_so():
    assert quantile([0.3, 0.1, 0.2], 0.95) == (0.3, [0.2, None])
    assert quantiles([]) == {"p50": None, "p50_ci95": [None, None], "p95": None, "p95_ci95": [None, None]}
    assert quantile(list(range(1, 101)), 0.95)[0] == 95
