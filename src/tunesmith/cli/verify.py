from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.output import Json, emit, say

app = typer.Typer(help="Proofs that anybody can run.", no_args_is_help=True, rich_markup_mode=None)
Recipe = Annotated[str, typer.Argument(metavar="RECIPE")]


@app.command()
def packing(recipe: Recipe, as_json: Json = False) -> None:
    """Rows of a pack give the same loss and gradients as each row alone."""
    from tunesmith import verbs

    _show(verbs.verify_packing(recipe, say=say), as_json)


@app.command()
def resume(
    recipe: Recipe,
    steps: Annotated[int, typer.Option(min=2, help="Steps to train.")] = 4,
    kills: Annotated[int, typer.Option(min=0, help="End it so many times with SIGKILL, at random moments.")] = 0,
    as_json: Json = False,
) -> None:
    """A training that is stopped half-way, or killed, and resumed equals the uninterrupted one bit for bit."""
    from tunesmith import verbs

    _show(verbs.verify_resume(recipe, steps=steps, kills=kills, say=say), as_json)


@app.command()
def release(name: Annotated[str, typer.Argument(metavar="RELEASE")], as_json: Json = False) -> None:
    """Every file of a release is as it was released."""
    from tunesmith import verbs

    _show(verbs.verify_release(name), as_json)


def _show(proof: dict, as_json: bool) -> None:
    emit(proof, as_json, [f"{'identical' if proof['identical'] else 'DIFFERENT'}: {proof['message']}"])
    raise typer.Exit(0 if proof["identical"] else 1)
