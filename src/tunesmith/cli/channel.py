from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.output import Json, emit, say

Why = Annotated[str, typer.Option(help="Kept in the channel's history.")]
By = Annotated[str | None, typer.Option(metavar="NAME", help="Who answers for it; default: the user of this process.")]
Expect = Annotated[str | None, typer.Option(metavar="RELEASE", help="Move only if the channel points at this release, or at "
                                                                     "`nothing`.")]


def promote(
    release: Annotated[str, typer.Argument(metavar="RELEASE")],
    to: Annotated[str, typer.Option(metavar="CHANNEL", help="Such as production.")],
    why: Why = "",
    by: By = None,
    expect: Expect = None,
    as_json: Json = False,
) -> None:
    """Point a channel at a release."""
    from tunesmith import verbs

    _show(verbs.promote(release, to, why=why, by=by, expect=expect, say=say), as_json)


def rollback(
    channel: Annotated[str, typer.Argument(metavar="CHANNEL")],
    drill: Annotated[bool, typer.Option("--drill", help="Rehearse it: restore that release in a fresh process and compare its "
                                                       "answers. The channel stays where it is. Exit code 1 when they "
                                                       "differ.")] = False,
    why: Why = "",
    by: By = None,
    expect: Expect = None,
    as_json: Json = False,
) -> None:
    """Point a channel at the release it pointed at before."""
    from tunesmith import verbs

    if not drill:
        _show(verbs.rollback(channel, why=why, by=by, expect=expect, say=say), as_json)
        return
    done = verbs.rollback(channel, why=why, drill=True, say=say)
    emit(done, as_json, drill_lines(done))
    raise typer.Exit(0 if done["identical"] else 1)


def drill_lines(done: dict) -> list[str]:
    """Every question whose answer is another, and the verdict."""
    lines = []
    for one in done["checked"]:
        if not one["identical"]:
            lines += [f"otherwise  {one['question']!r}", f"  released: {one['expected']!r}", f"  now:      {one['said']!r}"]
    return [*lines, f"{'identical' if done['identical'] else 'DIFFERENT'}: {done['message']}"]


def _show(moved: dict, as_json: bool) -> None:
    emit(moved, as_json, [f"{moved['channel']} -> {moved['release_id']}  (was {moved['previous'] or 'nothing'})"])
