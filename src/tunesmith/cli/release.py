from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.output import Json, emit, gate_lines, say
from tunesmith.errors import UsageError


def release(run: Annotated[str, typer.Argument(metavar="RUN")],
            override: Annotated[list[str], typer.Option(metavar="GATE", help="Release though this gate refuses. Repeatable, "
                                                        "each with its --by and --reason.")] = [],  # noqa: B006
            by: Annotated[list[str], typer.Option(metavar="NAME", help="Who answers for the override.")] = [],  # noqa: B006
            reason: Annotated[list[str], typer.Option(metavar="TEXT", help="Why the override is right.")] = [],  # noqa: B006
            sign: Annotated[str | None, typer.Option(metavar="KEY", help="Sign it with this private key; default "
                                                     "TUNESMITH_SIGNING_KEY.")] = None,
            as_json: Json = False) -> None:
    """Judge a run by its gates and, if all pass, bundle it. Exit code 3 when a gate refuses."""
    from tunesmith import verbs

    if not len(override) == len(by) == len(reason):
        raise UsageError("every --override needs its --by and its --reason",
                         why=f"{len(override)} gates, {len(by)} names and {len(reason)} reasons were given",
                         fix="--override GATE --by NAME --reason TEXT, once for each gate")
    released = verbs.release(run, overrides=list(zip(override, by, reason, strict=True)), key=sign, say=say)
    emit(released, as_json, release_lines(released))
    raise typer.Exit(0 if released["verdict"] == "pass" else 3)


def release_lines(released: dict) -> list[str]:
    made, overrides = released["release_id"], released["overrides"]
    by_hand = [f"  overridden  {o['gate']} by {o['by']}: {o['reason']}" for o in overrides]
    do = [f"  do: {g['evidence']['fix']}" for g in released["gates"]
          if g["verdict"] != "pass" and g["name"] not in {o["gate"] for o in overrides}]
    last = f"release {made}  {released['path']}" if made else "refused: nothing was released"
    return [*gate_lines(released["gates"]), *by_hand, *do, last]
