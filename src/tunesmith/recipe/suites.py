"""Suite files: questions of the user's own, how they are judged, and every mistake in them at once with its line.

    name: capitals                      what the report calls it
    metrics: [exact_match]
    source: written for this project    and `licence`, for readers
    system: Answer with one word.       before every item that has no system message
    items:                              here, or `items: capitals.jsonl`, one object of the same keys a line
      - prompt: What is the capital of Peru?
        reference: Lima
        tags: [america]

docs/evaluate.md shows one of each kind. What a file says is checked here; whether its metrics can be computed on its items is
the metrics' to say (`evals.compare.measurable`).
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from tunesmith.errors import Problem, RecipeError
from tunesmith.recipe.evaluation import MetricName
from tunesmith.recipe.load import Loaded, merge_alternatives, problem_of, yaml_with_lines
from tunesmith.recipe.section import Section

Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
SHOWN_PROBLEMS = 20


class ItemMessage(Section):
    role: Literal["system", "user", "assistant"]
    content: str


class Item(Section):
    """One question. What else it needs is said by the suite's metrics."""

    id: Text | None = None
    """What reports call it, unique in its suite; null: its file and line."""
    prompt: Text | None = None
    """What a user asks. `messages` for a longer conversation."""
    messages: Annotated[list[ItemMessage], Field(min_length=1)] | None = None
    """Everything before the answer; the last is a user's."""
    reference: Text | None = None
    """The right answer; `references` if there are several."""
    references: Annotated[list[Text], Field(min_length=1)] | None = None
    """Right answers: an answer scores by the best of them, readers are shown the first."""
    choices: Annotated[list[Text], Field(min_length=2)] | None = None
    """Multiple choice: the answers that are compared."""
    correct: Text | int | None = None
    """Which of `choices` is right: its text, or its number, the first being 0."""
    regex: str | None = None
    """Pattern that a right answer contains (syntax of the package `regex`, which knows Python's)."""
    json_schema: dict[str, Any] | None = None
    """JSON Schema that a right answer fits."""
    tags: list[Text] = []
    """Categories; each is reported by itself."""
    source: str = ""
    """Where the question is from, if not where the suite's are."""

    @field_validator("regex")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        import regex

        try:
            regex.compile(pattern or "")
        except (regex.error, RecursionError, OverflowError) as error:
            raise ValueError(f"not a pattern: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _whole(self):
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give prompt, or messages" + (": not both" if self.prompt else ""))
        if self.reference is not None and self.references is not None:
            raise ValueError("give reference, or references: not both")
        if self.messages and self.messages[-1].role != "user":
            raise ValueError("the last message is not a user's: the answer is what the model gives")
        if (self.choices is None) != (self.correct is None):
            raise ValueError("choices and correct go together")
        if self.choices:
            if len(set(self.choices)) < len(self.choices):
                raise ValueError("two of the choices are the same")
            if self.answer not in self.choices:
                raise ValueError(f"correct is none of the {len(self.choices)} choices (their text, or a number from 0)")
        return self

    @property
    def answer(self) -> str | None:
        """The right choice, as text; None when there is none."""
        if isinstance(self.correct, str):
            return self.correct
        return self.choices[self.correct] if self.choices and 0 <= self.correct < len(self.choices) else None


class Suite(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
    """What the report calls it: letters, digits, - and _; no other suite and no test set has the name."""
    kind: Literal["suite", "regression", "safety"] = "suite"
    """Who reads it: `suite` is reported, the regression and the safety gate read the others."""
    metrics: Annotated[list[MetricName], Field(min_length=1)]
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longest answer, in tokens; null: eval.max_new_tokens."""
    source: str = ""
    """Where the items are from."""
    licence: str = ""
    """Under which licence they may be used."""
    system: Text | None = None
    """System message of every item that has none."""
    items: Annotated[list[Item], Field(min_length=1)]
    """The items, or the path of a .jsonl file with one a line, relative to this file."""


@dataclass(frozen=True, slots=True)
class LoadedSuite:
    """A valid suite, where it is, and where each of its items is."""

    suite: Suite
    name: str
    """The file's path as messages write it, relative to the recipe."""
    files: list[Path]
    """The suite's file, and that of its items."""
    where: list[str]
    """`file:line` of each item."""

    @property
    def held_out(self) -> str:
        """What leak findings call it: no test set has a name with a dot or slash."""
        return self.name if "." in self.name or "/" in self.name else f"./{self.name}"


def load_suites(loaded: Loaded) -> list[LoadedSuite]:
    """The suite files that a recipe names.

    Raises:
        RecipeError: one of them is missing or wrong; `problems` has an entry for each mistake in all of them.
    """
    problems: list[Problem] = []
    found = [suite for path in _files(loaded, problems) if (suite := _load(path, loaded.folder, problems))]
    named: dict[str, str] = {}
    for one in found:
        first = named.setdefault(one.suite.name, one.name)
        if first != one.name:
            problems.append(Problem(code="duplicate_name", where=f"{one.name}:1", fix="rename one of them",
                                    message=f"name: {one.suite.name!r} is also the name of {first}"))
    if problems:
        count = len(problems)
        more = f" (the first {SHOWN_PROBLEMS} are shown)" * (count > SHOWN_PROBLEMS)
        raise RecipeError(f"eval.suites: {count} mistake{'s' * (count > 1)}{more}", where=str(loaded.path),
                          problems=problems[:SHOWN_PROBLEMS])
    return found


def _files(loaded: Loaded, problems: list[Problem]) -> list[Path]:
    files: dict[Path, None] = {}
    for pattern in loaded.recipe.eval.suites:
        name = str(Path(pattern).expanduser())
        found = [loaded.folder / name] if (loaded.folder / name).is_file() else [
            loaded.folder / p for p in sorted(glob.glob(name, root_dir=loaded.folder, recursive=True))]
        files |= dict.fromkeys(p for p in found if p.is_file())
        if not any(p.is_file() for p in found):
            problems.append(Problem(code="missing_file", where=str(loaded.path), message=f"no suite file {pattern!r}",
                                    fix="paths in a recipe are relative to the recipe"))
    return list(files)


def _load(path: Path, folder: Path, problems: list[Problem]) -> LoadedSuite | None:
    """Adds what is wrong to `problems`; None if anything is."""
    name = _shown(path, folder)
    text = _read(path, name, problems)
    if text is None:
        return None
    try:
        value, lines, mistakes = yaml_with_lines(text, name)
    except RecipeError as error:
        problems.append(Problem(code="not_yaml", where=error.where, message=f"not valid YAML: {error.why}", fix=error.fix))
        return None
    if not isinstance(value, dict):
        problems.append(Problem(code="not_a_suite", where=f"{name}:1",
                                message="a suite is a mapping with name, metrics and items"))
        return None
    files, given = [path], value.get("items")
    where = [f"{name}:{lines.get(('items', i), 1)}" for i in range(len(given) if isinstance(given, list) else 0)]
    if isinstance(given, str):
        files.append(path.parent / Path(given).expanduser())
        records = list(_records(files[1], _shown(files[1], folder), f"{name}:{lines.get(('items',), 1)}", mistakes))
        for at, record in records:
            mistakes += _mistakes(Item, record, {(): int(at.rsplit(":", 1)[1])}, at.rsplit(":", 1)[0])
        where = [at for at, _ in records]
        # Mistakes in items are told with their own lines: the rest is looked at with an item that is well.
        value = value | {"items": [{"prompt": "-"}] if mistakes else [record for _, record in records]}
    mistakes += _mistakes(Suite, value, lines, name)
    if not mistakes:
        suite = Suite.model_validate(value)
        mistakes += _twice(suite, where)
        if not mistakes:
            return LoadedSuite(suite, name, files, where)
    problems += sorted(mistakes, key=_place)
    return None


def _twice(suite: Suite, where: list[str]) -> Iterator[Problem]:
    first: dict[str, str] = {}
    for at, item in zip(where, suite.items, strict=True):
        if item.id and first.setdefault(item.id, at) != at:
            yield Problem(code="duplicate_id", where=at, message=f"id {item.id!r} is also that of {first[item.id]}",
                          fix="rename one of them")


def _mistakes(model: type[Section], value: Any, lines: dict[tuple, int], where: str) -> list[Problem]:
    try:
        model.model_validate(value)
    except ValidationError as error:
        return merge_alternatives([_quoted(problem_of(e, lines, where, model), e) for e in error.errors()])
    return []


def _quoted(problem: Problem, error: Any) -> Problem:
    """`reference: 42` and `reference: yes` are a number and a truth value to YAML; text was meant."""
    got = error.get("input")
    if error["type"] == "string_type" and isinstance(got, bool | int | float):
        return Problem(code=problem.code, where=problem.where, message=problem.message, fix="put it in quotes, to make it text")
    return problem


def _records(path: Path, name: str, asked: str, problems: list[Problem]) -> Iterator[tuple[str, Any]]:
    """(file:line, value) of each line that is JSON."""
    if not path.is_file() or path.suffix != ".jsonl":
        problems.append(Problem(code="missing_file", where=asked, message=f"items: {name!r} " + (
            "is not a .jsonl file" if path.is_file() else "does not exist"), fix="paths in a suite are relative to the suite"))
        return
    text = _read(path, name, problems)
    if text is not None and not text.strip():
        problems.append(Problem(code="empty", where=f"{name}:1", message="the file has no items"))
    for number, line in enumerate((text or "").split("\n"), 1):
        if not line.strip():
            continue
        at = f"{name}:{number}"
        try:
            yield at, json.loads(line, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            problems.append(Problem(code="malformed_json", where=at, message=f"not JSON: {error}",
                                    fix="one complete JSON object a line"))


def _once(pairs: list[tuple[str, Any]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [k for k, _ in pairs]
        raise ValueError(f"{next(k for k in keys if keys.count(k) > 1)!r} is given twice")
    return found


def _read(path: Path, name: str, problems: list[Problem]) -> str | None:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(Problem(code="unreadable", where=name, message=f"cannot be read: {error}"))
        return None


def _shown(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def _place(problem: Problem) -> tuple[str, int]:
    file, _, line = (problem.where or "").rpartition(":")
    return (file, int(line)) if line.isdigit() else (problem.where or "", 0)
