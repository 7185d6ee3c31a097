from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.output import Json, emit, say, table

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
def quantised(
    recipe: Recipe,
    steps: Annotated[int, typer.Option(min=1, help="Steps to train.")] = 8,
    as_json: Json = False,
) -> None:
    """QLoRA from training to both merged models: each stage answers as the one before, as far as it should."""
    from tunesmith import verbs

    proof = verbs.verify_quantised(recipe, steps=steps, say=say)
    rows = [[s["stage"], s["against"], f"{s['largest_difference']:.1e}", f"{s['tolerance']:.1e}",
             "yes" if s["same_tokens"] else "no", "ok" if s["ok"] else "DIFFERENT"] for s in proof["stages"]]
    emit(proof, as_json, [*table(["stage", "against", "difference", "allowed", "same tokens", ""], rows),
                          *(f"{s['stage']}: {s['why']}" for s in proof["stages"]),
                          f"{'ok' if proof['ok'] else 'DIFFERENT'}: {proof['message']}"])
    raise typer.Exit(0 if proof["ok"] else 1)


@app.command()
def merge(made: Annotated[str, typer.Argument(metavar="RUN|RELEASE")], as_json: Json = False) -> None:
    """Merged, written and loaded again it answers as the adapter on its base, in every dtype."""
    from tunesmith import verbs

    proof = verbs.verify_merge(made, say=say)
    rows = [[m["dtype"] + (f", {m['onto']}" if m["onto"] else ""), f"{m['ratio']:.2g}", f"{m['max_abs_logit_diff']:.1e}",
             f"{m['mean_kl']:.1e}", f"{m['top1_agreement']:.1%}", f"{m['same_texts']:.0%}",
             "DIFFERENT" if m["broken"] else "ok"] for m in proof["models"]]
    emit(proof, as_json, [*table(["merged into", "times rounding", "largest logit", "KL", "same token", "same text", ""], rows),
                          f"{'ok' if proof['ok'] else 'DIFFERENT'}: {proof['message']}"])
    raise typer.Exit(0 if proof["ok"] else 1)


@app.command()
def release(
    name: Annotated[str, typer.Argument(metavar="RELEASE")],
    key: Annotated[str | None, typer.Option(metavar="PUB", help="It must be signed by this public key; default: one of "
                                                                "TUNESMITH_TRUSTED_KEYS, where that is set.")] = None,
    as_json: Json = False,
) -> None:
    """Every file of a release is as it was released, and its signatures are about it. Says what is different here."""
    from tunesmith import verbs

    proof = verbs.verify_release(name, key=key)
    counts = {None: "", True: "  trusted", False: "  not trusted"}
    lines = [f"{'signed by':>12}  {s['key_id']}{counts[s['trusted']]}" for s in proof["signatures"]]
    lines += [f"{'here':>12}  {proof['here']['message']}"] if proof["here"] else []
    emit(proof, as_json, [*lines, f"{'identical' if proof['trusted'] is not False else 'REFUSED'}: {proof['message']}"])
    raise typer.Exit(1 if proof["trusted"] is False else 0)


@app.command()
def replay(name: Annotated[str, typer.Argument(metavar="RELEASE|CHANNEL")], as_json: Json = False) -> None:
    """A release, restored in a fresh process, gives its golden answers word for word."""
    from tunesmith import verbs
    from tunesmith.cli.channel import drill_lines

    done = verbs.verify_replay(name, say=say)
    emit(done, as_json, drill_lines(done))
    raise typer.Exit(0 if done["identical"] else 1)


def _show(proof: dict, as_json: bool) -> None:
    emit(proof, as_json, [f"{'identical' if proof['identical'] else 'DIFFERENT'}: {proof['message']}"])
    raise typer.Exit(0 if proof["identical"] else 1)
