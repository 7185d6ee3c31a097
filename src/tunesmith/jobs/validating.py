"""The first part of a fine-tuning job: its files are checked, and from then on it is a recipe like any other.

    jobs/JOB_ID/  train.jsonl  validation.jsonl   the uploaded bytes, there since the request (`files.keep`)
                  parents/NAME/                   the adapter that it goes on from
                  recipe.yaml                     `tunesmith train` of it gives the same adapter, bit for bit
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import yaml

from tunesmith.jobs import events, examples, places, queue, recipes
from tunesmith.jobs.database import clock
from tunesmith.jobs.examples import Examples, Invalid, Which
from tunesmith.jobs.tables import fine_tuning_jobs, models
from tunesmith.jobs.worker import Task
from tunesmith.models.base import resolve
from tunesmith.store.files import publish_directory, read_json, write_text

RECIPE = "recipe.yaml"


def validate(task: Task, job: sa.RowMapping) -> None:
    """Check the files, write the recipe, and say what `auto` has become. Done again from the beginning after a kill.

    Raises:
        Invalid: an example, a file or the model is not as it must be.
    """
    folder, method = places.job_dir(task.id), job["method"]["type"]
    training = _looked_at(task, job, "training", folder / "train.jsonl", method)
    held_out = bool(job["validation_file"]) and _held_out(task, job, folder / "validation.jsonl", method, training)
    base = resolve(job["base"])
    config = base.config()
    context = config.get("max_position_embeddings") or config.get("text_config", {}).get("max_position_embeddings")
    recipe, numbers = recipes.finished(recipes.recipe_of(task.settings, job), job, training.count, held_out=held_out,
                                       context=context)
    recipe["data"]["format"] = examples.FORMATS[training.kind][1]
    if job["parent"]:
        recipe = _going_on(task, job, recipe, folder, base.digest)
    write_text(folder / RECIPE, f"# The recipe of {task.id}: tunesmith train {RECIPE}\n"
                                + yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
    with task.database.write() as connection:
        queue.still_mine(connection, task.claim)
        connection.execute(fine_tuning_jobs.update().where(fine_tuning_jobs.c.id == task.id).values(
            validated_at=int(clock(connection)), hyperparameters=numbers if method == "supervised" else sa.null(),
            method={"type": method, method: {"hyperparameters": numbers}}))
        events.tell(connection, task.id, "validated", "Files validated, moving job to queued state")


def _looked_at(task: Task, job: sa.RowMapping, which: Which, place: Path, method: str) -> Examples:
    """What is in a file that is at `place` since the request; from now on with names that our reader knows. Raises Invalid."""
    file_id = job[f"{which}_file"]
    if not place.is_file():
        raise Invalid(f"invalid_{which}_file", f"No such File object: {file_id}", f"{which}_file")
    found = examples.look(place, file_id, which, method)
    if found.old_names:
        _write(place, [value for value, _ in examples.rows_of(place, found.kind)])
    return found


def _held_out(task: Task, job: sa.RowMapping, place: Path, method: str, training: Examples) -> bool:
    """Whether there are validation examples that are not trained on. Those that are, are left out and told. Raises Invalid."""
    found = _looked_at(task, job, "validation", place, method)
    both = len(found.turns & training.turns)
    if found.kind != training.kind:
        raise Invalid("invalid_validation_file", "The job failed due to an invalid validation file. It is in the "
                      f"{found.kind} format, and the training file is in the {training.kind} format.", "validation_file")
    if not both:
        return True
    rows = [value for value, turns in examples.rows_of(place, found.kind) if turns not in training.turns]
    left = (f"the validation loss is of the other {len(rows)}" if rows else
            "none is left: examples of the training file are held out instead")
    task.tell("duplicates", f"{found.count - len(rows)} of {found.count} validation examples are in the training file as well; "
              f"they are left out, {left}", level="warn")
    if rows:
        _write(place, rows)
    return bool(rows)


def _write(place: Path, rows: list[dict]) -> None:
    write_text(place, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _going_on(task: Task, job: sa.RowMapping, recipe: dict[str, Any], folder: Path, digest: str) -> dict[str, Any]:
    """The recipe with the method of the model that the job goes on from, and its adapter beside the recipe. Raises Invalid."""
    with task.database.read() as connection:
        row = connection.execute(sa.select(models).where(
            models.c.name == job["parent"], models.c.project_id == task.project_id)).mappings().first()
        of = row and connection.execute(sa.select(fine_tuning_jobs.c.run_id).where(
            fine_tuning_jobs.c.id == row["job_id"])).scalar_one_or_none()
    home = places.project_home(task.project_id)
    adapter = row and home / row["adapter"]
    if row is None or not of or row["deleted_at"] is not None or not adapter.is_dir():
        raise Invalid("model_not_found", f"The model `{job['parent']}` does not exist or you do not have access to it.",
                      "model")
    if row["base_digest"] != digest:
        raise Invalid("model_not_found", f"The base of `{job['parent']}` is another one today.", "model")
    name = adapter.parent.name if adapter.name == "adapter" else f"{adapter.parent.name}-{adapter.name}"
    place = folder / "parents" / name
    if not place.is_dir():
        with publish_directory(place) as staging:
            shutil.copytree(adapter, staging, dirs_exist_ok=True)
    resolved = read_json(home / "runs" / of / "recipe.resolved.json")
    return recipe | {"method": resolved["method"], "train": recipe["train"] | {"start_from": f"parents/{name}"}}
