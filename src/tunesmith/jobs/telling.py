"""Tells a job's events while its training runs, on the thread that renews the lease: steps, warnings, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from tunesmith.jobs import events, places, queue, results
from tunesmith.jobs.database import clock, insert_new
from tunesmith.jobs.ids import new_id
from tunesmith.jobs.names import new_name
from tunesmith.jobs.results import Step
from tunesmith.jobs.tables import checkpoints, fine_tuning_jobs, models
from tunesmith.jobs.worker import Task
from tunesmith.store.files import publish_directory
from tunesmith.training.run import Run

KEPT = 3
"""Checkpoints that can be asked for: of the last epochs, the last one among them."""
AT_MOST = 0.05
"""Share of the time that looking at a long training may take."""


class Telling:
    """`look()` again and again, and once with `over` when the training has ended."""

    def __init__(self, task: Task, job: sa.RowMapping, find: Callable[[], Run | None]):
        self._task, self._job, self._find = task, job, find
        self._run = find()
        self._told, self._warned, self._not_before = 0, 0, 0.0
        self._saved = self._newest() if self._run else 0  # what an earlier attempt saved is no step forward of this one

    def look(self, over: bool = False) -> None:
        """Raises Lost."""
        from tunesmith.training.loop import read_metrics

        began = time.monotonic()
        if began < self._not_before and not over:
            return
        self._run = self._run or self._find()
        if self._run is None or (total := self._run.state.get("total_steps")) is None:
            return
        steps = list(results.steps_of(read_metrics(self._run.path), total, over))
        new = [s for s in steps if s.number > self._told]
        warnings = self._run.state.get("warnings", [])
        saved = self._newest()
        if new or len(warnings) > self._warned or saved > self._saved or over:
            with self._task.database.write() as connection:
                queue.still_mine(connection, self._task.claim)
                self._steps(connection, new, total)
                for warning in warnings:
                    events.tell(connection, self._task.id, f"warning-{warning['code']}-{warning['step']}",
                                f"{warning['message']}. {warning['fix']}", level="warn", data={"code": warning["code"]})
                self._checkpoints(connection, steps)
                if saved > self._saved:
                    queue.progressed(connection, self._task.claim)
                left = results.seconds_left(steps, total)
                connection.execute(fine_tuning_jobs.update().where(fine_tuning_jobs.c.id == self._task.id).values(
                    run_id=self._run.path.name,
                    estimated_finish=None if left is None else int(clock(connection) + left)))
            self._told, self._warned, self._saved = max(self._told, *(s.number for s in steps), 0), len(warnings), saved
        self._not_before = time.monotonic() + (time.monotonic() - began) / AT_MOST

    def _newest(self) -> int:
        """The step of the newest checkpoint."""
        from tunesmith.training import checkpoint

        return max(map(checkpoint.step_of, checkpoint.all_in(self._run.path)), default=0)

    def _steps(self, connection: sa.Connection, steps: list[Step], total: int) -> None:
        for step in steps:
            events.tell(connection, self._task.id, f"step-{step.number}", step.message(total), kind="metrics",
                        data=step.data(total))
            if step.ends_epoch:
                events.tell(connection, self._task.id, f"checkpoint-{step.number}", f"Checkpoint created at step {step.number}")

    def _checkpoints(self, connection: sa.Connection, steps: list[Step]) -> None:
        """A row and a model for each kept epoch that is told of; those of earlier epochs end."""
        from tunesmith.training import checkpoint

        told = {s.number: s for s in steps if s.ends_epoch}
        kept = [p for p in checkpoint.epochs_in(self._run.path) if checkpoint.step_of(p) in told][-KEPT:]
        for path in kept:
            self._checkpoint(connection, path, told[checkpoint.step_of(path)])
        if kept:
            old = connection.execute(sa.select(checkpoints.c.model).where(
                checkpoints.c.job_id == self._task.id, checkpoints.c.step < checkpoint.step_of(kept[0]))).scalars().all()
            connection.execute(checkpoints.delete().where(checkpoints.c.model.in_(old)))
            connection.execute(models.update().where(models.c.name.in_(old)).values(deleted_at=int(clock(connection))))

    def _checkpoint(self, connection: sa.Connection, path: Path, step: Step) -> None:
        job, state, home = self._job, self._run.state, places.project_home(self._task.project_id)
        if connection.execute(sa.select(checkpoints.c.id).where(
                checkpoints.c.job_id == self._task.id, checkpoints.c.step == step.number)).first():
            return
        now = int(clock(connection))
        name = new_name(job["model"], self._task.settings.organization, job["suffix"], step.number)
        insert_new(connection, models, {
            "name": name, "project_id": self._task.project_id, "created_at": now, "job_id": self._task.id,
            "base": job["base"], "base_digest": state["base"]["digest"], "adapter": str(path.relative_to(home)),
            "tokenizer": self._tokenizer(home), "template_fingerprint": state["template_fingerprint"],
            "dtype": state["dtype"], "ready": True})
        insert_new(connection, checkpoints, {"id": new_id("ftckpt_"), "job_id": self._task.id, "created_at": now,
                                             "step": step.number, "model": name, "metrics": step.metrics()})

    def _tokenizer(self, home: Path) -> str | None:
        """Where the run's tokenizer is, if the operator gave it a template of its own."""
        from tunesmith.training.run import tokenizer_for

        loaded, place = self._run.recipe(), self._run.path / "tokenizer"
        if not loaded.recipe.data.template:
            return None
        if not place.is_dir():
            with publish_directory(place) as staging:
                tokenizer_for(self._run.base(), loaded).save_pretrained(staging)
        return str(place.relative_to(home))
