from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.output import Json, emit, metric_lines, say


def eval_(name: Annotated[str, typer.Argument(metavar="RUN|RELEASE|RECIPE", help="A recipe means its newest run.")],
          suite: Annotated[list[str], typer.Option(metavar="FILE", help="A suite file beside those of the recipe. "
                                                   "Repeatable.")] = [],  # noqa: B006
          serving: Annotated[bool, typer.Option("--serving", help="Measure the server with this adapter, too.")] = False,
          as_json: Json = False) -> None:
    """Measure base and tuned model on the same held-out rows and suites, and write the report."""
    from tunesmith import verbs

    evaluated = verbs.evaluate(name, suites=suite, serving=serving, say=say)
    emit(evaluated, as_json, eval_lines(evaluated))


def eval_lines(evaluated: dict) -> list[str]:
    """A block for each set, the primary one first; what baselines say; the verdict; what to look at."""
    lines = []
    for name in sorted(evaluated["sets"], key=lambda n: n != evaluated["primary"]):
        part = evaluated["sets"][name]
        kind = "" if part["kind"] == "test" else f"{part['kind']}, "
        what = "rows" if part["kind"] == "test" else "items"
        lines += [f"{name} ({kind}{part['n']} {what})", *(f"  {line}" for line in metric_lines(part["metrics"])), ""]
    lines.append(evaluated["conclusion"])
    lines += [*([evaluated["style"]] if "style" in evaluated else []), *evaluated["baselines"],
              *(compared := evaluated.get("composition", []))]
    if worry := [w for w in evaluated["worry"] if w not in (*evaluated["baselines"], *compared)]:
        lines += ["check these:", *(f"  · {w}" for w in worry)]
    return [*lines, f"report {evaluated['report_path']}"]
