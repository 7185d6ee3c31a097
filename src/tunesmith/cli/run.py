from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.evaluate import eval_lines
from tunesmith.cli.output import Json, emit, say
from tunesmith.cli.release import release_lines
from tunesmith.cli.train import train_lines


def run(recipe: Annotated[str, typer.Argument(metavar="RECIPE")], as_json: Json = False) -> None:
    """check, train, eval and release in one. Exit code 3 when a gate refuses."""
    from tunesmith import verbs

    done = verbs.run(recipe, say=say)
    if done["status"] != "finished":
        emit(done, as_json, train_lines(done, recipe))
        raise typer.Exit(130)
    phases = ", ".join(f"{name} {s:.0f} s" for name, s in done["seconds"].items())
    emit(done, as_json, [*train_lines(done, recipe), "", *eval_lines(done), "", *release_lines(done), phases])
    raise typer.Exit(0 if done["verdict"] == "pass" else 3)
