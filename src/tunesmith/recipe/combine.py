"""Every combination of some values for some keys of a recipe.

    combine("recipe.yaml", ["method.rank=4,8", "train.learning_rate=1e-4,2e-4"])     four recipes

Values are written as in the recipe, between commas: `[q_proj, v_proj],all-linear` are two, and so are
`{type: ia3},{type: lora, rank: 4}` for `method`. Each combination is validated as a recipe of its own.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from tunesmith.errors import RecipeError, UsageError
from tunesmith.recipe.load import Loaded, load, parse, yaml_loader, yaml_with_lines
from tunesmith.recipe.schema import Recipe

MOST = 64
"""Combinations of one sweep."""
NOT_TRAINED = {"eval": "all combinations are measured in the same way", "gates": "a gate judges one release",
               "track": "it says where runs are listed", "name": "it is what all runs of the sweep are called"}
"""Keys that change nothing of what is trained, and why they cannot be swept."""


@dataclass(frozen=True, slots=True)
class Combination:
    values: dict[str, Any]
    """What differs, by dotted key, in the order given."""
    recipe: Recipe
    said: dict[str, Any]
    """The keys of the recipe's file with these values in them; paths are as they were written."""

    @property
    def label(self) -> str:
        return ", ".join(f"{key}={shown(value)}" for key, value in self.values.items())


def shown(value: Any) -> str:
    """A value as a person would write it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {shown(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(shown, value)) + "]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def combine(path: str | Path, given: list[str]) -> tuple[Loaded, list[Combination]]:
    """The recipe itself, and every combination of `KEY=V1,V2,...`; the last key varies fastest.

    Raises:
        UsageError: nothing to compare, more than MOST, a key that is not trained, a value twice, or no `KEY=VALUES`.
        RecipeError: the recipe, or one of its combinations, is not valid: an unknown key, a value that does not fit.
    """
    loaded = load(path)
    axes = _axes(given)
    count = 1
    for values in axes.values():
        count *= len(values)
    if count < 2:
        raise UsageError("there is one combination, and nothing to compare it with" if axes else "nothing is varied",
                         fix="give two values or more: --set method.rank=4,8,16")
    if count > MOST:
        raise UsageError(f"{count} combinations are too many", why=f"each is a training of its own; {MOST} are the most",
                         fix="take fewer values, or one key after the other")
    value, _lines, _problems = yaml_with_lines(loaded.path.read_text(encoding="utf-8-sig"), str(loaded.path))
    made: list[Combination] = []
    for chosen in product(*axes.values()):
        values = dict(zip(axes, chosen, strict=True))
        said = copy.deepcopy(value)
        for key, one in values.items():
            _put(said, key, one)
        one = Combination(values, _validated(said, values), said)
        if twin := next((m for m in made if m.recipe == one.recipe), None):
            raise UsageError(f"two combinations are the same: {twin.label} and {one.label}", fix="give each value once")
        made.append(one)
    return loaded, made


def _axes(given: list[str]) -> dict[str, list]:
    axes: dict[str, list] = {}
    for text in given:
        key, equals, values = text.partition("=")
        key = key.strip()
        if not (key and equals and values.strip()):
            raise UsageError(f"--set {text!r} is not KEY=VALUE,VALUE", fix="for example --set method.rank=4,8,16")
        if why := NOT_TRAINED.get(key.split(".")[0]):
            raise UsageError(f"--set {key}: it changes nothing of what is trained", why=why,
                             fix="set it in the recipe, or vary another key")
        if key in axes:
            raise UsageError(f"--set {key} is given twice", fix=f"give all values at once: --set {key}=A,B")
        axes[key] = _values(key, values)
    return axes


def _values(key: str, text: str) -> list:
    import yaml

    try:
        return yaml.load(f"[{text}]", Loader=yaml_loader())
    except yaml.YAMLError as error:
        raise UsageError(f"--set {key}: {text!r} is no list of values", why=getattr(error, "problem", None) or str(error),
                         fix="put commas between values, and quotes or brackets around what has commas inside") from error


def _put(said: dict, key: str, value: Any) -> None:
    *way, last = key.split(".")
    section = said
    for part in way:
        inner = section.get(part)
        if inner is None:
            inner = section[part] = {}
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {key}: no such key", why=f"{part} is {shown(inner)} in the recipe, which has no keys",
                              fix=f"vary {part} as a whole")
        section = inner
    section[last] = value


def _validated(said: dict, values: dict) -> Recipe:
    import yaml

    try:
        return parse(yaml.safe_dump(said, sort_keys=False, allow_unicode=True))
    except RecipeError as error:
        label = ", ".join(f"{key}={shown(value)}" for key, value in values.items())
        raise RecipeError(f"--set {label} makes no valid recipe", why=error.why, fix=error.fix,
                          problems=[replace(p, where=None) for p in error.problems]) from error
