"""Read a YAML file of another tool, with its lines, and say which tool wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.errors import RecipeError, UsageError
from tunesmith.recipe.foreign.rules import Tool
from tunesmith.recipe.load import yaml_with_lines

MOST_BYTES = 4_000_000


def read(path: Path) -> tuple[dict[str, Any], dict[tuple, int]]:
    """`(values, line of every key path)`. Keys that are not text become text.

    Raises:
        RecipeError: unreadable, not YAML, empty, not a mapping, or a key given twice.
    """
    where = str(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise RecipeError("the file is too large to be a configuration", where=where,
                              why=f"{path.stat().st_size:,} bytes", fix="give the YAML that the training was started with")
        content = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise RecipeError("no such file", where=where, fix="give the path of an axolotl or LLaMA-Factory YAML") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError("the file cannot be read", where=where, why=str(error),
                          fix="give a YAML file in UTF-8 that you may read") from error
    value, lines, problems = yaml_with_lines(content, where)
    if value is None:
        raise RecipeError("the file is empty", where=where, fix="give the YAML that the training was started with")
    if not isinstance(value, dict):
        kind = "a list" if isinstance(value, list) else "one value"
        raise RecipeError(f"the file is {kind}, not a mapping of keys to values", where=f"{where}:1",
                          fix="give the YAML that the training was started with")
    if problems:
        raise RecipeError("keys are given twice", where=where, why="the other tool would silently take the last of them",
                          problems=problems)
    return {_text(k): v for k, v in value.items()}, lines


def _text(key: Any) -> str:
    return f"{key:#x}"[:100] if isinstance(key, int) and abs(key) >= 2**63 else str(key)[:1000]


def detect(given: dict[str, Any], tools: dict[str, Tool], path: Path, named: str | None) -> Tool:
    """The tool of the file: as named, else the one that more of its keys belong to alone.

    Raises:
        UsageError: an unknown name was given.
        RecipeError: the keys belong to neither, or as much to one as to the other.
    """
    if named is not None:
        if named not in tools:
            raise UsageError(f"no tool {named!r}", fix=f"--from {' or '.join(tools)}")
        return tools[named]
    known = {name: set(tool.rules()) for name, tool in tools.items()}
    alone = {name: len(tool.signs & given.keys()) for name, tool in tools.items()}
    score = {name: (alone[name], len(known[name] & given.keys())) for name in tools}
    first, second = sorted(tools, key=lambda n: score[n], reverse=True)
    if {"base", "data"} <= given.keys():
        raise RecipeError("this is a recipe already", where=str(path), fix=f"tunesmith check {path}")
    if {"model", "train_dataset"} <= given.keys():
        raise RecipeError("this is a file of LLaMA-Factory's version 1, whose keys are others", where=str(path),
                          fix="import a file with model_name_or_path and dataset, or write a recipe: `tunesmith init DIR`")
    if score[first] == score[second] or not alone[first]:
        none = not any(s for pair in score.values() for s in pair)
        some = "', '".join([str(k)[:40] for k in given][:5])
        raise RecipeError("neither an axolotl nor a LLaMA-Factory file" if none else "not clear which tool this file is of",
                          where=str(path), why=f"its keys: '{some}'",
                          fix="give the YAML that the training was started with" if none else
                          f"say which: --from {' or '.join(tools)}")
    return tools[first]
