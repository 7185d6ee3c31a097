from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.output import Json, emit, metric_lines, say


def eval_(name: Annotated[str, typer.Argument(metavar="RUN|RELEASE|RECIPE", help="A recipe means its newest run.")],
          as_json: Json = False) -> None:
    """Measure base and tuned model on the same held-out rows, and write the report."""
    from tunesmith import verbs

    evaluated = verbs.evaluate(name, say=say)
    emit(evaluated, as_json, eval_lines(evaluated))


def eval_lines(evaluated: dict) -> list[str]:
    lines = []
    for name, part in evaluated["sets"].items():
        lines += [f"{name} ({part['n']} rows)", *(f"  {line}" for line in metric_lines(part["metrics"])), ""]
    lines += [evaluated["conclusion"], *([evaluated["style"]] if "style" in evaluated else [])]
    if evaluated["worry"]:
        lines += ["check these:", *(f"  · {w}" for w in evaluated["worry"])]
    return [*lines, f"report {evaluated['report_path']}"]
