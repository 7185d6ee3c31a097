"""Who may use the server: projects, API keys, and the log of who did what."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.output import Json, emit, table

if TYPE_CHECKING:
    from tunesmith.jobs.database import Database

Config = Annotated[str, typer.Option(metavar="FILE", help="The server's config, if it names a database. TUNESMITH_DATABASE "
                                                          "counts before it.")]
app = typer.Typer(help="Projects, API keys, and the log of who did what on the server.", no_args_is_help=True,
                  rich_markup_mode=None)
project = typer.Typer(help="Projects: they see nothing of each other.", no_args_is_help=True, rich_markup_mode=None)
key = typer.Typer(help="API keys: each belongs to a project.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(project, name="project")
app.add_typer(key, name="key")


@project.callback()
def _projects() -> None:
    """Projects: they see nothing of each other."""


@project.command("add")
def project_add(name: Annotated[str, typer.Argument(metavar="NAME")], config: Config = "", as_json: Json = False) -> None:
    """Make a project."""
    from tunesmith.jobs import projects

    with _database(config) as database:
        made = dict(projects.add(database, name))
    emit(made, as_json, [f"{made['id']}  {made['name']}"])


@app.command("projects")
def projects_(config: Config = "", as_json: Json = False) -> None:
    """All projects, the oldest first."""
    from tunesmith.jobs import projects

    with _database(config) as database, database.read() as connection:
        found = [dict(row) for row in projects.every(connection)]
    emit({"projects": found}, as_json, [f"{p['id']}  {p['name']}" for p in found])


@key.command("add")
def key_add(
    project: Annotated[str, typer.Option(metavar="P", help="Its id or name.")],
    scope: Annotated[list[str], typer.Option(help="infer: ask models. train: also files, jobs and evals. admin: everything. "
                                                  "Repeatable.")],
    expires: Annotated[float | None, typer.Option(metavar="DAYS", help="Refused after that; default: never.")] = None,
    name: Annotated[str, typer.Option(help="To tell it by.")] = "",
    config: Config = "",
    as_json: Json = False,
) -> None:
    """Make a key and show it, once."""
    from tunesmith.jobs import keys

    with _database(config) as database:
        row, made = keys.add(database, project, scope, name=name, days=expires)
    emit(dict(row) | {"key": made}, as_json, [f"{made}", f"id {row['id']}, scopes {', '.join(row['scopes'])}, "
                                              f"until {_day(row['expires_at']) or 'revoked'}. It cannot be shown again."])


@key.command("revoke")
def key_revoke(id: Annotated[str, typer.Argument(metavar="ID")], config: Config = "", as_json: Json = False) -> None:
    """Refuse a key from the next request on."""
    from tunesmith.jobs import keys

    with _database(config) as database:
        row = dict(keys.revoke(database, id))
    emit(row, as_json, [f"{row['id']} revoked"])


@app.command("keys")
def keys_(config: Config = "", as_json: Json = False) -> None:
    """All keys; of each only its beginning."""
    from tunesmith.jobs import keys

    with _database(config) as database, database.read() as connection:
        found = [dict(row) for row in keys.every(connection)]
    rows = [[k["id"], k["shown"], k["project_id"], ",".join(k["scopes"]), k["name"] or "-",
             "revoked" if k["revoked_at"] else _day(k["expires_at"]) or "-"] for k in found]
    emit({"keys": found}, as_json, table(["id", "key", "project", "scopes", "name", "until"], rows) if rows else ["none yet"])


@app.command()
def log(
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="So many of the newest.")] = 100,
    config: Config = "",
    as_json: Json = False,
) -> None:
    """Who changed what, and who was refused; newest first."""
    from tunesmith.jobs import audit

    with _database(config) as database, database.read() as connection:
        found = [dict(row) for row in audit.entries(connection, limit)]
    rows = [[datetime.fromtimestamp(e["at"], UTC).strftime("%Y-%m-%d %H:%M:%S"), e["status"], e["project_id"] or "-",
             e["key_id"] or "-", e["address"] or "-", e["action"], e["object"] or "-"] for e in found]
    emit({"entries": found}, as_json,
         table(["at (UTC)", "status", "project", "key", "address", "action", "object"], rows) if rows else ["nothing yet"])


@contextmanager
def _database(config: str) -> Iterator[Database]:
    """The one that `tunesmith serve` takes."""
    from pathlib import Path

    from tunesmith.jobs.database import opened
    from tunesmith.jobs.projects import ensure_default
    from tunesmith.jobs.settings import Settings, database_url, read_settings

    with opened(database_url(read_settings(Path(config)) if config else Settings())) as database:
        ensure_default(database)
        yield database


def _day(at: int | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")
