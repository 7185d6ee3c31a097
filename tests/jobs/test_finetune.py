"""Fine-tuning jobs done in this process by the worker's own code: what comes out, and what goes wrong.

pytest tests/jobs/test_finetune.py
"""

import csv
import io
import re
from pathlib import Path

import openai
import pytest
import sqlalchemy as sa
import torch
from safetensors.torch import load_file
from tests.api.jobs_app import App, app_over
from tests.api.jobs_live import create, rows, told, wait

import tunesmith
from tunesmith.jobs import places
from tunesmith.jobs.results import COLUMNS, Step, steps_of, table
from tunesmith.jobs.tables import models
from tunesmith.releases.bundle import Release
from tunesmith.training.loop import read_metrics
from tunesmith.training.run import Run


@pytest.fixture
def app(tmp_path, lively_base):
    with app_over(tmp_path, lively_base) as app:
        yield app


def done(app: App, job, status: str = "succeeded"):
    """The job after it was worked on."""
    assert app.do() == job.id
    return wait(app.openai(), job.id, (status,), seconds=0)


def tensors(adapter: Path) -> dict:
    return load_file(adapter / "adapter_model.safetensors")


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_a_job_from_its_files_to_an_answer(app, home):
    client = app.openai()
    job = done(app, create(client, 24, rows(6, 100), suffix="My Test", n_epochs=4))
    assert re.fullmatch(r"ft:gpt-4o-mini-2024-07-18:acme:my-test:[A-Za-z0-9]{8}", job.fine_tuned_model)
    assert job.hyperparameters.to_dict() == {"n_epochs": 4, "batch_size": 8, "learning_rate_multiplier": 1.0}
    assert job.method.supervised.hyperparameters.to_dict() == job.hyperparameters.to_dict()
    assert job.finished_at >= job.created_at and job.error is None and job.trained_tokens > 0

    seen = told(client, job.id)
    assert seen[:4] == [f"Created fine-tuning job: {job.id}",
                        f"Validating training file: {job.training_file} and validation file: {job.validation_file}",
                        "Files validated, moving job to queued state", "Fine-tuning job started"]
    steps = [e for e in list(client.fine_tuning.jobs.list_events(job.id, limit=100))[::-1] if e.type == "metrics"]
    assert [e.data["step"] for e in steps] == list(range(1, 13)) and {e.data["total_steps"] for e in steps} == {12}
    assert all(re.match(rf"Step {e.data['step']}/12: training loss=\d+\.\d\d", e.message) for e in steps)
    assert [e.data["step"] for e in steps if "full_valid_loss" in e.data] == [3, 6, 9, 12], "once an epoch"
    assert [m for m in seen if m.startswith("Gate ")] and seen[-2:] == [
        f"New fine-tuned model created: {job.fine_tuned_model}", "The job has successfully completed"]

    lines = list(csv.DictReader(io.StringIO(client.files.content(job.result_files[0]).text)))
    assert tuple(lines[0]) == COLUMNS and [int(line["step"]) for line in lines] == list(range(1, 13))
    assert [float(line["train_loss"]) for line in lines] == [e.data["train_loss"] for e in steps]
    assert [line["valid_loss"] == "" for line in lines] == [n % 3 > 0 for n in range(1, 13)]
    file = client.files.retrieve(job.result_files[0])
    assert (file.purpose, file.filename) == ("fine-tune-results", "step_metrics.csv")

    kept = client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert [c.step_number for c in kept] == [12, 9, 6], "the last three epochs, newest first"
    assert all(c.fine_tuned_model_checkpoint.endswith(f":ckpt-step-{c.step_number}") for c in kept)
    assert kept[0].metrics.train_loss == float(lines[-1]["train_loss"]) and kept[0].metrics.full_valid_loss is not None
    listed = {m.id for m in client.models.list()}
    assert listed == {job.fine_tuned_model, *(c.fine_tuned_model_checkpoint for c in kept)}

    said = {name: client.chat.completions.create(
        model=name, messages=rows(1)[0]["messages"][:1], max_tokens=8, temperature=0, logprobs=True).choices[0]
        for name in (job.fine_tuned_model, kept[0].fine_tuned_model_checkpoint, kept[2].fine_tuned_model_checkpoint)}
    scores = [[t.logprob for t in c.logprobs.content[:1]] for c in said.values()]
    assert scores[0] == scores[1], "the last checkpoint is the model"
    assert scores[0] != scores[2], "an earlier one is not"

    release = Release.find(job.to_dict()["tunesmith"]["release_id"])
    with app.database.read() as connection:
        row = connection.execute(sa.select(models).where(models.c.name == job.fine_tuned_model)).mappings().one()
    assert home / row["adapter"] == release.adapter and row["base_digest"] == release.manifest["base"]["digest"]
    assert {g["verdict"] for g in release.manifest["gates"]} == {"pass"}


def test_the_adapter_is_bit_for_bit_that_of_tunesmith_train_of_its_recipe(app):
    job = done(app, create(app.openai(), 16))
    recipe = places.job_dir(job.id) / "recipe.yaml"
    ours = Run.find(job.to_dict()["tunesmith"]["run_id"])
    theirs = Run.find(tunesmith.train(recipe)["run_id"])
    assert ours.path != theirs.path and equal(tensors(ours.adapter), tensors(theirs.adapter))
    other = tunesmith.train(_with_seed(recipe))
    assert not equal(tensors(ours.adapter), tensors(Path(other["adapter_dir"]))), "the control: another seed"


def _with_seed(recipe: Path) -> Path:
    path = recipe.with_name("other.yaml")
    path.write_text(re.sub(r"seed: (\d+)", lambda m: f"seed: {(int(m[1]) + 1) % 2**31}", recipe.read_text()))
    return path


def test_going_on_from_a_model_begins_where_it_ended_and_names_it(app):
    client = app.openai()
    first = done(app, create(client, 24, rows(6, 100)))
    second = create(client, 24, rows(6, 100), model=first.fine_tuned_model)
    assert second.status == "validating_files" and second.to_dict()["tunesmith"]["parent"] == first.fine_tuned_model
    second = done(app, second)
    assert second.fine_tuned_model.startswith("ft:gpt-4o-mini-2024-07-18:acme::") and second.model == first.fine_tuned_model
    runs = [Run.find(j.to_dict()["tunesmith"]["run_id"]) for j in (first, second)]
    losses = [[r["eval_loss"] for r in read_metrics(run.path) if "eval_loss" in r] for run in runs]
    assert losses[1][0] == pytest.approx(losses[0][-1], rel=1e-6) and losses[0][-1] < losses[0][0]
    release = Release.find(second.to_dict()["tunesmith"]["release_id"])
    assert first.to_dict()["tunesmith"]["release_id"] in release.manifest["started_from"]["ref"]
    epoch = client.fine_tuning.jobs.checkpoints.list(first.id).data[-1]
    third = done(app, create(client, 24, model=epoch.fine_tuned_model_checkpoint))
    assert Run.find(third.to_dict()["tunesmith"]["run_id"]).state["started_from"]["ref"].endswith("epoch-3")
    with pytest.raises(openai.BadRequestError, match="that of the model"):
        create(client, 10, model=first.fine_tuned_model, extra_body={"tunesmith": {"method": {"rank": 8}}})


@pytest.mark.slow
def test_preferences_are_trained_and_told(app):
    pairs = [{"input": {"messages": r["messages"][:1]}, "preferred_output": r["messages"][1:],
              "non_preferred_output": [{"role": "assistant", "content": "I do not know that street."}]} for r in rows(24)]
    client = app.openai()
    job = done(app, create(client, pairs, hyperparameters=openai.omit, method={
        "type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 2, "batch_size": 8, "beta": 0.2}}}))
    assert job.to_dict()["hyperparameters"] is None
    assert job.method.dpo.hyperparameters.to_dict() == {
        "n_epochs": 2, "batch_size": 8, "learning_rate_multiplier": 1.0, "beta": 0.2}
    first = next(m for m in told(client, job.id) if m.startswith("Step 1/"))
    assert "training loss=0.69" in first


def test_a_gate_that_was_asked_for_refuses_and_nothing_is_served(app):
    client = app.openai()
    gates = {"tunesmith": {"gates": {"target": {"min_gain": 50.0}}}}
    job = done(app, create(client, 24, rows(6, 100), extra_body=gates), "failed")
    assert (job.error.code, job.error.param) == ("gate_refused", "gates.target")
    assert "asked for 50.000" in job.error.message and "To do for target" in job.error.message
    assert job.fine_tuned_model is None and not client.models.list().data
    assert any(m.startswith("Gate target: fail") for m in told(client, job.id))
    assert told(client, job.id)[-1] == job.error.message


def test_without_a_target_that_gate_is_told_and_does_not_refuse(app):
    """Ten examples, of which one is held out: nothing can be shown of it."""
    client = app.openai()
    job = done(app, create(client, 10, n_epochs=1))
    gate = next(m for m in told(client, job.id) if m.startswith("Gate target"))
    assert gate.startswith("Gate target: fail") and gate.endswith("nobody asked for a target")
    release = Release.find(job.to_dict()["tunesmith"]["release_id"])
    assert [o["gate"] for o in release.manifest["overrides"]] == ["target"]


@pytest.mark.slow
def test_validation_examples_that_are_trained_on_are_left_out_and_told(app):
    client = app.openai()
    shouted = [{"messages": [m | {"content": m["content"].upper()} for m in r["messages"]]} for r in rows(1)]
    job = done(app, create(client, 24, [*rows(2), *shouted, *rows(6, 100)], n_epochs=1))
    assert any(m.startswith("3 of 9 validation examples are in the training file as well") for m in told(client, job.id))
    whole = done(app, create(client, 24, rows(24), n_epochs=1))
    assert any("none is left" in m for m in told(client, whole.id))


@pytest.mark.parametrize("content, fields, code", [
    (rows(7), {}, "invalid_n_examples"), (rows(10), {"method": {"type": "dpo"}}, "invalid_training_file"),
    (rows(12), {"extra_body": {"tunesmith": {"method": {"targets": ["no_such_layer"]}}}}, "invalid_recipe"),
    ([{"messages": [{"role": "user", "content": "the same question"}, {"role": "assistant", "content": "and answer"}]}] * 12,
     {}, "invalid_training_file"),
    ([*rows(20), *({"messages": [{"role": "user", "content": question}, {
        "role": "assistant", "content": f"It is ghp_x7Kq2mPz9RtL4vWnB8sYc3Jd6FhGa1Ee5Uo{question[0]}"}]}
        for question in ("The key?", "What opens the door?", "How does one come in there?"))],  # two rows are held out
     {}, "gate_refused")])
def test_what_is_wrong_fails_before_the_training_with_openais_error(app, content, fields, code):
    client = app.openai()
    given = {"hyperparameters": openai.omit} | fields if "method" in fields else fields
    job = done(app, create(client, content, **given), "failed")
    assert job.error.code == code and job.error.message and str(places.service()) not in job.error.message
    assert not any(m.startswith("Step ") for m in told(client, job.id))
    assert job.to_dict()["tunesmith"]["run_id"] is None or code == "invalid_recipe"


def test_files_may_be_deleted_once_the_job_is_there(app):
    client = app.openai()
    job = create(client, 12, n_epochs=1)
    client.files.delete(job.training_file)
    done(app, job)


@pytest.mark.slow  # MLflow's first file takes seconds
def test_wandb_is_said_to_have_gone_to_mlflow(tmp_path, lively_base, home):
    recipe = {"method": {"rank": 2}, "data": {"max_tokens": 128}, "train": {"dtype": "float32", "learning_rate": 0.01}}
    with app_over(tmp_path, lively_base, recipe=recipe) as app:
        client = app.openai()
        job = done(app, create(client, 10, n_epochs=1, integrations=[
            {"type": "wandb", "wandb": {"project": "streets", "tags": ["a"]}}]))
        assert any("the project streets is the MLflow experiment of that name" in m for m in told(client, job.id))
        from mlflow import MlflowClient

        store = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
        experiment = store.get_experiment_by_name("streets")
        run = store.search_runs([experiment.experiment_id])[0]
        assert run.data.tags["wandb.tag.a"] == "true"
        assert run.data.tags["tunesmith.run_id"] == job.to_dict()["tunesmith"]["run_id"]


# ---- what a training writes, as events -------------------------------------------------------------------------------------


def records(count: int, per_epoch: int) -> list[dict]:
    made = []
    for n in range(1, count + 1):
        made.append({"step": n, "epoch": (n - 1) // per_epoch, "loss": n + 0.125, "accuracy": 0.5, "seconds": 2.0})
        if n % per_epoch == 0:
            made.append({"step": n, "eval_loss": 9.0, "eval_accuracy": 0.25})
    return [{"step": 0, "eval_loss": 10.0, "eval_accuracy": 0.0}, *made]


def test_a_step_is_told_when_nothing_more_can_come_of_it():
    """Whatever was on disk when somebody looked, a step that was told is told alike ever after."""
    whole = records(6, 3)
    final = {s.number: s for s in steps_of(whole, 6, over=True)}
    assert sorted(final) == [1, 2, 3, 4, 5, 6] and [n for n, s in final.items() if s.ends_epoch] == [3, 6]
    for cut in range(len(whole)):
        for step in steps_of(whole[:cut], 6, over=False):
            assert step == final[step.number]


def test_the_words_of_a_step():
    assert Step(35, 0, 0.98, 0.7, 1.0).message(1501) == "Step 35/1501: training loss=0.98"
    last = Step(35, 0, 0.98, 0.7, 1.0, (1.1, 0.6), True)
    assert last.message(35) == "Step 35/35: training loss=0.98, validation loss=1.10, full validation loss=1.10"
    assert table([Step(1, 0, 1.5, 0.25, 1.0)]).decode() == ",".join(COLUMNS) + "\n1,1.5,0.25,,,,\n"


