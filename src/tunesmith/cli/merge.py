from __future__ import annotations

from typing import Annotated, Literal

import typer

from tunesmith.cli.output import Json, emit, say


def merge(made: Annotated[str, typer.Argument(metavar="RELEASE|RUN")],
          directory: Annotated[str, typer.Argument(metavar="DIR", help="A new one.")],
          dtype: Annotated[Literal["float32", "bfloat16", "float16"] | None, typer.Option(
              help="Of the merged weights; that of the base's files if it is left out.")] = None,
          onto: Annotated[Literal["dequantised", "original"] | None, typer.Option(
              help="Of QLoRA: the base that 4 bits made, which was trained on (the default), or the one before.")] = None,
          as_json: Json = False) -> None:
    """Write adapter and base as one model. Exit code 3, and nothing is left, when it does not answer as the adapter does."""
    from tunesmith import verbs

    done = verbs.merge(made, directory, dtype=dtype, onto=onto, say=say)
    lines = [f"{done['verdict']}: {done['message']}",
             f"largest logit difference {done['max_abs_logit_diff']:.2g}, mean KL {done['mean_kl']:.1e} nats a token"]
    emit(done, as_json, [*lines, f"merged model  {done['path']}" if done["path"] else "nothing was written"])
    raise typer.Exit(0 if done["verdict"] == "pass" else 3)
