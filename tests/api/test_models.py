"""Fine-tuned models by name: whose they are, who may ask them, and that a deleted one is gone.

pytest tests/api/test_models.py
"""

import openai
import pytest
import sqlalchemy as sa
from tests.api.jobs_app import app_over
from tests.api.jobs_live import MODEL, create, rows, wait

from tunesmith.jobs import places
from tunesmith.jobs.tables import models

ASKED = rows(1)[0]["messages"][:1]


@pytest.fixture
def app(tmp_path, lively_base):
    with app_over(tmp_path, lively_base) as app:
        yield app


@pytest.fixture
def tuned(app):
    """(project id, its client, its job) after a short training."""
    project, client = app.project("mine")
    job = create(client, 12, n_epochs=1)
    assert app.do() == job.id
    return project, client, wait(client, job.id, ("succeeded",), seconds=0)


def ask(client, model: str) -> str:
    return client.chat.completions.create(model=model, messages=ASKED, max_tokens=4, temperature=0).choices[0].message.content


def test_a_model_is_its_projects_until_it_is_permitted_to_others(app, tuned):
    project, mine, job = tuned
    others_project, others = app.project("others")
    name = job.fine_tuned_model
    assert mine.models.retrieve(name).id == name and name in {m.id for m in mine.models.list()}
    assert places.project_home(project) != places.project_home(others_project)

    def hidden() -> None:
        for call in (others.models.retrieve, others.models.delete, lambda n: ask(others, n)):
            with pytest.raises(openai.NotFoundError, match=f"The model `{name}` does not exist or you do not have access"):
                call(name)
        assert name not in {m.id for m in others.models.list()}

    hidden()
    granting = mine.fine_tuning.checkpoints.permissions
    page = granting.create(name, project_ids=[others_project])
    assert [(p.object, p.project_id) for p in page] == [("checkpoint.permission", others_project)]
    assert granting.create(name, project_ids=[others_project]).data == page.data, "given twice, it is one"
    assert ask(others, name) == ask(mine, name)
    assert name in {m.id for m in others.models.list()}
    with pytest.raises(openai.NotFoundError):
        others.fine_tuning.jobs.retrieve(job.id)
    with pytest.raises(openai.PermissionDeniedError):
        others.models.delete(name)
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        others.fine_tuning.checkpoints.permissions.list(name)
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        create(others, 10, model=name)
    assert [p.id for p in granting.list(name)] == [page.data[0].id]
    assert granting.delete(page.data[0].id, fine_tuned_model_checkpoint=name).deleted
    hidden()
    assert not granting.list(name).data


@pytest.mark.slow
def test_permissions_are_listed_in_pages_and_need_projects_that_exist(app, tuned):
    _, mine, job = tuned
    projects = [app.project(f"p{n}")[0] for n in range(5)]
    granting, name = mine.fine_tuning.checkpoints.permissions, job.fine_tuned_model
    granting.create(name, project_ids=projects)
    assert {p.project_id for p in granting.list(name, limit=2)} == set(projects)
    first = granting.list(name, limit=2)
    assert first.has_more and first.last_id == first.data[-1].id
    assert [p.id for p in granting.list(name, order="ascending")] == [p.id for p in granting.list(name)][::-1]
    assert [p.project_id for p in granting.list(name, project_id=projects[3])] == [projects[3]]
    with pytest.raises(openai.BadRequestError, match="No such project: proj_none"):
        granting.create(name, project_ids=["proj_none"])
    with pytest.raises(openai.NotFoundError):
        granting.delete("cp_none", fine_tuned_model_checkpoint=name)
    with pytest.raises(openai.NotFoundError):
        granting.create(MODEL, project_ids=projects)


def test_only_admins_give_permission(app, tuned):
    from tunesmith.jobs import keys

    project, _, job = tuned
    trainer = app.openai(keys.add(app.database, project, ("train",))[1])
    with pytest.raises(openai.PermissionDeniedError):
        trainer.fine_tuning.checkpoints.permissions.create(job.fine_tuned_model, project_ids=[project])
    asking = app.openai(keys.add(app.database, project, ("infer",))[1])
    assert ask(asking, job.fine_tuned_model)
    for call in (lambda: asking.fine_tuning.jobs.list(), lambda: asking.models.delete(job.fine_tuned_model)):
        with pytest.raises(openai.PermissionDeniedError):
            call()


def test_a_deleted_model_is_gone_also_from_memory(app, tuned):
    _, mine, job = tuned
    name = job.fine_tuned_model
    ask(mine, name)
    engine = app.app.state.service.engines.all[0]
    assert name in engine.served
    assert mine.models.delete(name).to_dict() == {"id": name, "object": "model", "deleted": True}
    assert name not in engine.served
    for call in (mine.models.retrieve, mine.models.delete, lambda n: ask(mine, n)):
        with pytest.raises(openai.NotFoundError):
            call(name)
    assert mine.fine_tuning.jobs.retrieve(job.id).fine_tuned_model == name, "the job still says what came of it"
    assert ask(mine, MODEL), "the base answers on"


@pytest.mark.slow
def test_a_base_cannot_be_deleted_and_nobody_is_not_there(app, tuned):
    _, mine, _ = tuned
    with pytest.raises(openai.PermissionDeniedError, match="cannot be deleted"):
        mine.models.delete(MODEL)
    with pytest.raises(openai.NotFoundError):
        mine.models.delete("gpt-9")
    with pytest.raises(openai.NotFoundError):
        mine.models.retrieve("ft:gpt-4o-mini:acme::aaaaaaaa")


def test_a_model_whose_files_are_gone_or_whose_base_has_changed_is_refused(app, tuned):
    _, mine, job = tuned
    with app.database.write() as connection:
        connection.execute(models.update().where(models.c.name == job.fine_tuned_model).values(base_digest="sha256:0"))
    with pytest.raises(openai.BadRequestError, match="is not the one that it was trained on"):
        ask(mine, job.fine_tuned_model)
    with app.database.write() as connection:
        digest = connection.execute(sa.select(models.c.base_digest).where(models.c.base_digest != "sha256:0")).scalar()
        connection.execute(models.update().where(models.c.name == job.fine_tuned_model).values(
            base_digest=digest, adapter="releases/none/adapter"))
    with pytest.raises(openai.NotFoundError):
        ask(mine, job.fine_tuned_model)


def test_a_models_release_is_not_collected_until_the_model_is_deleted(app, tuned, monkeypatch):
    import tunesmith

    project, mine, job = tuned
    monkeypatch.setenv("TUNESMITH_SERVICE", str(places.service()))
    monkeypatch.setenv("TUNESMITH_HOME", str(places.project_home(project)))
    release = job.to_dict()["tunesmith"]["release_id"]
    assert release not in {r["id"] for r in tunesmith.gc(keep=0)["removed"]}
    assert ask(mine, job.fine_tuned_model)
    mine.models.delete(job.fine_tuned_model)
    assert release in {r["id"] for r in tunesmith.gc(keep=0)["removed"]}
