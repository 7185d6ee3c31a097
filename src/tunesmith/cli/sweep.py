from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.output import Json, emit, say, table


def sweep(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE")],
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=V1,V2", help="A key of the recipe and its values; "
                                                   "several keys give every combination.")] = None,
    margin: Annotated[float, typer.Option(help="How much worse than the best is good enough, in the metric's unit.")] = 0.0,
    as_json: Json = False,
) -> None:
    """Train a recipe for each combination of values, and recommend the smallest that is not worse than the best."""
    from tunesmith import verbs

    swept = verbs.sweep(recipe, sets or [], margin=margin, say=say)
    emit(swept, as_json, sweep_lines(swept))
    raise typer.Exit(0 if swept["status"] == "finished" else 130)


def sweep_lines(swept: dict) -> list[str]:
    header, rows = swept["table"]["header"], swept["table"]["rows"]
    return [*table(header, rows), *swept["notes"], swept["conclusion"], f"page  {swept['page']}"]
