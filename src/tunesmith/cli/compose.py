from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.output import Json, emit, say
from tunesmith.errors import UsageError


def compose(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the new run is called.")],
    adapter: Annotated[list[str], typer.Option(metavar="RUN|RELEASE[=WEIGHT]", help="A parent, and how much it counts (1). "
                                               "Give it twice or more.")],
    how: Annotated[str, typer.Option(help="cat, svd, linear, ties, dare_linear, dare_ties, magnitude_prune; the last four also "
                                     "with _svd behind the name.")] = "cat",
    rank: Annotated[int | None, typer.Option(metavar="R", help="Of svd and ..._svd; the parents' largest if left out.")] = None,
    density: Annotated[float | None, typer.Option(metavar="SHARE", help="What pruning keeps; 0.5 if left out.")] = None,
    sign: Annotated[str | None, typer.Option(metavar="total|frequency", help="How ties elects a sign.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Of dare's chance.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, metavar="N", help="Rows of each test set that eval asks; what each "
                                                "parent's recipe says if left out.")] = None,
    max_drop: Annotated[float | None, typer.Option(metavar="SHARE", help="Of gates.composition: what may be lost of a share "
                                                   "against a parent on its own task.")] = None,
    max_loss_rise: Annotated[float | None, typer.Option(metavar="NATS", help="Of gates.composition: what the held-out loss may "
                                                        "rise there.")] = None,
    as_json: Json = False,
) -> None:
    """Make one adapter of several of the same base. `tunesmith eval` then measures it against each of them."""
    from tunesmith import verbs

    made = verbs.compose(name, [parsed(one) for one in adapter], how=how, rank=rank, density=density, sign=sign, seed=seed,
                         samples=samples, max_drop=max_drop, max_loss_rise=max_loss_rise, say=say)
    emit(made, as_json, [f"composed {made['run_id']}", f"next: tunesmith eval {made['run_id']}"])


def parsed(given: str) -> tuple[str, float]:
    """`RUN=0.5` as (RUN, 0.5); without a weight 1. Raises UsageError: it is no number."""
    name, equals, weight = given.rpartition("=")
    if not equals:
        return given, 1.0
    try:
        return name, float(weight)
    except ValueError:
        raise UsageError(f"--adapter {given}: {weight!r} is no weight",
                         fix="a number behind the last =, such as RUN=0.5") from None
