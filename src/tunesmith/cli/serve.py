from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.output import say


def serve(
    channel: Annotated[list[str], typer.Option(help="Serve the release this channel points at. Repeatable.")] = [],  # noqa: B006
    release: Annotated[list[str], typer.Option(help="Serve this release. Repeatable.")] = [],  # noqa: B006
    run: Annotated[list[str], typer.Option(help="Serve a run that is not released, to try it. Repeatable.")] = [],  # noqa: B006
    base: Annotated[str, typer.Option(help="Serve a base alone.")] = "",
    config: Annotated[str, typer.Option(metavar="FILE", help="Aliases, limits, defaults of jobs: docs/serve.md.")] = "",
    workers: Annotated[int | None, typer.Option(min=0, help="Jobs at once; 0: only answer. Default: the config's.")] = None,
    engine: Annotated[str, typer.Option(help="What answers: tunesmith or vllm. Default: the config's, tunesmith.")] = "",
    vllm_url: Annotated[str, typer.Option(metavar="URL", help="A vLLM server that runs; without it one is started.")] = "",
    host: Annotated[str, typer.Option(help="Listen here. Without API keys only on loopback.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8321,
) -> None:
    """Answer, train and evaluate over OpenAI's API: a base, any number of adapters beside it, and jobs that make more."""
    from pathlib import Path

    from tunesmith.api.server import serve as run_server
    from tunesmith.jobs.settings import Settings, read_settings, with_engine

    settings = read_settings(Path(config)) if config else Settings()
    if workers is not None:
        settings = settings.model_copy(update={"workers": workers})
    if engine or vllm_url:
        settings = with_engine(settings, engine, vllm_url)
    run_server(channels=channel, releases=release, base=base or None, host=host, port=port, say=say, runs=run,
               settings=settings)
