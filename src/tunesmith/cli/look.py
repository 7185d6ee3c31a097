from __future__ import annotations

import json
from typing import Annotated

import typer

from tunesmith.cli.output import Json, emit, table


def runs(as_json: Json = False) -> None:
    """Runs and releases, newest first."""
    from tunesmith import verbs

    found = verbs.runs()
    rows = [[r["run_id"], r["status"], r.get("steps", "-"), _number(r.get("train_loss")), _number(r.get("eval_loss")),
             r.get("release_id") or "-"] for r in found["runs"]]
    emit(found, as_json, table(["run", "status", "steps", "loss", "held-out", "release"], rows) if rows else ["no runs yet"])


def show(
    name: Annotated[str, typer.Argument(metavar="ID", help="A run, a release or a channel.")],
    as_json: Json = False,
) -> None:
    """Everything known of a run, a release or a channel. A release is checked against its digests."""
    from tunesmith import verbs

    found = verbs.show(name)
    emit(found, as_json, [f"{key}: {json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value}"
                          for key, value in found.items()])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
