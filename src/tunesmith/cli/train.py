from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.output import Json, emit, say


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE")],
    resume: Annotated[str, typer.Option(metavar="RUN", help="Go on with this run from its newest checkpoint.")] = "",
    extend_epochs: Annotated[int, typer.Option(metavar="N", min=0, help="With --resume: add N epochs to the run's total.")] = 0,
    as_json: Json = False,
) -> None:
    """Train a recipe. Ctrl-C writes a checkpoint and stops."""
    from tunesmith import verbs

    trained = verbs.train(recipe, resume=resume or None, extend_epochs=extend_epochs, say=say)
    emit(trained, as_json, train_lines(trained, recipe))
    raise typer.Exit(0 if trained["status"] == "finished" else 130)


def train_lines(trained: dict, recipe: str) -> list[str]:
    if trained["status"] != "finished":
        return [f"stopped after step {trained['steps']} of {trained['total_steps']}",
                f"go on: tunesmith train {recipe} --resume {trained['run_id']}"]
    held_out = "" if trained["eval_loss"] is None else f", held-out loss {trained['eval_loss']:.4f}"
    return [f"run {trained['run_id']}: {trained['steps']} steps, loss {trained['train_loss']:.4f}{held_out}",
            f"{trained['tokens_per_second']:.0f} tokens/s, peak {trained['peak_memory_bytes'] / 1e9:.1f} GB",
            f"adapter {trained['adapter_dir']}"]
