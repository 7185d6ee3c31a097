"""What the rows say of their source and licence: whose data it is decides what the model may be used for."""

from __future__ import annotations

import re
from collections import Counter

from tunesmith.data.finding import Finding
from tunesmith.data.quality.evidence import EXAMPLES, Tally, excerpt, finding
from tunesmith.data.rows import Row

LICENCE_KEYS, SOURCE_KEYS = ("license", "licence"), ("source",)
NON_COMMERCIAL = re.compile(r"(?:^|[\W_])nc(?:$|[\W_])|non[- _]?commercial|research[- _]only|academic[- _]only", re.IGNORECASE)
KNOWN = re.compile(r"apache|\bmit\b|bsd|\bisc\b|\bcc[- _]?(?:by|0|zero)|creative commons|gpl|mpl|mozilla|\bodc|odbl|pddl|"
                   r"openrail|public[- _]?domain|unlicense|\bogl|cdla|gfdl|proprietary|\bown\b|internal|commercial|artistic|"
                   r"zlib|wtfpl|afl", re.IGNORECASE)
KEPT, SHOWN, LONGEST = 1000, 8, 60
"""Different values that are counted, those that are shown, and the characters of one: a source may be a long URL."""


class Licences:
    """Counts of licences and sources, and the rows that name none."""

    def __init__(self) -> None:
        self.rows = 0
        self.values: dict[str, Counter[str]] = {"license": Counter(), "source": Counter()}
        self.missing = {"license": Tally(), "source": Tally()}

    def see(self, row: Row) -> None:
        self.rows += 1
        for name, keys in (("license", LICENCE_KEYS), ("source", SOURCE_KEYS)):
            value = next((str(row.meta[k]).strip()[:LONGEST] for k in keys if row.meta.get(k) not in (None, "")), "")
            counts = self.values[name]
            if not value:
                self.missing[name].add(lambda: f"{row.where}: no {name}")  # noqa: B023
            elif value in counts or len(counts) < KEPT:
                counts[value] += 1
            else:
                counts["others"] += 1

    def findings(self) -> list[Finding]:
        found = []
        for name, tally in self.missing.items():
            if self.values[name]:
                found += tally.finding(f"{name}_missing", "warning",
                                       f"{tally.count} rows have no {name} in their record, {self.rows - tally.count} have one",
                                       f"add {name!r} to each record, or leave these rows out")
        licences = self.values["license"]
        bound = {v: n for v, n in licences.most_common() if NON_COMMERCIAL.search(v)}
        unknown = {v: n for v, n in licences.most_common() if v not in bound and not KNOWN.search(v)}
        return [*found,
                *_listed("license_non_commercial", bound, "forbid commercial use",
                         "leave them out of a model that earns money, or ask the owner"),
                *_listed("license_unknown", unknown, "have a licence that is not known here", "find out what it allows")]


def _listed(code: str, values: dict[str, int], what: str, fix: str) -> list[Finding]:
    if not values:
        return []
    table = ", ".join(f"{_shown(value)!r} {n}" for value, n in list(values.items())[:SHOWN])
    return [finding(code, "info", sum(values.values()), f"{sum(values.values())} rows {what}: {table}", fix,
                    [f"{_shown(value)!r}: {n} rows" for value, n in list(values.items())[:EXAMPLES]])]


def _shown(value: str) -> str:
    return excerpt(value, 0, len(value))
