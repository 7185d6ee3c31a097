from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.output import Json, emit

Why = Annotated[str, typer.Option(help="Kept in the channel's history.")]


def promote(
    release: Annotated[str, typer.Argument(metavar="RELEASE")],
    to: Annotated[str, typer.Option(metavar="CHANNEL", help="Such as production.")],
    why: Why = "",
    as_json: Json = False,
) -> None:
    """Point a channel at a release."""
    from tunesmith import verbs

    _show(verbs.promote(release, to, why=why), as_json)


def rollback(channel: Annotated[str, typer.Argument(metavar="CHANNEL")], why: Why = "", as_json: Json = False) -> None:
    """Point a channel at the release it pointed at before."""
    from tunesmith import verbs

    _show(verbs.rollback(channel, why=why), as_json)


def _show(moved: dict, as_json: bool) -> None:
    emit(moved, as_json, [f"{moved['channel']} -> {moved['release_id']}  (was {moved['previous'] or 'nothing'})"])
