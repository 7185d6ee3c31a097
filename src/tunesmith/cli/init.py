from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.output import Json, emit


def init(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A new directory.")],
    example: Annotated[str, typer.Option(help="addresses or style.")] = "addresses",
    as_json: Json = False,
) -> None:
    """Write a recipe and real sample data that run as they are."""
    from tunesmith import verbs

    made = verbs.init(directory, example=example)
    emit(made, as_json, [f"wrote {made['path']}", f"next: tunesmith run {made['recipe']}"])
