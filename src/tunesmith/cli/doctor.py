from __future__ import annotations

import typer

from tunesmith.cli.output import Json, emit

MARKS = {"ok": "✓", "warning": "!", "fail": "✗"}


def doctor(as_json: Json = False) -> None:
    """Whether this machine can do what will be asked of it. Exit code 1 when something that everybody needs fails."""
    from tunesmith.jobs.doctor import examine

    found = examine()
    width = max(len(c["name"]) for c in found["checks"])
    lines = []
    for check in found["checks"]:
        lines.append(f"{MARKS[check['status']]} {check['name']:<{width}}  {check['message']}")
        if check["fix"]:
            lines.append(f"  {'':<{width}}  do: {check['fix']}")
    emit(found, as_json, lines)
    if not found["ok"]:
        raise typer.Exit(1)
