"""A fine-tuning job: validate, train, evaluate, release. Each attempt goes on from what the one before left on disk.

    validating_files ─► queued ─► running ───────────────────────────────► succeeded
      files, recipe.yaml           run, report, release: found by recipe    model, result file, last events: one transaction

The work is that of the verbs. What they leave (a run that knows its recipe, checkpoints, a report that knows its adapter, a
release that is named by its content) says how far it is, so there is nothing else to remember between attempts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa

from tunesmith.errors import (
    BaseModelError,
    DataError,
    GateRefused,
    MemoryShortage,
    NotFoundError,
    Problem,
    RecipeError,
    TrackingError,
    TrainingError,
    TunesmithError,
    UsageError,
)
from tunesmith.jobs import events, files, places, queue, recipes, results
from tunesmith.jobs.database import clock
from tunesmith.jobs.examples import Invalid
from tunesmith.jobs.names import new_name, recipe_name
from tunesmith.jobs.tables import fine_tuning_jobs, models
from tunesmith.jobs.telling import Telling
from tunesmith.jobs.validating import RECIPE, validate
from tunesmith.jobs.worker import Interrupted, Task
from tunesmith.training.run import Run

CODES = ((GateRefused, "gate_refused"), (MemoryShortage, "out_of_memory"), (TrainingError, "training_stopped"),
         (RecipeError, "invalid_recipe"), (BaseModelError, "invalid_model"), (DataError, "invalid_training_file"))
"""Of a job's error, by what was raised; any other is `server_error`."""
TARGET_NOT_ASKED = ("tunesmith serve", "no target was asked for: the release is to be judged by the other gates")


def work(task: Task) -> None:
    """Raises TunesmithError: the job has failed, and why."""
    job = _row(task)
    if job["validated_at"] is None:
        validate(task, job)
        job = _row(task)
    task.tell("started", "Fine-tuning job started")
    recipe = places.job_dir(task.id) / RECIPE
    _tracking(task, job, recipe)
    run = run_of(job, recipe)
    if run is None or run.state["status"] != "finished":
        _look_at_the_data(task, recipe)
    run = _trained(task, job, recipe)
    if run is None:
        return  # stopped, with a checkpoint: what was wanted decides
    _evaluated(task, run)
    _succeeded(task, job, run, _released(task, job, run))


def failed(connection: sa.Connection, task: Task, error: Exception) -> None:
    """Write down why, as OpenAI does: `{code, message, param}`. What a gate has refused is not served either."""
    code = getattr(error, "code", None) or next((c for kind, c in CODES if isinstance(error, kind)), "server_error")
    told = {"code": code, "message": words(error), "param": getattr(error, "param", None)}
    connection.execute(fine_tuning_jobs.update().where(fine_tuning_jobs.c.id == task.id).values(
        error=told, estimated_finish=None))
    if code == "gate_refused":
        connection.execute(models.update().where(models.c.job_id == task.id).values(ready=False))
    events.tell(connection, task.id, "failed", told["message"], level="error", data={"error": told})


def words(error: Exception) -> str:
    """What went wrong, why and what to do, without the server's paths."""
    if not isinstance(error, TunesmithError):
        return f"{type(error).__name__}: {error}"
    listed = [f"{p.where}: {p.message}" if p.where else p.message for p in error.problems]
    parts = [error.what, *listed, *filter(None, [error.why, error.fix and f"To do: {error.fix}"])]
    hidden = str(places.service()), str(places.service().parent)
    text = ". ".join(p.rstrip(".") for p in parts) + ("." if len(parts) > 1 else "")
    for path in hidden:
        text = text.replace(path, "...")
    return text


def run_of(job: sa.RowMapping, recipe: Path) -> Run | None:
    """The run of a job's recipe, which may have been made by an attempt that was killed before it could say so."""
    root = places.project_home(job["project_id"]) / "runs"
    for path in sorted(root.glob(f"{recipe_name(job['id'], job['suffix'])}-*"), reverse=True):
        if (path / "run.json").is_file() and Run(path).state["recipe_path"] == str(recipe):
            return Run(path)
    return None


def _row(task: Task) -> sa.RowMapping:
    with task.database.read() as connection:
        return connection.execute(sa.select(fine_tuning_jobs).where(fine_tuning_jobs.c.id == task.id)).mappings().one()


def _tracking(task: Task, job: sa.RowMapping, recipe: Path) -> None:
    from tunesmith.recipe.load import load

    if not job["integrations"]:
        return
    track = load(recipe).recipe.track
    where = (f"the project {track.experiment} is the MLflow experiment of that name, with its tags" if track.mlflow else
             "and this server tracks nothing (recipe.track.mlflow is null)")
    task.tell("integrations", f"Nothing is sent to Weights & Biases: {where}", level="info" if track.mlflow else "warn")


def _look_at_the_data(task: Task, recipe: Path) -> None:
    """Prepare the dataset, tell what the audit found, and refuse now what the gates would refuse after the training.

    Raises:
        DataError: rows that cannot be trained on.
        GateRefused: held-out examples that are trained on, or findings that refuse a release.
    """
    from tunesmith.recipe.load import load
    from tunesmith.releases.gates import Evidence, audit, leak
    from tunesmith.store.files import read_json
    from tunesmith.verbs import prepare

    try:
        made = prepare(recipe, say=task.say)
    except DataError as error:
        if "cannot hold out" not in error.what:
            raise
        raise Invalid("invalid_training_file", "There is no validation file, and no examples of the training file can be held "
                      "out: they are all the same or nearly so. Give a validation_file.", "training_file") from error
    for finding in made["findings"]:
        if finding["severity"] != "info":
            seen = f" ({', '.join(finding['examples'])})" if finding["examples"] else ""
            task.tell(f"finding-{finding['code']}", f"{finding['message']}{seen}. {finding['fix']}", level="warn",
                      data={k: finding[k] for k in ("code", "severity", "count")})
    evidence = Evidence(load(recipe).recipe, None, read_json(Path(made["path"]) / "manifest.json"))
    if refused := [g.as_dict() for g in (leak(evidence), audit(evidence)) if g.verdict != "pass"]:
        raise refusal(refused)


def _trained(task: Task, job: sa.RowMapping, recipe: Path) -> Run | None:
    """The finished run, or None when it was stopped. Every step is told."""
    from tunesmith.verbs import train

    telling = Telling(task, job, lambda: run_of(job, recipe))
    task.every.append(telling.look)
    try:
        while True:
            found = run_of(job, recipe)
            try:
                state = train(recipe, resume=found and str(found.path), say=task.say)
                break
            except UsageError as error:
                if "is being trained" not in error.what:
                    raise
                time.sleep(1)  # by a worker that was thought dead: it learns of it, and stops
    finally:
        task.every.remove(telling.look)
    if state["status"] != "finished":
        return None
    telling.look(over=True)
    return Run(Path(state["run_dir"]))


def _evaluated(task: Task, run: Run) -> None:
    from tunesmith.evals.run import read_report
    from tunesmith.store.files import sha256_json, sha256_tree
    from tunesmith.verbs import evaluate

    report = read_report(run) if run.state.get("report_path") else None
    if report and report["adapter"]["digest"] == sha256_json(sha256_tree(run.adapter)):
        return
    try:
        evaluate(str(run.path), say=task.say)
    except TrackingError as error:  # the report is written before it is sent
        task.tell("tracking", f"The report could not be sent to MLflow: {error.what}", level="warn")


def _released(task: Task, job: sa.RowMapping, run: Run) -> str:
    """The id of the run's release. Raises GateRefused."""
    from tunesmith.releases.bundle import Release
    from tunesmith.verbs import release

    if made := run.state.get("release_id"):
        try:
            return Release.find(made).id
        except NotFoundError:
            pass
    done = release(str(run.path), say=task.say)
    bad = {g["name"] for g in done["gates"] if g["verdict"] != "pass"}
    if bad == {"target"} and not recipes.asked_for_target(task.settings, job):
        done = release(str(run.path), overrides=[("target", *TARGET_NOT_ASKED)], say=task.say)
    passed_over = {o["gate"] for o in done["overrides"]}
    for gate in done["gates"]:
        said = f"Gate {gate['name']}: {gate['verdict']} - {gate['evidence']['message']}"
        task.tell(f"gate-{gate['name']}", said + "; nobody asked for a target" * (gate["name"] in passed_over),
                  level="info" if gate["verdict"] == "pass" else "warn",
                  data={"gate": gate["name"], "verdict": gate["verdict"]})
    if done["release_id"] is None:
        raise refusal([g for g in done["gates"] if g["verdict"] != "pass"])
    return done["release_id"]


def refusal(gates: Sequence[dict]) -> GateRefused:
    """The error of a job whose release was refused."""
    error = GateRefused("The release was refused: " + "; ".join(
        f"{g['name']} {g['verdict'].replace('_', ' ')}: {g['evidence']['message']}" for g in gates), problems=[
        Problem(code=g["name"], message=f"To do for {g['name']}: {g['evidence']['fix']}") for g in gates])
    error.code, error.param = "gate_refused", f"gates.{gates[0]['name']}"
    return error


def _succeeded(task: Task, job: sa.RowMapping, run: Run, release_id: str) -> None:
    """The model, the result file and the job's end. Raises Interrupted when it is to be paused or cancelled after all."""
    state, release = run.state, Path("releases") / release_id
    result = _result_file(task, run)
    name = new_name(job["model"], task.settings.organization, job["suffix"])
    with task.database.write() as connection:
        if queue.still_mine(connection, task.claim) != "run":
            raise Interrupted
        now = int(clock(connection))
        connection.execute(models.insert().values(
            name=name, project_id=task.project_id, created_at=now, job_id=task.id, base=job["base"],
            base_digest=state["base"]["digest"], adapter=str(release / "adapter"), tokenizer=str(release / "tokenizer"),
            template_fingerprint=state["template_fingerprint"], dtype=state["dtype"], ready=True))
        connection.execute(fine_tuning_jobs.update().where(fine_tuning_jobs.c.id == task.id).values(
            fine_tuned_model=name, release_id=release_id, run_id=state["run_id"], result_files=[result],
            trained_tokens=state["tokens"], estimated_finish=None))
        events.tell(connection, task.id, "model", f"New fine-tuned model created: {name}",
                    data={"release_id": release_id, "run_id": state["run_id"]})
        events.tell(connection, task.id, "completed", "The job has successfully completed")
        queue.end(connection, task.claim, "succeeded")


def _result_file(task: Task, run: Run) -> str:
    """The id of the table of all steps, which is the job's own with another beginning: made once, whoever makes it."""
    from tunesmith.training.loop import read_metrics

    id = "file-" + task.id.removeprefix("ftjob-")
    try:
        with task.database.read() as connection:
            files.find(connection, task.project_id, id)
    except NotFoundError:
        steps = list(results.steps_of(read_metrics(run.path), run.state["total_steps"], over=True))
        files.add(task.database, task.project_id, "step_metrics.csv", "fine-tune-results", results.table(steps), id=id)
    return id


__all__ = ["Invalid", "failed", "refusal", "run_of", "words", "work"]
