"""Leave out training rows that the recipe's filter names, and show what each filter takes: the rows, and from whom.

    filter             alone   in order
    html_residue          12         12      alone: rows with the fault, whatever the other filters do
    truncated_answer       9          7      in order: what it drops of the rows that those before it left
    near_duplicate        31         30

Rows in = rows kept + the sum of `in order`. A filter acts on what the audit found, row by row, and only on a finding that
was raised: an answer without a full stop is no fault where most end so. Filters that the recipe does not choose are shown with
what they would take. Only training rows are filtered. Held-out rows stay as they are, because a score must be of the rows that
the model will meet, and because a filter that also chose its own test could not be compared with no filter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, get_args

from tunesmith.data import bias, quality
from tunesmith.data.audit import Audit, quarrels
from tunesmith.data.evidence import evidence
from tunesmith.data.finding import EXAMPLES, Finding
from tunesmith.data.quality.evidence import last_answer, point
from tunesmith.data.quality.facts import NOT_AN_ANSWER
from tunesmith.data.quality.language import alike, known_languages
from tunesmith.data.rows import Row
from tunesmith.data.similar import Index
from tunesmith.errors import DataError
from tunesmith.recipe.schema import Fault, Filter

if TYPE_CHECKING:
    import numpy as np

LANGUAGES, SHORTEST, LONGEST = "languages", "min_answer_characters", "max_answer_characters"
QUARREL, NEAR = "contradiction", "near_duplicate"
Example = Callable[[str, int], str]
"""From a filter and the number of a row that it takes to the text that makes it take the row."""


@dataclass(frozen=True, slots=True)
class Effect:
    """What one filter takes, or would take."""

    name: str
    chosen: bool
    rows: int
    """That it was asked about: all training rows before the filter when it is chosen, those trained on when it is not."""
    alone: int
    """Rows it drops, or would drop, if it were the only filter."""
    in_order: int
    """Rows it drops of those that the filters before it left; 0 when it is not chosen."""
    characters: int
    """Of all turns of the rows it drops in order, or would drop."""
    examples: list[str]
    """The first of those rows, each with the text that makes it one."""

    def as_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Filtered:
    kept: Sequence[int]
    """Numbers of the rows that stay, in order."""
    effects: list[Effect]
    """Of the chosen filters, in the order in which they act."""
    findings: list[Finding]


def chosen(config: Filter) -> list[str]:
    """Names of the filters that the recipe chooses, in the order in which they act."""
    single = [name for name in config.drop if name not in (QUARREL, NEAR)]
    bounds = {LANGUAGES: config.languages, SHORTEST: config.min_answer_characters, LONGEST: config.max_answer_characters}
    return [*single, *(name for name, value in bounds.items() if value), *(n for n in (QUARREL, NEAR) if n in config.drop)]


def filtered(rows: Sequence[Row], config: Filter, near: float | None) -> Filtered:
    """The rows that stay, what each chosen filter took, and from whom. `near` is the similarity of near-duplicates.

    One survey of the rows, and a search for near-duplicates if they are dropped; one byte is kept for each row and filter.

    Raises:
        DataError: no row would stay, or a language is named that cannot be recognised.
    """
    import numpy as np

    names = chosen(config)
    if not names:
        return Filtered(range(len(rows)), [], [])
    _check_languages(config.languages)
    survey = quality.survey(rows)
    raised, counted = _faults(survey)
    disputed = quarrels(rows) if QUARREL in names else []
    groups = Index(rows, near).groups() if NEAR in names and near is not None else []
    alone = {name: np.zeros(len(rows), bool) for name in names}
    alone |= {name: marks for name, marks in raised.items() if name in alone} | _bounds(survey, config)
    left, taken = np.ones(len(rows), bool), {}
    alone |= {name: marks for name, marks in _of_groups(left, disputed, groups).items() if name in alone}
    for name in names:
        taken[name] = _of_groups(left, disputed, groups)[name] if name in (QUARREL, NEAR) else alone[name] & left
        left &= ~taken[name]
    example = _examples(rows, survey, disputed, groups, left)
    effects = [_effect(name, alone[name], drop, survey, example) for name, drop in taken.items()]
    if not left.any():
        raise DataError(f"data.filter drops all {len(rows)} training rows", where="data.filter",
                        why=", ".join(f"{e.name} {e.in_order:,}" for e in effects if e.in_order),
                        fix="take out the filter that drops the most, or mend the rows: `tunesmith data audit` of the recipe "
                        "without data.filter shows them")
    findings = [_finding(effect, int(counted.get(effect.name, alone[effect.name]).sum())) for effect in effects]
    unfair = bias.losses({name: marks for name, marks in alone.items() if marks.any()}, survey.facts,
                         set(survey.statistics.labels))
    return Filtered(np.flatnonzero(left), effects, findings + bias.bias_findings(unfair))


def would_drop(rows: Sequence[Row], survey: quality.Survey, audit: Audit, config: Filter) -> list[Effect]:
    """What the filters that the recipe does not choose would take of the rows to be trained on. Nothing is read again."""
    import numpy as np

    marks = _faults(survey)[0] | _of_groups(np.ones(len(rows), bool), audit.quarrels, audit.groups)
    example = _examples(rows, survey, audit.quarrels, audit.groups, None)
    return [_effect(name, marks[name], None, survey, example) for name in get_args(Fault)
            if name not in chosen(config) and name in marks and marks[name].any()]


# ---- which rows


def _faults(survey: quality.Survey) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """For each row whether it has the fault, by family of codes: of findings that were raised, and of all that was counted."""
    import numpy as np

    names = {finding.code for finding in survey.findings}
    raised: dict[str, np.ndarray] = {}
    counted: dict[str, np.ndarray] = {}
    for code in survey.verdicts.codes():
        marks, family = np.frombuffer(survey.verdicts.marks(code), bool), code.split(":")[0]
        for found in (raised, counted) if code in names else (counted,):
            found[family] = found[family] | marks if family in found else marks
    return raised, counted


def _bounds(survey: quality.Survey, config: Filter) -> dict[str, np.ndarray]:
    import numpy as np

    facts, found = survey.facts, {}
    lengths = np.frombuffer(facts.answers, np.int32)
    if config.languages:
        others = [number for language, number in facts.languages.numbers.items()
                  if not any(alike(language, wanted) for wanted in config.languages)]
        found[LANGUAGES] = np.isin(np.frombuffer(facts.languages.of, np.uint16), others)
    if config.min_answer_characters:
        found[SHORTEST] = (lengths != NOT_AN_ANSWER) & (lengths < config.min_answer_characters)
    if config.max_answer_characters:
        found[LONGEST] = lengths > config.max_answer_characters
    return found


def _check_languages(names: list[str]) -> None:
    known = known_languages() if names else []
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, 3)
            raise DataError(f"{name!r} is no language that can be recognised", where="data.filter.languages",
                            fix=f"ISO 639 codes, such as {', '.join(near or ('en', 'de', 'zh'))}")


def _of_groups(left: np.ndarray, disputed: list[list[list[int]]], groups: list[list[int]]) -> dict[str, np.ndarray]:
    """To be dropped of the rows that are left: all of a quarrel that still has two answers, all of a group but its first."""
    import numpy as np

    marks = {QUARREL: np.zeros(len(left), bool), NEAR: np.zeros(len(left), bool)}
    for answers in disputed:
        still = [rows for answer in answers if (rows := [i for i in answer if left[i]])]
        marks[QUARREL][_flat(still) if len(still) > 1 else []] = True
    for group in groups:
        marks[NEAR][[i for i in group if left[i]][1:]] = True
    return marks


def _flat(groups: list[list[int]]) -> list[int]:
    return [i for group in groups for i in group]


# ---- what is told


def _effect(name: str, alone: np.ndarray, dropped: np.ndarray | None, survey: quality.Survey,
            example: Example) -> Effect:
    """`dropped`: the rows it drops in order; None for a filter that is not chosen."""
    import numpy as np

    rows = alone if dropped is None else dropped
    characters = np.frombuffer(survey.facts.characters, np.uint32)[rows].sum(dtype=np.int64)
    return Effect(name, dropped is not None, len(alone), int(alone.sum()), 0 if dropped is None else int(dropped.sum()),
                  int(characters), [example(name, int(i)) for i in np.flatnonzero(rows)[:EXAMPLES]])


def _finding(effect: Effect, counted: int) -> Finding:
    what = f"the filter {effect.name} drops {effect.in_order:,} of {effect.rows:,} training rows"
    if effect.in_order:
        what += f", {effect.characters:,} characters"
    if effect.in_order < effect.alone:
        what += f"; alone it would drop {effect.alone:,}"
    elif not effect.alone:
        what += (f": {counted:,} look like it, and the audit does not take that for a fault in this data" if counted
                 else ": none has the fault")
    fix = ("look at the examples; take the filter out of data.filter if such rows are right" if effect.in_order
           else "leave the filter in for rows to come, or take it out of data.filter")
    return Finding(f"filtered:{effect.name}", "info", effect.in_order, what, fix, effect.examples)


def _examples(rows: Sequence[Row], survey: quality.Survey, disputed: list[list[list[int]]], groups: list[list[int]],
              left: np.ndarray | None) -> Example:
    """`left`: the rows that stay, None when nothing is dropped."""

    def example(name: str, i: int) -> str:
        row = rows[i]
        if name == QUARREL:
            answers = next(answers for answers in disputed if i in _flat(answers))
            other = next(answer[0] for answer in answers if i not in answer)
            return f"{_answer(row)} / {_answer(rows[other])}"
        if name == NEAR:
            group = next(group for group in groups if i in group)
            return evidence(row, rows[next((n for n in group if left is None or left[n]), group[0])])
        if name == LANGUAGES:
            return f"{_answer(row)} ({survey.facts.languages.name(i)})"
        if name in (SHORTEST, LONGEST):
            return f"{_answer(row)} ({len(row.answer):,} characters)"
        return quality.show(row, name)

    return example


def _answer(row: Row) -> str:
    return point(row, last_answer(row), row.answer, 0, len(row.answer))
