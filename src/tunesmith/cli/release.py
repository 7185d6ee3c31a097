from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.output import Json, emit, gate_lines, say


def release(run: Annotated[str, typer.Argument(metavar="RUN")], as_json: Json = False) -> None:
    """Judge a run by its gates and, if all pass, bundle it. Exit code 3 when a gate refuses."""
    from tunesmith import verbs

    released = verbs.release(run, say=say)
    emit(released, as_json, release_lines(released))
    raise typer.Exit(0 if released["verdict"] == "pass" else 3)


def release_lines(released: dict) -> list[str]:
    made = released["release_id"]
    return [*gate_lines(released["gates"]), f"release {made}  {released['path']}" if made else "refused: nothing was released"]
