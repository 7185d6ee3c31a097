"""Two projects on one server see nothing of each other: every route is walked with a key of one and the ids of the other.

    the other's id                answers, to the letter, as an id that does not exist
    a list                        has nothing of the other's
    whatever was asked            the other's rows are as they were

A new route fails `test_every_route_is_in_the_table` until somebody says here how it is asked.

pytest tests/api/test_tenancy.py
"""

import json

import pytest
import sqlalchemy as sa
from fastapi.routing import iter_route_contexts

from tunesmith.jobs import files, keys, projects, tables
from tunesmith.jobs.evaluate import nothing_yet
from tunesmith.jobs.ids import new_id

NO_PROJECT = {
    "GET /healthz", "GET /readyz", "GET /openapi.json", "GET /metrics",  # the operator's
    "POST /v1/fine_tuning/alpha/graders/run", "POST /v1/fine_tuning/alpha/graders/validate",  # nothing is looked up
    "GET /v1/fine_tuning/model_limits"}
"""Routes that know of no project."""
LISTS = {"GET /v1/models", "GET /v1/files", "GET /v1/fine_tuning/jobs", "GET /v1/evals"}
MESSAGES = [{"role": "user", "content": "x"}]
GRADER = {"type": "string_check", "name": "g", "input": "{{item.a}}", "reference": "x", "operation": "eq"}
RUN = {"type": "jsonl", "source": {"type": "file_content", "content": [{"item": {"a": "x"}}]}}


def job(**changes) -> dict:
    return {"json": {"model": "small", "training_file": "file-own", **changes}}


NAMED = {
    "POST /v1/chat/completions": lambda i: ("/v1/chat/completions", {"json": {"model": i["model"], "messages": MESSAGES}}),
    "POST /v1/completions": lambda i: ("/v1/completions", {"json": {"model": i["model"], "prompt": "x"}}),
    "GET /v1/models/{}": lambda i: (f"/v1/models/{i['model']}", {}),
    "DELETE /v1/models/{}": lambda i: (f"/v1/models/{i['model']}", {}),
    "GET /v1/files/{}": lambda i: (f"/v1/files/{i['file']}", {}),
    "GET /v1/files/{}/content": lambda i: (f"/v1/files/{i['file']}/content", {}),
    "DELETE /v1/files/{}": lambda i: (f"/v1/files/{i['file']}", {}),
    "POST /v1/uploads/{}/parts": lambda i: (f"/v1/uploads/{i['upload']}/parts", {"files": {"data": b"x"}}),
    "POST /v1/uploads/{}/complete": lambda i: (f"/v1/uploads/{i['upload']}/complete", {"json": {"part_ids": [i["part"]]}}),
    "POST /v1/uploads/{}/cancel": lambda i: (f"/v1/uploads/{i['upload']}/cancel", {}),
    "GET /v1/fine_tuning/jobs/{}": lambda i: (f"/v1/fine_tuning/jobs/{i['job']}", {}),
    **{f"POST /v1/fine_tuning/jobs/{{}}/{verb}": lambda i, verb=verb: (f"/v1/fine_tuning/jobs/{i['job']}/{verb}", {})
       for verb in ("cancel", "pause", "resume")},
    "GET /v1/fine_tuning/jobs/{}/events": lambda i: (f"/v1/fine_tuning/jobs/{i['job']}/events", {}),
    "GET /v1/fine_tuning/jobs/{}/checkpoints": lambda i: (f"/v1/fine_tuning/jobs/{i['job']}/checkpoints", {}),
    "POST /v1/fine_tuning/checkpoints/{}/permissions": lambda i: (
        f"/v1/fine_tuning/checkpoints/{i['model']}/permissions", {"json": {"project_ids": [i["asking"]]}}),
    "GET /v1/fine_tuning/checkpoints/{}/permissions": lambda i: (f"/v1/fine_tuning/checkpoints/{i['model']}/permissions", {}),
    "DELETE /v1/fine_tuning/checkpoints/{}/permissions/{}": lambda i: (
        f"/v1/fine_tuning/checkpoints/{i['model']}/permissions/{i['permission']}", {}),
    "GET /v1/evals/{}": lambda i: (f"/v1/evals/{i['eval']}", {}),
    "POST /v1/evals/{}": lambda i: (f"/v1/evals/{i['eval']}", {"json": {"name": "mine now"}}),
    "DELETE /v1/evals/{}": lambda i: (f"/v1/evals/{i['eval']}", {}),
    "GET /v1/evals/{}/runs": lambda i: (f"/v1/evals/{i['eval']}/runs", {}),
    "POST /v1/evals/{}/runs": lambda i: (f"/v1/evals/{i['eval']}/runs", {"json": {"data_source": RUN}}),
    "GET /v1/evals/{}/runs/{}": lambda i: (f"/v1/evals/{i['eval']}/runs/{i['run']}", {}),
    "POST /v1/evals/{}/runs/{}": lambda i: (f"/v1/evals/{i['eval']}/runs/{i['run']}", {}),
    "POST /v1/evals/{}/runs/{}/cancel": lambda i: (f"/v1/evals/{i['eval']}/runs/{i['run']}/cancel", {}),
    "DELETE /v1/evals/{}/runs/{}": lambda i: (f"/v1/evals/{i['eval']}/runs/{i['run']}", {}),
    "GET /v1/evals/{}/runs/{}/output_items": lambda i: (f"/v1/evals/{i['eval']}/runs/{i['run']}/output_items", {}),
    "GET /v1/evals/{}/runs/{}/output_items/{}": lambda i: (
        f"/v1/evals/{i['eval']}/runs/{i['run']}/output_items/{i['item']}", {}),
}
"""Routes with the name of a thing in them: how they are asked of the things `i`."""
MADE_OF = {
    "POST /v1/files": [], "POST /v1/uploads": [],
    "POST /v1/fine_tuning/jobs": [
        lambda i: job(training_file=i["file"]), lambda i: job(training_file=i["own"], validation_file=i["file"]),
        lambda i: job(training_file=i["own"], model=i["model"])],
    "POST /v1/evals": [
        lambda i: {"json": {
            "data_source_config": {"type": "custom", "item_schema": {"type": "object"}},
            "testing_criteria": [{"type": "score_model", "name": "j", "model": i["model"], "input": MESSAGES}]}}],
    "POST /v1/evals/{}/runs": [
        lambda i: {"path": f"/v1/evals/{i['own_eval']}/runs",
                   "json": {"data_source": {"type": "jsonl", "source": {"type": "file_id", "id": i["file"]}}}},
        lambda i: {"path": f"/v1/evals/{i['own_eval']}/runs",
                   "json": {"data_source": {"type": "completions", "model": i["model"], "source": RUN["source"],
                                            "input_messages": {"type": "template", "template": MESSAGES}}}}],
}
"""Routes that make something, with the things of others that a body of theirs can name."""


def routes(app) -> set[str]:
    """`GET /v1/files/{}` of everything that the application answers to."""
    import re

    found = set()
    for context in iter_route_contexts(app.routes):
        path = re.sub(r"\{[^}]*\}", "{}", context.path or "")
        found |= {f"{method} {path}" for method in (context.methods or ()) if method != "HEAD"}
    return found


def test_every_route_is_in_the_table(inside):
    found = routes(inside().app)
    assert {"GET /v1/files/{}", "GET /v1/models/{}", "GET /healthz"} <= found
    assert found - NO_PROJECT - LISTS - NAMED.keys() - MADE_OF.keys() == set(), "say here how these are asked across projects"


@pytest.fixture
def world(inside):
    """(the service, a client of the project that asks, one of that which has things, its things, things that nobody has)."""
    service = inside(keyless=False, aliases={"small": "./nowhere"})
    database = service.database
    asking, having = (projects.add(database, name)["id"] for name in ("asking", "having"))
    with database.write() as connection:
        theirs = _things(connection, having) | {"own": None, "own_eval": None}
        own = _things(connection, asking)
    theirs["file"] = files.add(database, having, "secret.jsonl", "fine-tune", b'{"messages": []}\n' * 12)["id"]
    own["file"] = files.add(database, asking, "own.jsonl", "fine-tune", b'{"messages": []}\n' * 12)["id"]
    shared = {"own": own["file"], "own_eval": own["eval"], "asking": asking}
    nobodys = {kind: new_id(name.rpartition("-")[0] + "-" if "-" in name else name.partition("_")[0] + "_") if kind != "model"
               else "ft:small:local::" + new_id("", 8) for kind, name in theirs.items() if name}
    clients = [service.http(keys.add(database, p, ["admin"])[1]) for p in (asking, having)]
    return service, *clients, theirs | shared, nobodys | shared


def _things(connection: sa.Connection, project: str) -> dict[str, str]:
    """A row of everything that a project can have."""
    ids = {"upload": new_id("upload_"), "part": new_id("part_"), "job": new_id("ftjob-"), "event": new_id("ftevent-"),
           "checkpoint": new_id("ftckpt_"), "model": "ft:small:local::" + new_id("", 8), "permission": new_id("cp_"),
           "eval": new_id("eval_"), "run": new_id("evalrun_"), "item": new_id("outputitem_")}

    def put(table: sa.Table, **values) -> None:
        for column in table.c:
            if column.name not in values and not column.nullable and column.default is None and column.name != "seq":
                values[column.name] = _plausible(column, project)
        connection.execute(table.insert().values(**values))

    put(tables.uploads, id=ids["upload"], status="pending", bytes=1, expires_at=2**31 - 1)
    put(tables.upload_parts, id=ids["part"], upload_id=ids["upload"], bytes=1)
    put(tables.work, id=ids["job"], kind="fine_tuning", status="running", wanted="run", attempt=1)
    put(tables.fine_tuning_jobs, id=ids["job"], model="small", base="./nowhere", result_files=[], fine_tuned_model=ids["model"],
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}}, extensions={})
    put(tables.events, id=ids["event"], job_id=ids["job"], level="info", type="message")
    put(tables.checkpoints, id=ids["checkpoint"], job_id=ids["job"], model=f"{ids['model']}:ckpt-step-1", metrics={"step": 1})
    put(tables.models, name=ids["model"], job_id=ids["job"], base="./nowhere")
    put(tables.permissions, id=ids["permission"], model=ids["model"], project_id="proj_default")
    put(tables.evals, id=ids["eval"], testing_criteria=[GRADER],
        data_source_config={"type": "custom", "item_schema": {"type": "object"}, "schema": {"type": "object"}})
    put(tables.work, id=ids["run"], kind="eval_run", status="running", wanted="run", attempt=1)
    put(tables.eval_runs, id=ids["run"], eval_id=ids["eval"], data_source=RUN, usage=nothing_yet([GRADER]), models={})
    put(tables.output_items, id=ids["item"], run_id=ids["run"], status="pass", results=[])
    return ids


def _plausible(column: sa.Column, project: str):
    if column.name == "project_id":
        return project
    if isinstance(column.type, sa.JSON):
        return {}
    return 1 if isinstance(column.type, sa.Integer | sa.Float | sa.Boolean) else "x"


def everything(service) -> dict[str, list]:
    """All rows but those of who asked and what he was told."""
    with service.database.read() as connection:
        return {table.name: sorted(map(str, connection.execute(sa.select(table)).all()))
                for table in tables.metadata.sorted_tables if table.name != "audit_log"}


def said(answer, things: dict[str, str]) -> tuple[int, str]:
    """What was answered, with a thing's kind in the place of its id."""
    text = answer.text
    for kind, id in things.items():
        text = text.replace(id, f"<{kind}>")
    return answer.status_code, text


@pytest.mark.parametrize("route", sorted(NAMED))
def test_the_name_of_anothers_thing_is_as_one_that_does_not_exist(world, route):
    service, asking, having, theirs, nobodys = world
    if route not in routes(service.app):
        pytest.skip("no such route")
    method = route.split()[0]
    before = everything(service)
    answers = []
    for things in (theirs, nobodys):
        path, options = NAMED[route](things)
        answers.append(said(asking.request(method, path, **options), things))
    assert answers[0] == answers[1]
    assert answers[0][0] == 404, answers[0]
    assert everything(service) == before
    path, options = NAMED[route](theirs)
    if method == "GET":
        assert having.request(method, path, **options).status_code == 200, "it is there, for its own project"


@pytest.mark.parametrize("route", sorted(LISTS))
def test_a_list_has_nothing_of_anothers(world, route):
    service, asking, having, theirs, nobodys = world
    if route not in routes(service.app):
        pytest.skip("no such route")
    path = route.split()[1]
    kind = {"/v1/models": "model", "/v1/files": "file", "/v1/fine_tuning/jobs": "job", "/v1/evals": "eval"}[path]
    assert theirs[kind] in having.get(path).text
    found = asking.get(path)
    assert found.status_code == 200
    assert not [k for k, id in theirs.items() if k not in ("own", "own_eval", "asking") and id in found.text]
    after = [said(asking.get(path, params={"after": things[kind]}), things) for things in (theirs, nobodys)]
    assert after[0] == after[1], "nor does a place in it tell"


@pytest.mark.parametrize("route", sorted(MADE_OF))
def test_nothing_can_be_made_of_anothers_things(world, route):
    service, asking, _, theirs, nobodys = world
    if route not in routes(service.app):
        pytest.skip("no such route")
    before = everything(service)
    for ask in MADE_OF[route]:
        answers = []
        for things in (theirs, nobodys):
            options = ask(things)
            answers.append(said(asking.post(options.pop("path", route.split()[1]), **options), things))
        assert answers[0] == answers[1]
        assert answers[0][0] in (400, 404), answers[0]
        assert "<" in answers[0][1], f"it is not the name that is refused: {answers[0]}"
    assert everything(service) == before


def test_the_log_of_one_project_is_not_anothers_to_read(world):
    """There is no route to it at all: it is the operator's, who has the machine."""
    service, asking, *_ = world
    assert not [r for r in routes(service.app) if "log" in r or "key" in r or "project" in r]
    assert "having" not in json.dumps(asking.get("/openapi.json").json())


def test_the_walk_would_notice_a_leak(world, monkeypatch):
    """The control: without the condition on the project, the comparison fails."""
    service, asking, _, theirs, nobodys = world
    monkeypatch.setattr(files, "visible", lambda connection, project_id: ())
    answers = []
    for things in (theirs, nobodys):
        path, options = NAMED["GET /v1/files/{}"](things)
        answers.append(said(asking.get(path, **options), things))
    assert answers[0] != answers[1]
    assert theirs["file"] in asking.get("/v1/files").text
