from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.output import Json, emit, problem_lines, say

app = typer.Typer(help="Prepare, audit and look at the data of a recipe.", no_args_is_help=True, rich_markup_mode=None)
Recipe = Annotated[str, typer.Argument(metavar="RECIPE")]


@app.command()
def prepare(recipe: Recipe, as_json: Json = False) -> None:
    """Make the dataset: read, normalise, audit, split, render."""
    from tunesmith import verbs

    made = verbs.prepare(recipe, say=say)
    emit(made, as_json, [f"{made['dataset_id']}  {made['path']}"] + [f"  {k}: {v:,}" for k, v in made["counts"].items()])


@app.command()
def audit(recipe: Recipe, as_json: Json = False) -> None:
    """Findings: duplicates, contradictions, leaks into the test sets, rows that do not fit."""
    from tunesmith import verbs
    from tunesmith.data import diversity

    made = verbs.audit(recipe, say=say)
    lines = []
    for f in made["findings"]:
        lines += [f"{f['severity']}: {f['message']}", *(f"    {e}" for e in f["examples"]), f"  do: {f['fix']}"]
    emit(made, as_json, [*(lines or ["no findings"]), *_filter_lines(made["filters"]),
                         *diversity.lines(made["diversity"]), f"card  {made['card']}"])


def _filter_lines(effects: list[dict]) -> list[str]:
    """A table of what each filter drops, and what those that the recipe does not choose would drop."""
    if not effects:
        return []
    lines = [f"{'filter':<24}{'alone':>8}{'in order':>10}"]
    for e in effects:
        row = f"{e['name']:<24}{e['alone']:>8,}"
        lines.append(f"{row}{e['in_order']:>10,}  dropped, of {e['rows']:,} rows: {e['characters']:,} characters" if e["chosen"]
                     else f"{row}{'-':>10}  would drop {e['alone']:,} of {e['rows']:,} rows")
    return lines


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A dataset id or a recipe.")],
    b: Annotated[str, typer.Argument(metavar="B")],
    as_json: Json = False,
) -> None:
    """What changed between two datasets: inputs, settings, and rows by content."""
    from tunesmith import verbs

    found = verbs.diff_data(a, b, say=say)
    lines = [f"{found['a']} -> {found['b']}" + ("  identical" if found["identical"] else "")]
    lines += [f"  {key}: {_short(old)} -> {_short(new)}" for key, (old, new) in {**found["inputs"], **found["counts"]}.items()]
    for name, part in found["parts"].items():
        old, new = part["rows"]
        lines.append(f"{name}: {old:,} -> {new:,} rows; {part['added']:,} added, {part['removed']:,} removed, "
                     f"{part['changed']:,} changed")
        lines += [f"    {example}" for example in part["examples"]]
    emit(found, as_json, lines)


def _short(value) -> str:
    text = str(value)
    return text if len(text) <= 48 else text[:45] + "..."


@app.command()
def show(
    recipe: Recipe,
    part: Annotated[str, typer.Option(help="train, or the name of a test set.")] = "train",
    first: Annotated[int, typer.Option(min=0, help="Number of the first row.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="How many rows.")] = 3,
    ids: Annotated[bool, typer.Option("--ids", help="Show token ids.")] = False,
    as_json: Json = False,
) -> None:
    """Rows as the model sees them: who says what, and which tokens are trained (bold; between ⟦ and ⟧ without colour)."""
    from tunesmith import verbs
    from tunesmith.cli.rows import row_lines

    shown = verbs.show_rows(recipe, part=part, first=first, count=count, say=say)
    emit(shown, as_json, [line for row in shown["rows"] for line in row_lines(row, ids)])


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="File, glob, directory, or hf:owner/name[@revision][:split].")],
    target: Annotated[str, typer.Argument(metavar="OUT", help="A new .jsonl file; .gz or .zst may follow.")],
    to: Annotated[str, typer.Option(metavar="FORMAT", help="openai, prompt_completion, alpaca, sharegpt, openai_preference, "
                                    "chosen_rejected or kto.")],
    as_json: Json = False,
) -> None:
    """Write rows in another format. Rows that it cannot say are listed, left out, and make the exit code 2."""
    from tunesmith import verbs

    done = verbs.convert_data(source, target, to)
    lines = [*problem_lines(done["lossy"]), *done["notes"], f"{done['rows']:,} of {done['rows_read']:,} rows: {done['path']}"]
    emit(done, as_json, lines)
    raise typer.Exit(2 if done["lossy"] else 0)


@app.command()
def curate(
    recipe: Recipe,
    out: Annotated[str, typer.Option(metavar="DIR", help="A new directory.")],
    rows: Annotated[int | None, typer.Option(min=1, help="How many to propose, for their diversity. Default: all that are not "
                                             "suspect.")] = None,
    folds: Annotated[int, typer.Option(min=2, max=10, help="Parts, each judged by an adapter of the others.")] = 2,
    as_json: Json = False,
) -> None:
    """Propose a smaller, cleaner set: rows that contradict the others are suspected, each with its line."""
    from tunesmith import verbs

    made = verbs.curate_data(recipe, out, rows=rows, folds=folds, say=say)
    lines = [f"suspect: {w['where']}  {w['reason']}" for w in made["worst"]]
    if made["suspects"] > len(made["worst"]):
        lines.append(f"and {made['suspects'] - len(made['worst']):,} more: see scores.jsonl")
    lines += [made["why"], *filter(None, [made["warning"]]), f"page  {made['page']}", f"next: tunesmith run {made['recipe']}",
              f"{made['rows']:,} rows: {made['suspects']:,} suspect, {made['proposed']:,} proposed"]
    emit(made, as_json, lines)
