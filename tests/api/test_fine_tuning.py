"""Fine-tuning jobs over OpenAI's client: what may be asked for, who sees what, and every order of pause, resume and cancel.

pytest tests/api/test_fine_tuning.py
"""

import json
from contextlib import nullcontext

import openai
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.api.jobs_app import app_over
from tests.api.jobs_live import MODEL, create, rows, told, upload

from tunesmith.jobs import queue
from tunesmith.jobs.tables import events, work


@pytest.fixture
def app(tmp_path, tiny_base):
    with app_over(tmp_path, tiny_base) as app:
        yield app


@pytest.fixture
def client(app):
    return app.openai()


@pytest.fixture
def file(client) -> str:
    return upload(client, rows(10)).id


def refused(call, status: int) -> dict:
    with pytest.raises(openai.APIStatusError) as raised:
        call()
    assert raised.value.status_code == status, raised.value.body
    return raised.value.body


# ---- create ----------------------------------------------------------------------------------------------------------------


def test_a_new_job_is_what_openai_answers(client, file):
    job = client.fine_tuning.jobs.create(
        model=MODEL, training_file=file, suffix="My Test", seed=42, metadata={"team": "a"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": "auto"}}})
    assert job.id.startswith("ftjob-") and job.object == "fine_tuning.job" and job.status == "validating_files"
    assert (job.model, job.seed, job.training_file, job.organization_id) == (MODEL, 42, file, "acme")
    assert (job.fine_tuned_model, job.finished_at, job.error, job.result_files) == (None, None, None, [])
    hyperparameters = {"n_epochs": 3, "batch_size": "auto", "learning_rate_multiplier": "auto"}
    assert job.hyperparameters.to_dict() == hyperparameters
    assert job.method.to_dict() == {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    assert job.metadata == {"team": "a"} and job.to_dict()["user_provided_suffix"] == "My Test"
    assert client.fine_tuning.jobs.retrieve(job.id) == job
    assert told(client, job.id) == [f"Created fine-tuning job: {job.id}", f"Validating training file: {file}"]


def test_dpo_has_no_hyperparameters_of_the_old_kind(client, file):
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=file, method={"type": "dpo"}).to_dict()
    assert job["hyperparameters"] is None
    assert job["method"]["dpo"]["hyperparameters"]["beta"] == "auto"


def test_method_counts_before_the_older_hyperparameters(client, file):
    job = client.fine_tuning.jobs.create(
        model=MODEL, training_file=file, hyperparameters={"n_epochs": 9},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}})
    assert job.hyperparameters.n_epochs == 2


WRONG = [
    ({"model": "gpt-9"}, 404, "model_not_found", "model"),
    ({"model": "ft:gpt-4o-mini:acme::aaaaaaaa"}, 404, "model_not_found", "model"),
    ({"model": "a\0b"}, 400, "invalid_value", None),
    ({"training_file": "file-none"}, 400, "file_not_found", "training_file"),
    ({"validation_file": "file-none"}, 400, "file_not_found", "validation_file"),
    ({"method": {"type": "reinforcement", "reinforcement": {"grader": {}}}}, 400, "unsupported", "method.type"),
    ({"method": {"type": "rlhf"}}, 400, "unsupported", "method.type"),
    ({"method": {"type": "dpo", "supervised": {}}}, 400, "invalid_value", "method.supervised"),
    ({"hyperparameters": {"n_epochs": 51}}, 400, None, "hyperparameters.n_epochs"),
    ({"hyperparameters": {"n_epochs": "many"}}, 400, None, "hyperparameters.n_epochs"),
    ({"hyperparameters": {"n_epochs": True}}, 400, None, "hyperparameters.n_epochs"),
    ({"hyperparameters": {"batch_size": 257}}, 400, None, "hyperparameters.batch_size"),
    ({"hyperparameters": {"learning_rate_multiplier": 0}}, 400, None, "hyperparameters.learning_rate_multiplier"),
    ({"hyperparameters": {"epochs": 3}}, 400, "unknown_parameter", "hyperparameters.epochs"),
    ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 3}}}}, 400, None, "method.dpo.hyperparameters.beta"),
    ({"suffix": ""}, 400, None, "suffix"), ({"suffix": "x" * 65}, 400, None, "suffix"),
    ({"seed": -1}, 400, None, "seed"), ({"seed": 2**31}, 400, None, "seed"),
    ({"metadata": {str(n): "x" for n in range(17)}}, 400, None, "metadata"),
    ({"metadata": {"k" * 65: "x"}}, 400, None, "metadata"), ({"metadata": {"k": "x" * 513}}, 400, None, "metadata"),
    ({"metadata": {"k": "a\0b"}}, 400, "invalid_value", None), ({"metadata": {"k": 1}}, 400, None, "metadata"),
    ({"integrations": [{"type": "comet"}]}, 400, "unsupported", "integrations"),
    ({"integrations": [{"type": "wandb"}]}, 400, "missing_required_parameter", "integrations.wandb"),
    ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}] * 6}, 400, None, "integrations"),
    ({"sufix": "x"}, 400, "unknown_parameter", "sufix"),
    ({"tunesmith": {"method": {"rnak": 8}}}, 400, "invalid_extension", "tunesmith"),
    ({"tunesmith": {"data": {"train": "/etc/passwd"}}}, 400, "invalid_extension", "tunesmith"),
    ({"tunesmith": {"train": {"learning_rate": 1e400}}}, 400, "invalid_value", None),
    ({"tunesmith": {"train": {"max_steps": 2**80}}}, 400, "invalid_value", None),
    ({"tunesmith": {"eval": {"metrics": [{}]}}}, 400, "invalid_extension", "tunesmith"),
    ({"tunesmith": {"gates": {"target": {"metric": {}}}}}, 400, "invalid_extension", "tunesmith"),
    ({"metadata": {"tunesmith.rank": "many"}}, 400, "invalid_extension", "tunesmith"),
]


@pytest.mark.parametrize("fields, status, code, param", WRONG)
def test_a_wrong_request_names_the_field(app, client, file, fields, status, code, param):
    body = {"model": MODEL, "training_file": file} | fields
    answer = app.http().post("/v1/fine_tuning/jobs", content=json.dumps(body).encode(),
                             headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), error
    assert error["type"] == "invalid_request_error" and error["message"]
    assert not client.fine_tuning.jobs.list().data, "nothing was queued"


def test_reinforcement_is_said_to_be_unsupported_and_a_typing_error_gets_the_nearest_name(client, file):
    error = refused(lambda: client.fine_tuning.jobs.create(
        model=MODEL, training_file=file, method={"type": "reinforcement", "reinforcement": {"grader": {}}}), 400)
    assert "'reinforcement' is not supported" in error["message"] and "supervised and dpo" in error["message"]
    error = refused(lambda: client.fine_tuning.jobs.create(
        model=MODEL, training_file=file, hyperparameters={"n_epoch": 3}), 400)
    assert "n_epochs" in error["message"]


def test_a_file_for_something_else_is_refused(client):
    file = upload(client, rows(10), purpose="evals").id
    assert refused(lambda: client.fine_tuning.jobs.create(model=MODEL, training_file=file), 400)["code"] == "invalid_purpose"


def test_a_project_has_so_many_active_jobs_and_no_more(tmp_path, tiny_base):
    with app_over(tmp_path, tiny_base, limits={"active_jobs": 2}) as app:
        client = app.openai()
        first, _second = create(client), create(client)
        assert refused(lambda: create(client), 429)["code"] == "rate_limit_exceeded"
        client.fine_tuning.jobs.cancel(first.id)
        create(client)


# ---- list, retrieve --------------------------------------------------------------------------------------------------------


def test_lists_turn_their_pages_to_the_end(client, file):
    made = {client.fine_tuning.jobs.create(model=MODEL, training_file=file).id for _ in range(5)}
    first = client.fine_tuning.jobs.list(limit=2)
    assert first.has_more and len(first.data) == 2
    assert [j.id for j in client.fine_tuning.jobs.list(limit=2)] == [j.id for j in client.fine_tuning.jobs.list()]
    assert {j.id for j in client.fine_tuning.jobs.list(limit=2)} == made
    one = next(iter(made))
    assert [e.id for e in client.fine_tuning.jobs.list_events(one, limit=1)] == [
        e.id for e in client.fine_tuning.jobs.list_events(one)]
    assert refused(lambda: client.fine_tuning.jobs.list(after="ftjob-none"), 400)["param"] == "after"
    assert refused(lambda: client.fine_tuning.jobs.list(limit=0), 400)["param"] == "limit"
    page = client.fine_tuning.jobs.checkpoints.list(one)
    assert page.data == [] and page.has_more is False


def test_jobs_are_found_by_their_metadata(client, file):
    def job(metadata):
        return client.fine_tuning.jobs.create(model=MODEL, training_file=file, metadata=metadata).id

    def found(**query) -> set[str]:
        return {j.id for j in client.fine_tuning.jobs.list(extra_query=query)}

    a, b, c, odd = job({"team": "a", "n": "1"}), job({"team": "b", "n": "1"}), job(None), job({'x"]$.y\'': "%_", "e": ""})
    assert found(**{"metadata[team]": "a"}) == {a} and found(**{"metadata[n]": "1"}) == {a, b}
    assert found(**{"metadata[n]": "1", "metadata[team]": "b"}) == {b}
    assert found(**{'metadata[x"]$.y\']': "%_"}) == {odd} and found(**{"metadata[e]": ""}) == {odd}
    assert found(**{"metadata[team]": "%"}) == set() and found(metadata="null") == {c}
    assert {j.id for j in client.fine_tuning.jobs.list(metadata={"team": "a"})} == {a}


def test_another_projects_job_is_one_that_does_not_exist(app):
    _, mine = app.project("mine")
    _, others = app.project("others")
    job = create(mine)
    jobs = others.fine_tuning.jobs
    for call in (jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, jobs.list_events, jobs.checkpoints.list):
        theirs, nobodys = refused(lambda call=call: call(job.id), 404), refused(lambda call=call: call("ftjob-none"), 404)
        assert theirs == nobodys | {"message": nobodys["message"].replace("ftjob-none", job.id)}
    assert not jobs.list().data
    assert refused(lambda: jobs.create(model=MODEL, training_file=job.training_file), 400)["code"] == "file_not_found"
    assert mine.fine_tuning.jobs.retrieve(job.id).status == "validating_files"


@pytest.mark.parametrize("path", ["/v1/fine_tuning/jobs/%00", "/v1/fine_tuning/jobs/" + "x" * 5000, "/v1/models/%00",
                                  "/v1/fine_tuning/jobs?after=%00", "/v1/fine_tuning/jobs?limit=99999999999999999999",
                                  "/v1/fine_tuning/jobs?metadata[%00]=a", "/v1/fine_tuning/jobs?metadata=x",
                                  "/v1/fine_tuning/checkpoints/%00/permissions", "/v1/fine_tuning/jobs/a/events?after=%00"])
def test_nothing_odd_is_more_than_refused(app, path):
    assert app.http().get(path).status_code in (400, 404)


# ---- states ----------------------------------------------------------------------------------------------------------------

ASKS = st.lists(st.sampled_from(["pause", "resume", "cancel", "claim", "obey", "finish", "die"]), min_size=1, max_size=12)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ASKS)
def test_any_order_of_pause_resume_and_cancel(app, client, file, asks):
    """Against a model of it: what is shown, what is refused, and that what has ended stays as it is."""
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=file)
    with app.database.write() as connection:  # none that another example left
        connection.execute(work.update().where(work.c.id != job.id).values(status="cancelled"))
    shown, claim = "validating_files", None
    for ask in asks:
        if ask in ("pause", "resume", "cancel"):
            allowed = shown not in queue.ENDED and (ask == "cancel" or (shown == "paused") == (ask == "resume"))
            with nullcontext() if allowed else pytest.raises(openai.BadRequestError):
                answer = getattr(client.fine_tuning.jobs, ask)(job.id)
                shown = {"pause": "paused", "resume": "validating_files", "cancel": "cancelled"}[ask]
                assert answer.status == shown
        elif ask == "claim" and claim is None:
            claim = queue.claim(app.database, "here", ("fine_tuning",))
            assert (claim is not None) == (shown == "validating_files")
        elif ask == "die" and claim:
            queue.abandon(app.database, claim)
            with app.database.write() as connection:
                row = connection.execute(sa.select(work).where(work.c.id == job.id)).mappings().one()
            claim = queue.claim(app.database, "there", ("fine_tuning",))
            assert claim and claim.attempt == row["attempt"] + 1, "it is claimed again, whatever is wanted of it"
        elif ask == "obey" and claim:  # what a worker does when its training has stopped
            with app.database.write() as connection:
                wanted = queue.still_mine(connection, claim)
                if wanted == "run":
                    queue.give_back(connection, claim)
                else:
                    queue.end(connection, claim, {"pause": "paused", "cancel": "cancelled"}[wanted])
            claim = None
        elif ask == "finish" and claim:
            with app.database.write() as connection:
                if queue.still_mine(connection, claim) == "run":  # as jobs.finetune does
                    queue.end(connection, claim, "succeeded")
                    shown, claim = "succeeded", None
        assert client.fine_tuning.jobs.retrieve(job.id).status == shown


def test_events_have_keys_and_what_is_told_twice_is_told_once(app, client, file):
    from tunesmith.jobs.events import tell

    job = client.fine_tuning.jobs.create(model=MODEL, training_file=file)
    for _ in range(3):
        with app.database.write() as connection:
            added = [tell(connection, job.id, f"step-{n}", f"Step {n}") for n in range(4)]
    assert added == [False] * 4
    with app.database.read() as connection:
        query = sa.select(events.c.key).where(events.c.job_id == job.id).order_by(events.c.seq)
        keys = connection.execute(query).scalars().all()
    assert keys == ["created", "validating", "step-0", "step-1", "step-2", "step-3"]


def test_no_pattern_of_the_aliases_stands_in_for_a_fine_tuned_model(tmp_path, tiny_base):
    """A model that was deleted, or never was, is not trained or answered as its base."""
    with app_over(tmp_path, tiny_base, aliases={"*": str(tiny_base)}) as app:
        client = app.openai()
        assert create(client, model="anything").status == "validating_files"
        for call in (lambda name: create(client, model=name), client.models.retrieve,
                     lambda name: client.chat.completions.create(model=name, messages=[{"role": "user", "content": "x"}])):
            assert refused(lambda call=call: call("ft:anything:acme::aaaaaaaa"), 404)["code"] == "model_not_found"
