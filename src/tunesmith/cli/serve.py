from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.output import say


def serve(
    channel: Annotated[list[str], typer.Option(help="Serve the release this channel points at. Repeatable.")] = [],  # noqa: B006
    release: Annotated[list[str], typer.Option(help="Serve this release. Repeatable.")] = [],  # noqa: B006
    run: Annotated[list[str], typer.Option(help="Serve a run that is not released, to try it. Repeatable.")] = [],  # noqa: B006
    base: Annotated[str, typer.Option(help="Serve a base alone.")] = "",
    host: Annotated[str, typer.Option(help="Listen here. There is no authentication: keep it on loopback.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8321,
) -> None:
    """Serve a base and any number of adapters beside it over an OpenAI-compatible API."""
    from tunesmith.api.server import serve as run_server

    run_server(channels=channel, releases=release, base=base or None, host=host, port=port, say=say, runs=run)
