"""Which model a name means, for whom, and the engine that answers for it. Loaded when it is first asked for, once.

    a channel, release or run that the server was started with    everybody's
    a base, or an alias of one (`server.yaml`)                    everybody's
    ft:BASE:ORGANIZATION:SUFFIX:ID                                its project's, and of those who were given permission
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa
from starlette.concurrency import run_in_threadpool

from tunesmith.errors import NotFoundError
from tunesmith.jobs.database import Database
from tunesmith.jobs.settings import Settings
from tunesmith.jobs.tables import models, permissions
from tunesmith.serving.engine import Engine, Served


class Engines:
    """One engine a base. `given` serves what the server was started with."""

    def __init__(self, settings: Settings, database: Database, given: Engine | None = None):
        self.settings, self._database, self.given = settings, database, given
        self._by_digest = {given.base.digest: given} if given else {}
        self._loading = threading.Lock()
        self._began = int(time.time())

    async def ready(self, name: str, project_id: str) -> tuple[Engine, Served]:
        """The engine that answers to a name, loaded. Raises NotFoundError for a name that this project may not ask for."""
        if self.given and name in self.given.served:
            return self.given, self.given.find(name)
        return await run_in_threadpool(self.load, name, project_id)

    def load(self, name: str, project_id: str) -> tuple[Engine, Served]:
        """`ready`, on this thread."""
        if self.given and name in self.given.served:
            return self.given, self.given.find(name)
        if (row := self.model(name, project_id)) is not None:
            engine = self._engine(row["base"], row["dtype"])
            with self._loading:
                if name not in engine.served:
                    self._add(engine, row)
            return engine, engine.find(name)
        if (base := self.settings.base_of(name)) is not None:
            engine = self._engine(base)
            return engine, engine.find(engine.base.ref)
        raise NotFoundError(f"The model `{name}` does not exist or you do not have access to it.",
                            fix="GET /v1/models lists those that you may ask for")

    def model(self, name: str, project_id: str) -> sa.RowMapping | None:
        """The row of a fine-tuned model that this project may ask for."""
        shared = sa.exists().where(permissions.c.model == models.c.name, permissions.c.project_id == project_id)
        with self._database.read() as connection:
            return connection.execute(sa.select(models).where(
                models.c.name == name, models.c.deleted_at.is_(None), sa.or_(models.c.project_id == project_id, shared)
            )).mappings().first()

    def named(self, project_id: str) -> list[dict]:
        """All models that this project may ask for, as `/v1/models` shows them."""
        found = [_shown(s.name, s.created, s.root) for s in self.given.served.values()] if self.given else []
        known = {m["id"] for m in found}
        for name in (*self.settings.bases, *(a for a in self.settings.aliases if not set(a) & set("*?["))):
            if name not in known:
                known.add(name)
                found.append(_shown(name, self._began, self.settings.base_of(name)))
        shared = sa.exists().where(permissions.c.model == models.c.name, permissions.c.project_id == project_id)
        with self._database.read() as connection:
            rows = connection.execute(sa.select(models).where(
                models.c.deleted_at.is_(None), sa.or_(models.c.project_id == project_id, shared))
                .order_by(models.c.created_at, models.c.name)).mappings().all()
        return found + [_shown(r["name"], r["created_at"], r["base"]) for r in rows]

    def describe(self, name: str, project_id: str) -> dict:
        """One of them. Raises NotFoundError."""
        for model in self.named(project_id):
            if model["id"] == name:
                return model
        if (base := self.settings.base_of(name)) is not None:
            return _shown(name, self._began, base)
        raise NotFoundError(f"The model `{name}` does not exist or you do not have access to it.",
                            fix="GET /v1/models lists those that you may ask for")

    @property
    def all(self) -> Sequence[Engine]:
        return list(self._by_digest.values())

    @property
    def state(self) -> dict:
        """What is loaded, and how busy it is."""
        load = [e.load for e in self.all]
        return {"base": self.given.base.ref if self.given else None, "models": sum(len(e.served) for e in self.all),
                "running": sum(x["running"] for x in load), "waiting": sum(x["waiting"] for x in load)}

    def close(self) -> None:
        for engine in self.all:
            engine.close()

    def _engine(self, ref: str, dtype: str | None = None) -> Engine:
        from tunesmith.engine.precision import choose
        from tunesmith.models.base import resolve
        from tunesmith.models.load import tokenizer_of

        with self._loading:
            base = resolve(ref)
            if base.digest not in self._by_digest:
                choice = choose(dtype or "auto")
                self._by_digest[base.digest] = Engine(base, tokenizer_of(base), str(choice.dtype).removeprefix("torch."),
                                                      choice.device, int(time.time()))
            return self._by_digest[base.digest]

    def _add(self, engine: Engine, row: sa.RowMapping) -> None:
        from transformers import AutoTokenizer

        tokenizer = (AutoTokenizer.from_pretrained(row["tokenizer"], trust_remote_code=False) if row["tokenizer"]
                     else engine.find(engine.base.ref).tokenizer)
        engine.add([row["name"]], Path(row["adapter"]), tokenizer, row["template_fingerprint"], row["created_at"])


def _shown(name: str, created: int, root: str | None) -> dict:
    return {"id": name, "object": "model", "created": created, "owned_by": "tunesmith", "root": root}
