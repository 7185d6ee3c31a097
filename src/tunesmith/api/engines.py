"""Which model a name means, for whom, and the engine that answers for it. Loaded when it is first asked for, once.

    a channel, release or run that the server was started with    everybody's
    a base, or an alias of one (`server.yaml`)                    everybody's
    ft:BASE:ORGANIZATION:SUFFIX:ID                                its project's, and of those who were given permission
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence

import sqlalchemy as sa
from starlette.concurrency import run_in_threadpool

from tunesmith.api.errors import BadParameter
from tunesmith.api.factory import make_engine
from tunesmith.errors import NotFoundError, UsageError
from tunesmith.jobs import places
from tunesmith.jobs.database import Database, clock
from tunesmith.jobs.names import is_checkpoint, is_tuned
from tunesmith.jobs.places import pin
from tunesmith.jobs.settings import Settings
from tunesmith.jobs.tables import models, permissions
from tunesmith.serving.interface import BaseEngine, Served

LONGEST_NAME = 255


class Engines:
    """One engine a base. `given` serves what the server was started with."""

    def __init__(self, settings: Settings, database: Database, given: BaseEngine | None = None):
        self.settings, self._database, self.given = settings, database, given
        self._by_digest = {given.base.digest: given} if given else {}
        self._loading = threading.Lock()
        self._began = int(time.time())

    async def ready(self, name: str, project_id: str) -> tuple[BaseEngine, Served]:
        """The engine that answers to a name, loaded. Raises NotFoundError for a name that this project may not ask for."""
        if self.given and name in self.given.served and not is_tuned(name):  # of these, only the database knows whose they are
            return self.given, self.given.find(name)
        return await run_in_threadpool(self.load, name, project_id)

    def load(self, name: str, project_id: str) -> tuple[BaseEngine, Served]:
        """`ready`, on this thread."""
        if self.given and name in self.given.served and not is_tuned(name):
            return self.given, self.given.find(name)
        if (row := self.model(name, project_id)) is not None:
            engine = self._engine(row["base"], row["dtype"])
            if engine.base.digest != row["base_digest"]:
                raise UsageError(f"The base of the model `{name}` is not the one that it was trained on", why="it has changed",
                                 fix="the operator brings it back, or the model is trained again")
            with self._loading:
                if name not in engine.served:
                    self._add(engine, row)
            return engine, engine.find(name)
        if (base := self.settings.base_of(name)) is not None:
            engine = self._engine(base)
            return engine, engine.find(engine.base.ref)
        raise _unknown(name)

    def model(self, name: str, project_id: str) -> sa.RowMapping | None:
        """The row of a fine-tuned model that this project may ask for."""
        if "\0" in name or len(name) > LONGEST_NAME:
            return None
        with self._database.read() as connection:
            return connection.execute(sa.select(models).where(models.c.name == name, _visible(project_id))).mappings().first()

    def forget(self, name: str, project_id: str) -> None:
        """Delete a fine-tuned model of this project: nobody can ask it any more. Its release stays on disk.

        Raises:
            NotFoundError: there is no such model. BadParameter (403): it is not this project's to delete.
        """
        row = self.model(name, project_id)
        if row is None:
            self.describe(name, project_id)
            raise BadParameter(f"The model `{name}` was not fine-tuned here: it cannot be deleted", None, "forbidden", 403)
        if row["project_id"] != project_id:
            raise BadParameter(f"The model `{name}` is another project's: it cannot be deleted", None, "forbidden", 403)
        with self._database.write() as connection:
            connection.execute(permissions.delete().where(permissions.c.model == name))
            connection.execute(models.update().where(models.c.name == name).values(deleted_at=int(clock(connection))))
        if not is_checkpoint(name):
            pin(project_id, row["job_id"]).unlink(missing_ok=True)
        self._unload(name)

    def _unload(self, name: str) -> None:
        with self._loading:
            for engine in self.all:
                if name in engine.served:
                    engine.remove(name)

    def named(self, project_id: str) -> list[dict]:
        """All models that this project may ask for, as `/v1/models` shows them."""
        found = [_shown(s.name, s.created, s.root) for s in self.given.served.values()
                 if not is_tuned(s.name)] if self.given else []
        known = {m["id"] for m in found}
        for name in (*self.settings.bases, *(a for a in self.settings.aliases if not set(a) & set("*?["))):
            if name not in known:
                known.add(name)
                found.append(_shown(name, self._began, self.settings.base_of(name)))
        with self._database.read() as connection:
            rows = connection.execute(sa.select(models).where(_visible(project_id))
                                      .order_by(models.c.created_at, models.c.name)).mappings().all()
        return found + [_shown(r["name"], r["created_at"], r["base"]) for r in rows]

    def describe(self, name: str, project_id: str) -> dict:
        """One of them. Raises NotFoundError."""
        for model in self.named(project_id):
            if model["id"] == name:
                return model
        if (base := self.settings.base_of(name)) is not None:
            return _shown(name, self._began, base)
        raise _unknown(name)

    @property
    def all(self) -> Sequence[BaseEngine]:
        return list(self._by_digest.values())

    @property
    def state(self) -> dict:
        """What is loaded, and how busy it is."""
        load = [e.load for e in self.all]
        return {"base": self.given.base.ref if self.given else None, "models": sum(len(e.served) for e in self.all),
                "running": sum(x["running"] for x in load), "waiting": sum(x["waiting"] for x in load)}

    @property
    def facts(self) -> Counter[str]:
        """What the engines say of themselves, summed."""
        return sum((Counter(e.facts) for e in self.all), Counter())

    def close(self) -> None:
        for engine in self.all:
            engine.close()

    def _engine(self, ref: str, dtype: str | None = None) -> BaseEngine:
        from tunesmith.engine.precision import choose
        from tunesmith.models.base import resolve

        with self._loading:
            base = resolve(ref)
            if base.digest not in self._by_digest:
                if self.settings.engine.url and self._by_digest:
                    raise UsageError(f"`{ref}` cannot be served: the vLLM server has another base",
                                     where=self.settings.engine.url, fix="one server for each base")
                self._by_digest[base.digest] = make_engine(base, choose(dtype or "auto"), self.settings.engine)
            return self._by_digest[base.digest]

    def _add(self, engine: BaseEngine, row: sa.RowMapping) -> None:
        from transformers import AutoTokenizer

        home = places.project_home(row["project_id"])
        if not (home / row["adapter"]).is_dir():
            raise _unknown(row["name"])  # a checkpoint that has just made room for a later one, or files that were removed
        tokenizer = (AutoTokenizer.from_pretrained(home / row["tokenizer"], trust_remote_code=False) if row["tokenizer"]
                     else engine.find(engine.base.ref).tokenizer)
        engine.add([row["name"]], home / row["adapter"], tokenizer, row["template_fingerprint"], row["created_at"])


def _visible(project_id: str) -> sa.ColumnElement[bool]:
    """Of fine-tuned models: those of a project, and those that it was given permission for."""
    shared = sa.exists().where(permissions.c.model == models.c.name, permissions.c.project_id == project_id)
    return sa.and_(models.c.deleted_at.is_(None), models.c.ready, sa.or_(models.c.project_id == project_id, shared))


def _unknown(name: str) -> NotFoundError:
    return NotFoundError(f"The model `{name}` does not exist or you do not have access to it.",
                         fix="GET /v1/models lists those that you may ask for")


def _shown(name: str, created: int, root: str | None) -> dict:
    return {"id": name, "object": "model", "created": created, "owned_by": "tunesmith", "root": root}
