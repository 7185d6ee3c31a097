"""Runs of evals under a live server, whose worker is killed in the middle, told to stop, and asked for a release's model.

pytest tests/api/test_eval_worker.py -m slow
"""

import os
import signal
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
CUSTOM = {"type": "custom", "item_schema": {"type": "object"}}
SAME = {"type": "string_check", "name": "same", "operation": "eq", "input": "{{sample.output_text}}", "reference": "x"}
LONGEST = 120


def asking(model: str, rows: int, **params) -> dict:
    return {"type": "completions", "model": model, "sampling_params": {"max_completion_tokens": 100, **params},
            "source": {"type": "file_content", "content": [{"item": {"n": n}} for n in range(rows)]},
            "input_messages": {"type": "template", "template": [{"role": "user", "content": "{{item.n}} Oak Street"}]}}


def workers(server) -> list[int]:
    """Processes that the server started to do jobs."""
    own = Path(f"/proc/{server.process.pid}/task")
    children = {int(pid) for thread in own.iterdir() for pid in (thread / "children").read_text().split()}
    return [pid for pid in children if b"tunesmith.jobs.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def until(client, run, holds):
    end = time.monotonic() + LONGEST
    while not holds(run):
        assert time.monotonic() < end and run.status in ("queued", "in_progress"), run
        time.sleep(0.1)
        run = client.evals.runs.retrieve(run.id, eval_id=run.eval_id)
    return run


def ended(run) -> bool:
    return run.status not in ("queued", "in_progress")


def said(client, run) -> list:
    return [(i.datasource_item_id, i.sample.output[0].content)
            for i in client.evals.runs.output_items.list(run.id, eval_id=run.eval_id, limit=100)]


@pytest.fixture(scope="module")
def made(client):
    return client.evals.create(data_source_config=CUSTOM, testing_criteria=[SAME])


def test_a_worker_that_is_killed_loses_nothing_and_doubles_nothing(server, client, made, tuned):
    """It is of a release's model too, which the worker finds by what its name meant."""
    source = asking(tuned, 100, temperature=1.0, seed=11)
    whole = until(client, client.evals.runs.create(made.id, data_source=source), ended)
    assert (whole.status, whole.result_counts.total) == ("completed", 100), whole.error
    broken = client.evals.runs.create(made.id, data_source=source)
    kills = 0
    for rows in (1, 40):
        broken = until(client, broken, lambda run, rows=rows: run.result_counts.total >= rows)
        assert not ended(broken), "too few rows to kill it in the middle"
        for pid in workers(server):
            os.kill(pid, signal.SIGKILL)
            kills += 1
        time.sleep(1)
    broken = until(client, broken, ended)
    assert kills == 2 and (broken.status, broken.result_counts) == ("completed", whole.result_counts)
    assert said(client, broken) == said(client, whole) and [at for at, _ in said(client, whole)] == list(range(100))
    assert broken.per_model_usage == whole.per_model_usage
    chat = client.chat.completions.create(model=tuned, messages=[{"role": "user", "content": "3 Oak Street"}],
                                          max_completion_tokens=100, temperature=1.0, seed=11)
    assert chat.choices[0].message.content == said(client, whole)[3][1], "what was measured is what is served"


def test_a_run_that_is_cancelled_stops_where_it_is(server, client, made, base):
    run = client.evals.runs.create(made.id, data_source=asking(base, 400, temperature=0))
    run = until(client, run, lambda r: r.result_counts.total > 0)
    client.evals.runs.cancel(run.id, eval_id=made.id)
    run = until(client, run, ended)
    assert run.status == "canceled" and 0 < run.result_counts.total < 400
    assert len(said(client, run)) == run.result_counts.total, "what was done is kept"
    end = time.monotonic() + LONGEST
    while workers(server):
        assert time.monotonic() < end
        time.sleep(0.1)
