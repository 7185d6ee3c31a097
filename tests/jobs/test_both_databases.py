"""Fine-tuning jobs over the API on SQLite and on PostgreSQL: what is kept as JSON, how lists are cut and searched.

pytest tests/jobs/test_both_databases.py
"""

import openai
import pytest
from tests.api.jobs_app import app_over
from tests.api.jobs_live import MODEL, create, rows, told, upload, wait


@pytest.fixture
def app(url, tmp_path, lively_base):
    with app_over(tmp_path, lively_base, url) as app:
        yield app


def test_jobs_are_found_and_turned_over(app):
    client = app.openai()
    file = upload(client, rows(10)).id

    def job(metadata):
        return client.fine_tuning.jobs.create(model=MODEL, training_file=file, metadata=metadata).id

    def found(**query) -> set[str]:
        return {j.id for j in client.fine_tuning.jobs.list(limit=1, extra_query=query)}

    a, b, c, odd = job({"team": "a", "n": "1"}), job({"team": "b", "n": "1"}), job(None), job({'x"]$.y\'': "%_", "e": ""})
    assert found() == {a, b, c, odd}
    assert found(**{"metadata[team]": "a"}) == {a} and found(**{"metadata[n]": "1"}) == {a, b}
    assert found(**{'metadata[x"]$.y\']': "%_"}) == {odd} and found(**{"metadata[e]": ""}) == {odd}
    assert found(metadata="null") == {c} and found(**{"metadata[team]": "a' OR '1'='1"}) == set()
    assert client.fine_tuning.jobs.retrieve(odd).metadata == {'x"]$.y\'': "%_", "e": ""}
    assert client.fine_tuning.jobs.retrieve(c).metadata is None
    assert [e.id for e in client.fine_tuning.jobs.list_events(a, limit=1)] == [
        e.id for e in client.fine_tuning.jobs.list_events(a)]
    for path in ("jobs/%00", "jobs?after=%00", "jobs?metadata[%00]=a", "jobs?metadata[a]=%00", "jobs/a/events?after=%00"):
        assert app.http().get(f"/v1/fine_tuning/{path}").status_code in (400, 404), path
    bad = app.http().post("/v1/fine_tuning/jobs", json={"model": MODEL, "training_file": file, "metadata": {"k": "a\0b"}})
    assert bad.status_code == 400


@pytest.mark.slow
def test_a_job_runs_from_pause_to_answer(app):
    client = app.openai()
    job = create(client, 12, n_epochs=1)
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"
    assert app.do() is None, "nobody works on a paused job"
    assert client.fine_tuning.jobs.resume(job.id).status == "validating_files"
    assert app.do() == job.id
    done = wait(client, job.id, ("succeeded",), seconds=0)
    assert told(client, job.id)[2:4] == ["The job was paused", "The job was resumed"]
    assert [c.step_number for c in client.fine_tuning.jobs.checkpoints.list(job.id)] == [2]
    assert client.models.delete(done.fine_tuned_model).deleted
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(done.fine_tuned_model)
    with pytest.raises(openai.BadRequestError, match="already completed"):
        client.fine_tuning.jobs.cancel(job.id)
