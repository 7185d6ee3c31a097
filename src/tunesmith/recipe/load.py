"""Read a recipe and report everything that is wrong with it at once, each with its line and the nearest name."""

from __future__ import annotations

import difflib
import re
import typing
from dataclasses import dataclass, replace
from pathlib import Path

from tunesmith.errors import Problem, RecipeError
from tunesmith.recipe.schema import Recipe
from tunesmith.recipe.section import Section


@dataclass(frozen=True, slots=True)
class Loaded:
    """A valid recipe and the file it came from; `folder` is what its paths are relative to."""

    recipe: Recipe
    path: Path

    @property
    def folder(self) -> Path:
        return self.path.parent

    def resolve(self, given: str) -> Path:
        return (self.folder / Path(given).expanduser()).resolve() if given else self.folder


def load(path: str | Path) -> Loaded:
    """Load and validate.

    Raises:
        RecipeError: unreadable, not YAML, or invalid; `problems` has one entry per mistake.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "recipe.yaml"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise RecipeError("no such recipe", where=str(path),
                          fix="give the path of a recipe, or make one with `tunesmith init DIR`") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError("the recipe cannot be read", where=str(path), why=str(error)) from error
    return Loaded(parse(text, str(path)), path.absolute())


def parse(text: str, where: str = "recipe") -> Recipe:
    """Validate recipe text. `where` names it in messages. Raises RecipeError."""
    from pydantic import ValidationError

    value, lines, problems = yaml_with_lines(text, where)
    if not isinstance(value, dict):
        raise RecipeError("a recipe is a mapping of keys to values", where=f"{where}:1",
                          fix="start from `tunesmith init DIR`")
    try:
        recipe = Recipe.model_validate(value)
    except ValidationError as error:
        problems += merge_alternatives([problem_of(e, lines, where) for e in error.errors()])
    if problems:
        problems.sort(key=lambda p: int(p.where.rsplit(":", 1)[1]))
        count = len(problems)
        raise RecipeError(f"the recipe has {count} mistake{'s' if count > 1 else ''}", where=where, problems=problems)
    return recipe


def yaml_with_lines(text: str, where: str) -> tuple[object, dict[tuple, int], list[Problem]]:
    """The plain value, the line of every key path, and a problem for each key given twice."""
    import yaml

    lines: dict[tuple, int] = {}
    problems: list[Problem] = []
    loader = yaml_loader()

    walked: set[int] = set()

    def walk(node, path: tuple) -> None:
        lines.setdefault(path, node.start_mark.line + 1)
        if id(node) in walked:  # an alias: it may contain itself, or be meant a billion times
            return
        walked.add(id(node))
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, child in node.value:
                here = (*path, key.value)
                if key.value in seen:
                    problems.append(Problem(code="duplicate_key", where=f"{where}:{key.start_mark.line + 1}",
                                            message=f"{dotted(here)} is given twice", fix="keep one of them"))
                seen.add(key.value)
                lines[here] = key.start_mark.line + 1
                walk(child, here)
        elif isinstance(node, yaml.SequenceNode):
            for i, child in enumerate(node.value):
                walk(child, (*path, i))

    try:
        node = yaml.compose(text, Loader=loader)
        value = yaml.load(text, Loader=loader)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        # The bare ones: a number of 5,000 digits, `!!bool x`, `!!timestamp x`, [[[[...
        mark = getattr(error, "problem_mark", None)
        raise RecipeError("not valid YAML", where=f"{where}:{mark.line + 1}" if mark else where,
                          why=getattr(error, "problem", None) or str(error),
                          fix="check the indentation and the quotes around this line") from error
    if node is not None:
        walk(node, ())
    return value, lines, problems


def yaml_loader() -> type:
    """YAML 1.1 reads `2e-4` as text and `2026-01-31` as a date. Everybody means the number and the text."""
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
                                   for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()}

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"),
                                 list("-+0123456789"))
    return Loader


def problem_of(error, lines: dict[tuple, int], where: str, root: type[Section] = Recipe) -> Problem:
    """One mistake that pydantic found in a value of `root`, for people; `lines` knows the line of each key path."""
    at = error.get("ctx", {}).get("at")  # a rule over several fields names the one to change
    path = at or tuple(p for p in error["loc"] if not (isinstance(p, str) and _is_union_tag(p)))
    known = path
    while known not in lines and known:
        known = known[:-1]
    place = f"{where}:{lines.get(known, 1)}"
    name = dotted(path) or root.__name__.lower()
    if error["type"] == "unknown_type":  # of a section that is one of several
        given = error["input"].get("type") if isinstance(error["input"], dict) else error["input"]
        near = difflib.get_close_matches(str(given), re.findall(r"'(\w+)'", error["msg"]), n=1, cutoff=0.5)
        return Problem(code="bad_value", where=f"{where}:{lines.get((*path, 'type'), lines.get(known, 1))}",
                       message=f"{name}.type: {error['msg']} (got {given!r})",
                       fix=f"did you mean {near[0]!r}?" if near else None)
    if error["type"] == "extra_forbidden":
        siblings = fields_at(path[:-1], error["loc"], root)
        near = difflib.get_close_matches(str(path[-1]), siblings, n=1, cutoff=0.5)
        fix = f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(siblings)}"
        return Problem(code="unknown_key", where=place, message=f"{name}: no such key", fix=fix)
    if error["type"] == "missing":
        return Problem(code="missing_key", where=place, message=f"{name}: required", fix=f"add `{path[-1]}:`")
    message = error["msg"].removeprefix("Value error, ")
    got = error.get("input")
    if error["type"] == "value_error" and isinstance(got, dict):  # a rule over a section says itself what is wrong
        return Problem(code="bad_value", where=place, message=f"{name}: {message}")
    shown = f" (got {got!r})" if isinstance(got, str | int | float | bool | None) else f" (got a {type(got).__name__})"
    return Problem(code="bad_value", where=place, message=f"{name}: {message}{'' if at or not path else shown}")


def merge_alternatives(problems: list[Problem]) -> list[Problem]:
    """A value that fits no member of a union is one mistake, not one a member; one inside it says more than all of them."""
    merged: dict[tuple, Problem] = {}
    for p in problems:
        name = p.message.split(":")[0]
        if p.code == "bad_value" and any(q.message.startswith((f"{name}.", f"{name}[")) for q in problems):
            continue
        key = (p.where, name, p.code)
        if p.code == "bad_value" and key in merged:
            first, _, got = merged[key].message.partition(" (got ")
            alternative = p.message.split("should be ")[-1].split(" (got ")[0]
            merged[key] = replace(p, message=f"{first} or {alternative} (got {got}")
        else:
            merged[key] = p
    return list(merged.values())


def _is_union_tag(part: str) -> bool:
    """pydantic puts the member of a union it tried into the location; users never wrote that."""
    return part.startswith(("literal[", "list[", "dict[", "method[", "constrained-", "function-", "nullable")) or part in (
        "str", "int", "float", "bool", "none")


def fields_at(path: tuple, tags: tuple = (), root: type[Section] = Recipe) -> list[str]:
    """Keys that the section at a path may have. `tags` says which member of a union it is: `method[qlora]`."""
    def inside(annotation) -> typing.Iterator[type]:
        yield annotation
        for argument in typing.get_args(annotation):
            yield from inside(argument)

    model: type[Section] | None = root
    for part in path:
        if isinstance(part, int):
            continue  # an entry of a list has the fields of the list's type
        annotation = model.model_fields[part].annotation if model and part in model.model_fields else None
        sections = [a for a in inside(annotation) if isinstance(a, type) and issubclass(a, Section)]
        named = [s for s in sections if "type" in s.model_fields and f"{part}[{s.model_fields['type'].default}]" in tags]
        model = next(iter(named or sections), None)
    return list(model.model_fields) if model else []


def dotted(path: tuple) -> str:
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
