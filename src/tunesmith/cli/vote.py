from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tunesmith.cli.output import Json, emit

Against = Literal["base", "author"]


def vote(
    name: Annotated[str, typer.Argument(metavar="RUN|RELEASE|RECIPE", help="An evaluated run whose recipe sets eval.style.")],
    votes: Annotated[list[Path] | None, typer.Option(help="A file that the page saved: count it. May be repeated.")] = None,
    against: Annotated[Against, typer.Option(help="What the tuned texts stand beside.")] = "base",
    pairs: Annotated[int, typer.Option(min=1, help="How many pairs, at most.")] = 20,
    seed: Annotated[int | None, typer.Option(help="Draws order and sides. Left out: a secret one, kept in the key.")] = None,
    as_json: Json = False,
) -> None:
    """Make a page on which a reader chooses blindly between tuned and base, or count the votes that came back."""
    from tunesmith import verbs

    if votes:
        counted = verbs.count_votes(name, votes)
        emit(counted, as_json, [*(line(against, found) for against, found in counted["votes"].items()),
                                f"report {counted['report_path']}"])
        return
    made = verbs.vote(name, against=against, pairs=pairs, seed=seed)
    emit(made, as_json, [f"{made['pairs']} pairs in {made['page']}", f"the key stays in {made['key']}",
                         *([f"{made['left_out']} pairs were left out: both texts are equal"] if made["left_out"] else []),
                         f"then: tunesmith vote {name} --votes FILE"])


def line(against: str, found: dict) -> str:
    other = "base" if against == "zero_shot" else against
    if found["share"] is None:
        return f"tuned against {other}: {found['ties']} ties, nothing decided"
    low, high = (100 * end for end in found["ci95"])
    p = "" if found["p_value"] is None else f", p = {found['p_value']:.2g}"
    return (f"tuned against {other}: {found['wins']} won, {found['losses']} lost, {found['ties']} ties; "
            f"{100 * found['share']:.0f}% ({low:.0f} to {high:.0f}){p}, readers: {found['readers']}")
