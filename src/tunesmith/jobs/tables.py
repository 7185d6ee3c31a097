"""The service's tables. Times are seconds since 1970; ids are those that clients see.

    projects ── api_keys
        ├── files ── uploads ── upload_parts
        ├── work ─┬─ fine_tuning_jobs ── events, checkpoints      what is queued, run, paused; a lease for who runs it
        │         └─ eval_runs ── output_items
        ├── models ── permissions                                 `ft:` names and who may ask for them
        └── evals
    audit_log                                                     who changed what

A change of these tables is a migration in `migrations/versions`; `tests/jobs/test_database.py` holds both to each other.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(naming_convention={
    "ix": "ix_%(column_0_label)s", "uq": "uq_%(table_name)s_%(column_0_N_name)s", "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s"})
Counter = BigInteger().with_variant(Integer, "sqlite")
"""SQLite counts up INTEGER primary keys only."""


def _id() -> Column:
    return Column("id", String(64), primary_key=True)


def _project() -> Column:
    return Column("project_id", String(64), ForeignKey("projects.id"), nullable=False, index=True)


def _created() -> Column:
    return Column("created_at", Integer, nullable=False)


projects = Table(
    "projects", metadata, _id(), _created(),
    Column("name", String(64), nullable=False, unique=True),
)

api_keys = Table(
    "api_keys", metadata, _id(), _project(), _created(),
    Column("name", String(64), nullable=False),
    Column("shown", String(32), nullable=False),  # the key's beginning, to tell it by
    Column("hash", String(64), nullable=False, unique=True),  # SHA-256 of a key of 256 random bits
    Column("scopes", JSON, nullable=False),
    Column("expires_at", Integer),
    Column("revoked_at", Integer),
)

files = Table(
    "files", metadata, _id(), _project(), _created(),
    Column("filename", String(255), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("expires_at", Integer),
)

uploads = Table(
    "uploads", metadata, _id(), _project(), _created(),
    Column("filename", String(255), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("mime_type", String(128), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("status", String(16), nullable=False),
    Column("expires_at", Integer, nullable=False),
    Column("file_expires_after", Integer),
    Column("file_id", String(64)),
)

upload_parts = Table(
    "upload_parts", metadata, _id(), _created(),
    Column("upload_id", String(64), ForeignKey("uploads.id"), nullable=False, index=True),
    Column("bytes", BigInteger, nullable=False),
)

work = Table(
    "work", metadata, _id(), _project(), _created(),
    Column("kind", String(32), nullable=False),
    Column("queued_at", Float, nullable=False),  # to the microsecond: the first that came is the first that is done
    Column("status", String(16), nullable=False),  # queued running paused succeeded failed cancelled
    Column("wanted", String(16), nullable=False, default="run"),  # run pause cancel
    Column("attempt", Integer, nullable=False, default=0),  # a fence: only the last attempt may write
    Column("owner", String(128)),
    Column("lease_until", Float),
    Column("fruitless", Integer, nullable=False, default=0),  # attempts in a row that died and got no further
    Column("started_at", Integer),
    Column("ended_at", Integer),
    Index("ix_work_next", "status", "lease_until", "queued_at"),
)

fine_tuning_jobs = Table(
    "fine_tuning_jobs", metadata,
    Column("id", String(64), ForeignKey("work.id"), primary_key=True),
    _project(), _created(),
    Column("model", String(255), nullable=False),  # as it was asked for
    Column("base", String(255), nullable=False),  # what it is here
    Column("parent", String(255)),  # the `ft:` model it goes on from
    Column("training_file", String(64), nullable=False),
    Column("validation_file", String(64)),
    Column("method", JSON, nullable=False),
    Column("hyperparameters", JSON),
    Column("suffix", String(64)),
    Column("seed", BigInteger, nullable=False),
    Column("metadata", JSON),
    Column("integrations", JSON),
    Column("extensions", JSON, nullable=False),  # sections of a recipe
    Column("validated_at", Integer),
    Column("estimated_finish", Integer),
    Column("run_id", String(255)),
    Column("release_id", String(255)),
    Column("fine_tuned_model", String(255)),
    Column("trained_tokens", BigInteger),
    Column("result_files", JSON, nullable=False),
    Column("error", JSON),
)

events = Table(
    "events", metadata,
    Column("seq", Counter, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("job_id", String(64), ForeignKey("work.id"), nullable=False),
    Column("key", String(128), nullable=False),  # what it tells of: told again, it is the same event
    _created(),
    Column("level", String(8), nullable=False),
    Column("type", String(16), nullable=False),
    Column("message", Text, nullable=False),
    Column("data", JSON),
    UniqueConstraint("job_id", "key"),
)

checkpoints = Table(
    "checkpoints", metadata, _id(), _created(),
    Column("job_id", String(64), ForeignKey("work.id"), nullable=False),
    Column("step", Integer, nullable=False),
    Column("model", String(255), nullable=False, unique=True),
    Column("metrics", JSON, nullable=False),
    UniqueConstraint("job_id", "step"),
)

models = Table(
    "models", metadata, _project(), _created(),
    Column("name", String(255), primary_key=True),
    Column("job_id", String(64), nullable=False, index=True),
    Column("base", String(255), nullable=False),
    Column("base_digest", String(80), nullable=False),
    Column("adapter", Text, nullable=False),  # its directory, below the project's home
    Column("tokenizer", Text),  # a directory of its own, if it is not the base's
    Column("template_fingerprint", String(80), nullable=False),
    Column("dtype", String(16), nullable=False),
    Column("ready", Boolean, nullable=False, default=True),
    Column("deleted_at", Integer),
)

permissions = Table(
    "permissions", metadata, _id(), _created(),
    Column("model", String(255), ForeignKey("models.name"), nullable=False),
    Column("project_id", String(64), ForeignKey("projects.id"), nullable=False, index=True),
    UniqueConstraint("model", "project_id"),
)

evals = Table(
    "evals", metadata, _id(), _project(), _created(),
    Column("name", String(255)),
    Column("data_source_config", JSON, nullable=False),
    Column("testing_criteria", JSON, nullable=False),
    Column("metadata", JSON),
    Column("updated_at", Integer, nullable=False),
    Column("deleted_at", Integer),
)

eval_runs = Table(
    "eval_runs", metadata,
    Column("id", String(64), ForeignKey("work.id"), primary_key=True),
    _project(), _created(),
    Column("eval_id", String(64), ForeignKey("evals.id"), nullable=False, index=True),
    Column("name", String(255)),
    Column("model", String(255)),
    Column("data_source", JSON, nullable=False),
    Column("models", JSON, nullable=False),  # what each name meant when the run was made: base, adapter, tokenizer
    Column("metadata", JSON),
    Column("usage", JSON, nullable=False),  # counts, results of criteria and tokens so far, written with the items
    Column("error", JSON),
    Column("deleted_at", Integer),
)

output_items = Table(
    "output_items", metadata, _id(), _created(),
    Column("run_id", String(64), ForeignKey("work.id"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("status", String(16), nullable=False),
    Column("item", JSON, nullable=False),
    Column("sample", JSON),
    Column("results", JSON, nullable=False),
    UniqueConstraint("run_id", "position"),
)

audit_log = Table(
    "audit_log", metadata,
    Column("seq", Counter, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("project_id", String(64)),
    Column("key_id", String(64)),
    Column("action", String(64), nullable=False),
    Column("object", String(255)),
    Column("status", Integer, nullable=False),
    Column("request_id", String(64)),
    Column("address", String(64)),
)
