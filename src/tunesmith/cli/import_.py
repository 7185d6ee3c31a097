from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.output import Json, emit, say


def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A YAML file of axolotl or LLaMA-Factory.")],
    out: Annotated[str | None, typer.Option(help="Where to write the recipe; without it, stdout.")] = None,
    tool: Annotated[str | None, typer.Option("--from", help="axolotl or llamafactory, when the keys do not tell.")] = None,
    as_json: Json = False,
) -> None:
    """Make a recipe of an axolotl or LLaMA-Factory YAML, with a list of what has no equal."""
    from tunesmith import verbs

    made = verbs.import_recipe(file, out=out, tool=tool)
    report = [line for item in made["unsupported"] for line in (
        f"no equal: {item['where']}: {item['key']}: {item['why']}", f"  here: {item['consequence']}", f"  do:   {item['fix']}")]
    report.append(f"{len(made['mapped'])} keys carried over, {len(made['unsupported'])} have no equal, "
                  f"{len(made['ignored'])} change nothing here, {len(made['added'])} defaults written out")
    if as_json or out is None:
        for line in report if not as_json else []:
            say(line)
        emit(made, as_json, [made["recipe"].rstrip("\n")])
        return
    emit(made, False, [*report, f"wrote {made['recipe']}", f"next: tunesmith check {made['recipe']}"])
