"""Fine-tuning jobs of a live server, whose workers are killed: nothing is lost, told twice, or comes out otherwise.

pytest tests/api/test_jobs_live.py
"""

import time
from pathlib import Path

import pytest
import torch
from openai import OpenAI
from safetensors.torch import load_file
from tests.api import jobs_live
from tests.api.jobs_live import attempts, create, kill, rows, told, wait, worker_of

import tunesmith
from tunesmith.jobs.results import steps_of
from tunesmith.training.loop import read_metrics
from tunesmith.training.run import Run

STEPS = 30


@pytest.fixture(scope="module")
def live(start_server, lively_base, tmp_path_factory):
    """(client, home) of a server that trains."""
    folder = tmp_path_factory.mktemp("live")
    server = start_server(folder / "home", "--config", str(jobs_live.settings_file(folder, lively_base)))
    return OpenAI(base_url=server.url, api_key="none", max_retries=0), folder / "home"


def steps_told(client, id: str) -> list[int]:
    return [e.data["step"] for e in client.fine_tuning.jobs.list_events(id, limit=100) if e.type == "metrics"][::-1]


def killed(client, home: Path, id: str, times: int) -> None:
    """Kill the job's worker so often, each time when it has got somewhat further."""
    seen = 0
    for _ in range(times):
        while True:
            pid, events = worker_of(home, id), len(told(client, id))
            if pid and events > seen:
                kill(pid)
                seen = events
                break
            assert client.fine_tuning.jobs.retrieve(id).status not in jobs_live.ENDED, "it was too quick to be killed"
            time.sleep(0.02)


@pytest.mark.slow
def test_a_job_whose_worker_is_killed_three_times_is_the_one_that_was_not(live, monkeypatch):
    client, home = live
    job = create(client, 24, rows(4, 100), n_epochs=10, seed=3)
    killed(client, home, job.id, 3)
    job = wait(client, job.id, ("succeeded",))
    assert attempts(home, job.id) >= 4
    assert steps_told(client, job.id) == list(range(1, STEPS + 1)), "each step once, in order"
    seen = told(client, job.id)
    assert len(seen) == len(set(seen)) and seen[-1] == "The job has successfully completed"
    assert [c.step_number for c in client.fine_tuning.jobs.checkpoints.list(job.id)] == [30, 27, 24]

    monkeypatch.setenv("TUNESMITH_HOME", str(home))
    ours = Run.find(job.to_dict()["tunesmith"]["run_id"])
    straight = Run.find(tunesmith.train(home / "service" / "jobs" / job.id / "recipe.yaml")["run_id"])
    made = [load_file(run.adapter / "adapter_model.safetensors") for run in (ours, straight)]
    assert all(torch.equal(made[0][n], made[1][n]) for n in made[1]), "bit for bit the uninterrupted training"
    assert list(steps_of(read_metrics(ours.path), STEPS, True))[-1].loss == read_metrics(straight.path)[-2]["loss"]


@pytest.mark.slow
def test_a_paused_job_stands_still_and_goes_on_where_it_was(live):
    client, home = live
    job = create(client, 24, rows(4, 100), n_epochs=20)
    wait(client, job.id, ("running",))
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"
    until = time.monotonic() + 60
    while worker_of(home, job.id) and time.monotonic() < until:
        time.sleep(0.1)
    still = told(client, job.id)
    time.sleep(2)
    assert client.fine_tuning.jobs.retrieve(job.id).status == "paused" and told(client, job.id) == still
    assert still[-1] == "The job was paused"
    assert client.fine_tuning.jobs.resume(job.id).status in ("queued", "validating_files")
    wait(client, job.id, ("succeeded",))
    assert steps_told(client, job.id) == list(range(1, 61))
    gone = create(client, 24, n_epochs=20)
    wait(client, gone.id, ("running",))
    assert client.fine_tuning.jobs.cancel(gone.id).status == "cancelled"
    wait(client, gone.id, ("cancelled",))
