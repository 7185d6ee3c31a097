from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.output import Json, emit, problem_lines, say


def check(recipe: Annotated[str, typer.Argument(metavar="RECIPE")], as_json: Json = False) -> None:
    """Say everything that can be known before step 1: schema, rows, template, mask, leaks, memory and time."""
    from tunesmith import verbs

    checked = verbs.check(recipe, say=say)
    lines = problem_lines(checked["problems"])
    if e := checked["estimate"]:
        lines.append(f"estimate: {e['steps']} steps over {e['tokens']:,} tokens, about {e['seconds'] / 60:.1f} min and "
                     f"{e['peak_memory_bytes'] / 1e9:.1f} GB; {e['trainable_parameters']:,} trainable parameters in "
                     f"{e['matched_layers']} layers, adapter {e['adapter_bytes'] / 1e6:.0f} MB")
    if checked["targets"]:
        shapes = [f"{t['module']} x {t['layers']}, {t['inputs']} to {t['outputs']}: {t['parameters']:,} parameters"
                  for t in checked["targets"]]
        lines += ["adapter: " + shapes[0], *(f"         {shape}" for shape in shapes[1:])]
    if (serving := checked["serving"]) and serving["vllm"]["loads"]:
        lines.append(f"serving: here, and vLLM with --max-lora-rank {serving['vllm']['max_lora_rank']}")
    lines += [f"advice: {line}" for line in checked["advice"]]
    emit(checked, as_json, [*lines, "ready to train" if checked["ok"] else "not ready: mend the errors above"])
    raise typer.Exit(0 if checked["ok"] else 2)
