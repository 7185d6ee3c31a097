"""The judge, asked over HTTP: what wins, what ties, a judge that looks at positions, and an endpoint that fails.

The server of the test stands for somebody else's service: it speaks the wire format and judges by a rule that is known.

pytest tests/evals/test_judge.py
"""

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pydantic import ValidationError

from tunesmith.errors import NotMeasured
from tunesmith.evals.compare import compare_suite
from tunesmith.evals.items import Item, Outcome, Suite
from tunesmith.evals.metrics.judge import MAX_UNREADABLE, prepare
from tunesmith.recipe.evaluation import Eval, Judge

KEY = "sk-very-secret-0123456789"
ANSWERS = re.compile(r"<answer_A>\n(.*?)\n</answer_A>.*<answer_B>\n(.*?)\n</answer_B>", re.DOTALL)


def by_length(first: str, second: str) -> str:
    """The longer answer is better."""
    return "[[C]]" if len(first) == len(second) else "[[A]]" if len(first) > len(second) else "[[B]]"


class Endpoint:
    """An OpenAI-compatible service whose model answers by a rule over the two answers that it is shown."""

    def __init__(self, rule: Callable[[str, str], str] = by_length, failures: int = 0, status: int = 200, body: bytes = b""):
        self.rule, self.failures, self.status, self.body = rule, failures, status, body
        self.requests: list[dict] = []
        self.keys: set[str] = set()
        lock, endpoint = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    endpoint.requests.append(asked)
                    endpoint.keys.add(self.headers["Authorization"])
                    fails = endpoint.failures > 0
                    endpoint.failures -= 1
                status = 429 if fails else endpoint.status
                body = endpoint.body or json.dumps({
                    "id": "c", "object": "chat.completion", "created": 0, "model": asked["model"], "choices": [
                        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": endpoint.rule(
                            *ANSWERS.search(asked["messages"][0]["content"]).groups())}}]}).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Retry-After-Ms", "1")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def endpoint():
    made = []

    def make(*args, **kwargs) -> Endpoint:
        made.append(Endpoint(*args, **kwargs))
        return made[-1]

    yield make
    for one in made:
        one.server.shutdown()
        one.server.server_close()


def settings(url: str, **judge) -> Eval:
    return Eval(judge=Judge(base_url=url, model="big", **{"retries": 0, "parallel": 2} | judge))


def suite(n: int) -> Suite:
    items = [Item(f"f:{i}", [{"role": "user", "content": f"Question {i}?"}], (f"Reference {i}",)) for i in range(n)]
    return Suite("s", "suite", items, ("judge",), "", 8)


def said(base: list[str], tuned: list[str]) -> dict:
    return {"zero_shot": [Outcome(t) for t in base], "tuned": [Outcome(t) for t in tuned]}


def test_the_better_answers_win_whatever_the_order(endpoint):
    asked = endpoint()
    base = ["short"] * 6 + ["equal", "same text", "rather long", "long again"]
    tuned = ["much longer"] * 6 + ["eqaul", "same text", "short", "x"]
    part = compare_suite(suite(10), said(base, tuned), settings(asked.url))
    found = part["metrics"]["judge"]
    assert found["tuned"] == pytest.approx((6 + 0.5 + 0.5) / 10) and found["base"] == pytest.approx(1 - found["tuned"])
    low, high = found["systems"]["tuned"]["ci95"]
    assert low < found["tuned"] < high and found["ci95"][0] <= found["delta"] <= found["ci95"][1]
    facts = found["facts"]
    assert [facts[k] for k in ("pairs", "wins", "losses", "ties", "same_answer", "unreadable", "order_decided")] == \
        [10, 6, 2, 1, 1, 0, 0]
    assert facts["position_bias"] is None and facts["verdicts"]["f:0"] == ["B", "A"] and "f:7" not in facts["verdicts"]
    assert len(asked.requests) == 2 * 9, "twice a pair, and never about two equal answers"
    assert [i["scores"]["judge"]["tuned"] for i in part["items"]] == [1] * 6 + [0.5, 0.5, 0, 0], "kept item by item"


@pytest.mark.parametrize("verdict, favoured", [("[[A]]", "first"), ("[[B]]", "second")])
def test_a_judge_that_prefers_a_position_makes_no_win(endpoint, verdict, favoured):
    """The control: with one order alone, this judge would let either model win every time."""
    asked = endpoint(lambda _first, _second: f"It reads better. {verdict}")
    part = compare_suite(suite(12), said(["bad"] * 12, ["good"] * 12), settings(asked.url))
    found = part["metrics"]["judge"]
    assert (found["tuned"], found["base"], found["delta"]) == (0.5, 0.5, 0)
    assert found["ci95"][0] <= 0 <= found["ci95"][1]
    low, high = found["systems"]["tuned"]["ci95"]
    assert low < 0.5 < high, "twelve ties are no certainty"
    assert found["facts"]["order_decided"] == 12 and found["facts"]["position_bias"] == favoured


def test_the_judge_sees_request_reference_and_both_answers_and_what_the_recipe_asks(endpoint):
    asked = endpoint()
    rules = settings(asked.url, question="Which is shorter?", extra={"top_p": 0.5})
    prepare(suite(1).items, said(["of base {0}"], ["of tuned"]), rules, None)
    first, second = sorted(asked.requests, key=lambda r: r["messages"][0]["content"].index("of base"))
    for request in (first, second):
        text = request["messages"][0]["content"]
        assert all(part in text for part in ("Which is shorter?", "user: Question 0?", "Reference 0", "of base {0}"))
        assert (request["model"], request["temperature"], request["max_tokens"], request["top_p"]) == ("big", 0, 512, 0.5)
    assert ANSWERS.search(first["messages"][0]["content"]).groups() == ("of base {0}", "of tuned")
    assert ANSWERS.search(second["messages"][0]["content"]).groups() == ("of tuned", "of base {0}")
    rules = settings(asked.url, show_reference=False, temperature=None, max_tokens=None)
    prepare(suite(1).items, said(["a"], ["b"]), rules, None)
    assert "Reference 0" not in asked.requests[-1]["messages"][0]["content"]
    assert not {"temperature", "max_tokens"} & asked.requests[-1].keys()


def test_rate_limits_are_waited_for(endpoint):
    asked = endpoint(failures=3)
    facts = prepare(suite(4).items, said(["a"] * 4, ["bb"] * 4), settings(asked.url, retries=5, parallel=1), None)
    assert (facts["wins"], len(asked.requests)) == (4, 8 + 3)


# ---- not measured ----------------------------------------------------------------------------------------------------


def unmeasured(asked: Endpoint, n: int = 4, **judge) -> dict:
    part = compare_suite(suite(n), said(["a"] * n, ["bb"] * n), settings(asked.url, **judge))
    assert part["metrics"] == {} and [i["scores"] for i in part["items"]] == [{}] * n
    return part["not_measured"]["judge"]


@pytest.mark.parametrize("status, body", [
    (500, b'{"error": {"message": "overloaded"}}'), (429, b"{}"), (401, b'{"error": {"message": "wrong key"}}'),
    (200, b"<html>"), (200, b'{"choices": null}'), (200, b"[]"), (404, b"")])
def test_an_endpoint_that_fails_is_not_measured_with_the_reason(endpoint, status, body):
    found = unmeasured(endpoint(status=status, body=body))
    assert "judge cannot be asked" in found["reason"] or "no readable verdict" in found["reason"]
    if status != 200:
        assert str(status) in found["reason"]


def test_an_endpoint_that_is_not_there(endpoint):
    asked = endpoint()
    asked.server.shutdown()
    asked.server.server_close()
    assert "APIConnectionError" in unmeasured(asked)["reason"]


@pytest.mark.parametrize("answer", ["", "I cannot say.", "A", "[[A]] or [[B]]", "[[D]]"])
def test_verdicts_that_cannot_be_read_are_told_and_are_no_ties(endpoint, answer):
    found = unmeasured(endpoint(lambda _first, _second: answer))
    assert "no readable verdict on 4 of 4 pairs" in found["reason"] and found["facts"]["unreadable"] == 4
    assert found["facts"]["verdicts"]["f:0"] == ["?", "?"]


def test_a_few_unreadable_verdicts_are_ties_and_counted(endpoint):
    n = 10
    odd = endpoint(lambda a, b: "hm" if "odd" in a + b else by_length(a, b))
    few = int(MAX_UNREADABLE * n)
    facts = prepare(suite(n).items, said(["a"] * n, ["odd"] * few + ["bb"] * (n - few)), settings(odd.url), None)
    assert (facts["unreadable"], facts["wins"]) == (few, n - few)
    with pytest.raises(NotMeasured):
        prepare(suite(n).items, said(["a"] * n, ["odd"] * (few + 1) + ["bb"] * (n - few - 1)), settings(odd.url), None)


def test_without_a_judge_or_a_base_there_is_no_verdict(endpoint):
    with pytest.raises(NotMeasured, match="no judge is set"):
        prepare(suite(1).items, said(["a"], ["b"]), Eval(), None)
    with pytest.raises(NotMeasured, match="one of them was not asked"):
        prepare(suite(1).items, {"tuned": [Outcome("a")]}, settings(endpoint().url), None)


# ---- the key ---------------------------------------------------------------------------------------------------------


def test_the_key_comes_from_the_environment_and_goes_to_the_endpoint_alone(endpoint, monkeypatch):
    monkeypatch.setenv("JUDGES_KEY", KEY)
    asked = endpoint()
    part = compare_suite(suite(2), said(["a"] * 2, ["bb"] * 2), settings(asked.url, api_key_env="JUDGES_KEY"))
    assert asked.keys == {f"Bearer {KEY}"} and KEY not in json.dumps(part)
    told = endpoint(status=401, body=json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}).encode())
    found = unmeasured(told, api_key_env="JUDGES_KEY")
    assert "401" in found["reason"] and KEY not in json.dumps(found), "an endpoint may say the key in its error"


def test_a_key_that_is_not_set_is_asked_for_by_its_name(endpoint, monkeypatch):
    monkeypatch.delenv("JUDGES_KEY", raising=False)
    asked = endpoint()
    assert "JUDGES_KEY is not set" in unmeasured(asked, api_key_env="JUDGES_KEY")["reason"] and not asked.requests


@pytest.mark.parametrize("url", ["https://user:pass@host/v1", "https://host/v1?key=1", "host/v1", "ftp://host", ""])
def test_an_address_that_is_none_or_carries_a_secret_is_refused(url):
    with pytest.raises(ValidationError):
        Judge(base_url=url, model="m")


def test_the_metric_needs_an_address():
    with pytest.raises(ValidationError, match="needs eval.judge"):
        Eval(metrics=["judge"])
