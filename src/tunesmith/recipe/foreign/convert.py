"""`tunesmith import`: a YAML file of axolotl or LLaMA-Factory becomes a recipe, and an account of every key."""

from __future__ import annotations

from pathlib import Path

from tunesmith.errors import Problem, RecipeError, UsageError
from tunesmith.recipe.foreign import axolotl, llamafactory, shared
from tunesmith.recipe.foreign.ledger import Ledger
from tunesmith.recipe.foreign.read import detect, read
from tunesmith.recipe.foreign.write import write
from tunesmith.recipe.load import parse
from tunesmith.store.files import explain_os_errors

TOOLS = {tool.name: tool for tool in (axolotl.TOOL, llamafactory.TOOL)}


def import_recipe(source: str | Path, *, out: str | Path | None = None, tool: str | None = None) -> dict:
    """Write the recipe of `source` to `out`, or return its text. Paths in it are relative to `out`, else to here.

    Returns:
        `{recipe, source, mapped[{from, to, value, line, note}], unsupported[{key, value, line, where, why, consequence, fix,
        instead}], ignored[{key, value, line, why}], added[{to, value, why}]}`. `recipe` is the path written, or the text.
        Every key of the source is in one of mapped, unsupported and ignored.

    Raises:
        RecipeError: unreadable, of neither tool, not a supervised fine-tuning, or with values that cannot be read.
        UsageError: `out` is there already, or no such tool.
    """
    path = Path(source).expanduser()
    target = _target(out)
    given, lines = read(path)
    chosen = detect(given, TOOLS, path, tool)
    ledger = Ledger(chosen, path, given, lines, target.parent if target else Path.cwd())
    ledger.settle()
    ledger.unsupported.sort(key=lambda item: item["line"] or 0)
    _refuse(ledger)
    shared.judging(ledger)
    text = write(ledger)
    _validate(text, ledger)
    if target:
        with explain_os_errors(target, "write"):
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("x", encoding="utf-8") as opened:
                opened.write(text)
    return {"recipe": str(target) if target else text, "source": chosen.name, "mapped": ledger.mapped,
            "unsupported": ledger.unsupported, "ignored": ledger.ignored, "added": ledger.added}


def _target(out: str | Path | None) -> Path | None:
    if out is None:
        return None
    target = Path(out).expanduser().absolute()
    if target.is_dir():
        target = target / "recipe.yaml"
    if target.exists():
        raise UsageError("the file is there already", where=str(target), fix="give another --out: nothing is overwritten")
    return target


def _refuse(ledger: Ledger) -> None:
    if not ledger.problems:
        return
    problems = sorted(dict.fromkeys(ledger.problems), key=lambda p: int((p.where or ":0").rsplit(":", 1)[1]))
    many = f"{len(problems)} things" if len(problems) > 1 else "one thing"
    raise RecipeError(f"{many} in this {ledger.tool.title} file cannot become a recipe", where=str(ledger.path),
                      problems=problems)


def _validate(text: str, ledger: Ledger) -> None:
    """The recipe must load. A value that it refuses is told by the key of the source that gave it."""
    try:
        text.encode("utf-8")
        parse(text)
    except UnicodeEncodeError as error:
        raise RecipeError("a text in the file is not Unicode", where=str(ledger.path), why=str(error)[:200],
                          fix="correct the \\u escapes in it") from error
    except RecipeError as error:
        origins = {m["to"]: m for m in ledger.mapped}
        for p in error.problems:
            name, _, rest = p.message.partition(": ")
            origin = origins.get(name.split("[")[0])
            ledger.problems.append(Problem(
                code=p.code, fix=p.fix, where=f"{ledger.path}:{origin['line'] if origin else 1}",
                message=f"{origin['from']}: does not fit {name} of a recipe: {rest}" if origin else p.message))
        _refuse(ledger)
        raise
