"""What an operator sees: counters that count what was asked, a line for each request, readiness that can be lost.

pytest tests/api/test_observe.py
"""

from __future__ import annotations

import json

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.api.evals_app import app_over

QUESTION = [{"role": "user", "content": "233 Oak Street, and nothing else"}]


@pytest.fixture(scope="module")
def app(tiny_base, tmp_path_factory):
    home = tmp_path_factory.mktemp("observed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_HOME", str(home))
        patch.delenv("TUNESMITH_SERVICE", raising=False)
        with app_over(home, tiny_base) as app:
            yield app


@pytest.fixture
def get(app):
    return lambda path: app.client._client.get(f"http://127.0.0.1{path}")


def counted(get) -> dict[tuple, float]:
    """Every sample of `/metrics`, by its name and labels."""
    answer = get("/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain")
    return {(s.name, *sorted(s.labels.items())): s.value
            for family in text_string_to_metric_families(answer.text) for s in family.samples}


def test_what_was_asked_is_counted(app, get):
    before = counted(get)
    answer = app.client.chat.completions.create(model="gpt-4o-mini", messages=QUESTION, max_tokens=5, temperature=0)
    list(app.client.chat.completions.create(model="gpt-4o-mini", messages=QUESTION, max_tokens=5, temperature=0, stream=True))
    assert get("/v1/models/nobody").status_code == 404
    after = counted(get)

    def more(name: str, **labels) -> float:
        key = (name, *sorted(labels.items()))
        return after.get(key, 0) - before.get(key, 0)

    assert more("tunesmith_http_requests_total", method="POST", route="/v1/chat/completions", status="200") == 2
    assert more("tunesmith_http_requests_total", method="GET", route="/v1/models/{name:path}", status="404") == 1
    assert more("tunesmith_http_request_seconds_count", route="/v1/chat/completions") == 2
    assert more("tunesmith_tokens_total", kind="prompt") == 2 * answer.usage.prompt_tokens
    assert more("tunesmith_tokens_total", kind="completion") == 2 * answer.usage.completion_tokens
    assert after["process_resident_memory_bytes",] > 1e8
    assert after["tunesmith_http_requests_open",] == 1, "this one"


def test_jobs_are_counted_by_what_became_of_them(app, get):
    made = app.client.evals.create(name="e", data_source_config={"type": "custom", "item_schema": {"type": "object"}},
                                   testing_criteria=[{"type": "string_check", "name": "c", "operation": "eq",
                                                      "input": "{{item.a}}", "reference": "x"}])
    app.client.evals.runs.create(made.id, data_source={"type": "jsonl", "source": {
        "type": "file_content", "content": [{"item": {"a": "x"}}]}})
    assert counted(get)["tunesmith_jobs", ("kind", "eval_run"), ("status", "queued")] == 1
    app.work()
    after = counted(get)
    assert after["tunesmith_jobs", ("kind", "eval_run"), ("status", "succeeded")] == 1
    assert ("tunesmith_jobs", ("kind", "eval_run"), ("status", "queued")) not in after


def test_a_line_for_each_request_and_nothing_of_what_was_said(app, capfd):
    capfd.readouterr()
    app.client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "a secret of mine"}],
                                       max_tokens=3, extra_headers={"x-request-id": "req_mine"})
    err = capfd.readouterr().err
    (line,) = [json.loads(text) for text in err.splitlines() if text.startswith("{")]
    assert (line["request_id"], line["method"], line["route"], line["status"]) == (
        "req_mine", "POST", "/v1/chat/completions", 200)
    assert line["milliseconds"] > 0 and line["bytes"] > 0 and line["project"] == "proj_default"
    assert "secret" not in err and "none" not in json.dumps(line), "neither the question nor the key"


def test_a_path_that_nobody_answers_is_no_label(app, get):
    get("/v1/somewhere/else")
    assert not [key for key in counted(get) if "somewhere" in str(key)]


def test_readiness_is_lost_with_the_generation(tiny_base, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    with app_over(tmp_path / "home", tiny_base) as app:
        ask = app.client._client.get
        ready = ask("http://127.0.0.1/readyz")
        assert ready.status_code == 200
        assert ready.json() == {"status": "ready", "checks": {"database": True, "generation": True, "queue": True}}
        app.engine.close()
        lost = ask("http://127.0.0.1/readyz")
        assert (lost.status_code, lost.json()["checks"]["generation"]) == (503, False)
        assert ask("http://127.0.0.1/healthz").status_code == 200


def test_a_live_server_says_that_it_is_ready(server):
    root = server.url.removesuffix("/v1")
    assert httpx2.get(f"{root}/readyz").json()["status"] == "ready"
    assert httpx2.get(f"{root}/metrics").status_code == 200
