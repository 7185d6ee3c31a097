"""One pass over rows: every detector sees every row once, and keeps counts and its first examples only.

    survey(rows).findings       what is wrong with the text
    survey(rows).statistics     what a data card says of it
    survey(rows).verdicts       which rows each finding speaks of
    survey(rows).facts          language, label, source and lengths of each row
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tunesmith.data.finding import Finding
from tunesmith.data.quality.answers import Answers
from tunesmith.data.quality.compliance import Compliance
from tunesmith.data.quality.damage import Damage
from tunesmith.data.quality.facts import Facts
from tunesmith.data.quality.labels import Labels
from tunesmith.data.quality.language import Languages
from tunesmith.data.quality.licences import Licences
from tunesmith.data.quality.markup import Markup
from tunesmith.data.quality.personal import REGION
from tunesmith.data.quality.privacy import Privacy
from tunesmith.data.quality.refusals import Refusals
from tunesmith.data.quality.summary import Statistics, Turns
from tunesmith.data.quality.verdicts import Verdicts
from tunesmith.data.rows import Row

ORDER = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True, slots=True)
class Survey:
    findings: list[Finding]
    """The worst first."""
    statistics: Statistics
    verdicts: Verdicts
    """Which rows the findings speak of."""
    facts: Facts
    """What each row is, by number."""


def survey(rows: Iterable[Row], region: str = REGION) -> Survey:
    """Findings and statistics of rows in one pass. `region` is whose telephone numbers are written without a country code."""
    turns, languages, labels, licences = Turns(), Languages(), Labels(), Licences()
    judging = _judges(region, languages)
    detectors, verdicts, facts = [*judging, labels, licences], Verdicts(), Facts()
    for row in rows:
        turns.see(row)
        for detector in detectors:
            detector.see(row)
        verdicts.see(judging)
        facts.see(row, languages.last)
    findings = [f for detector in detectors for f in detector.findings()]
    return Survey(sorted(findings, key=lambda f: ORDER[f.severity]), _statistics(turns, languages, labels, licences),
                  verdicts, facts)


def show(row: Row, family: str, region: str = REGION) -> str:
    """Where this row has a fault that was counted under `family`, or `family:kind`: `file:line: messages[1] at 37: 'piece'`."""
    judging = _judges(region, Languages())
    for detector in judging:
        detector.see(row)
    return next(tally.examples[0] for detector in judging for code, tally in detector.tallies.items()
                if tally.count and code.split(":")[0] == family)


def _judges(region: str, languages: Languages) -> list:
    """Fresh detectors, those with a verdict on each row; the one of languages is shared with the statistics."""
    return [Privacy(region), Damage(), Markup(), languages, Answers(), Refusals(), Compliance()]


def inspect(rows: Iterable[Row], region: str = REGION) -> list[Finding]:
    """What is wrong with the text of rows, the worst first."""
    return survey(rows, region).findings


def statistics(rows: Iterable[Row]) -> Statistics:
    """What a data card says of rows. With findings as well, `survey` gives both for one pass."""
    turns, languages, labels, licences = seen = Turns(), Languages(), Labels(), Licences()
    for row in rows:
        for counter in seen:
            counter.see(row)
    return _statistics(turns, languages, labels, licences)


def _statistics(turns: Turns, languages: Languages, labels: Labels, licences: Licences) -> Statistics:
    roles = {role: histogram.lengths() for role, histogram in turns.roles.items()}
    return Statistics(turns.rows, sum(r.count for r in roles.values()), roles,
                      {name: n / turns.rows for name, n in languages.answers.most_common()}, labels.shares(),
                      dict(licences.values["source"].most_common()), dict(licences.values["license"].most_common()))
