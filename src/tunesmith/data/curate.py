"""Which rows to propose, given what each of them costs a model that learned from the others. Pure: no files, no models.

    losses of the trained tokens          nats, by an adapter that never saw the row (training.crossfit)
      -> one score a row                  their mean: of eight statistics it told planted noise best (docs/measurements.md)
      -> a threshold, or none             between rows that agree and rows that are wrong on purpose
      -> suspects, and N of the others    farthest-first over character 5-grams (Gonzalez 1985)

The threshold has a control. Some rows are measured once more, each with the answer of another: what is surely wrong costs
so much here. Where that is not clearly more than what rows cost as they are (a novel, poems), nobody is suspected. A
mixture of two normal distributions (Arazo et al. 2019) was tried first: planted noise of several kinds makes no second hump.

Nothing here depends on the order of the rows: ties are decided by a hash of their content.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tunesmith.data.rows import Row
from tunesmith.data.shingles import commonness, sets
from tunesmith.data.similar import fold
from tunesmith.errors import DataError
from tunesmith.store.files import canonical_json

if TYPE_CHECKING:
    import numpy as np

CHOSEN, SUSPECT, LEFT = "proposed", "suspect", "not chosen"
TYPICAL = 0.25
"""Quantile of the scores at which rows agree with each other, unless three quarters of them are noise."""
POSITION = 0.6
"""Of the threshold, on the way from what typical rows cost to what wrong ones do, in logarithms."""
POWER = 0.9
"""Share of the rows wrong on purpose that the threshold must find, or it is not used."""
MANY = 1 / 3
"""Share of suspects from which the rest is to be mistrusted too."""
FLOOR = 1e-6
"""Nats; smaller means are not told apart."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """Where suspicion begins, or why it does not."""

    value: float | None
    """Nats a token; None: no row is suspected."""
    typical: float
    wrong: float
    """Median score of the rows that are wrong on purpose."""
    power: float
    """Share of them above the point that was tried."""

    @property
    def why(self) -> str:
        if self.value is None:
            return (f"No row is suspected: rows with the answer of another cost {self.wrong:.2g} nats a token, typical ones "
                    f"{self.typical:.2g}, which is too near to tell wrong from right.")
        return (f"Typical rows cost {self.typical:.2g} nats a token, rows that were given the answer of another "
                f"{self.wrong:.2g}; the threshold lies between them and finds {self.power:.0%} of those.")


@dataclass(frozen=True)
class Judged:
    """What became of every row. Lists are in the order of the dataset."""

    scores: list[float]
    """Mean loss of the trained tokens by an adapter that never saw the row, nats."""
    base: list[float]
    """The same by the base."""
    threshold: Threshold
    verdicts: list[str]
    folds: list[int]

    @property
    def chosen(self) -> list[int]:
        return [i for i, v in enumerate(self.verdicts) if v == CHOSEN]

    @property
    def suspects(self) -> list[int]:
        """The most suspicious first."""
        return [i for i in self.worst_first() if self.verdicts[i] == SUSPECT]

    @property
    def warning(self) -> str | None:
        """Noise that many rows share is learned from them: it is not found, and is a larger part of what is proposed."""
        share = len(self.suspects) / len(self.verdicts)
        return None if share < MANY else (
            f"{share:.0%} of the rows are suspect. Noise that agrees with itself is not found this way, and dropping the rest "
            "of the noise makes it a larger part: read some of the proposed rows before you train on them.")

    def worst_first(self) -> list[int]:
        return sorted(range(len(self.scores)), key=lambda i: (-self.scores[i], i))

    def reason(self, i: int) -> str:
        if self.verdicts[i] == SUSPECT:
            times = self.scores[i] / max(self.threshold.typical, FLOOR)
            return f"costs {self.scores[i]:.2g} nats a token, {times:,.0f} times what a typical row does"
        agrees = "no reason to suspect it" if self.threshold.value is None else "agrees with the others"
        return agrees if self.verdicts[i] == CHOSEN else f"{agrees}; rows like it are proposed"

    def record(self, i: int, where: str) -> dict[str, Any]:
        """One line of scores.jsonl. `gain`: what the other rows taught about this one, nats a token."""
        return {"where": where, "verdict": self.verdicts[i], "score": round(self.scores[i], 4),
                "base": round(self.base[i], 4), "gain": round(self.base[i] - self.scores[i], 4), "fold": self.folds[i],
                "reason": self.reason(i)}

    def histogram(self, bins: int) -> dict[str, Any]:
        """Rows by the logarithm of their score: `{low, high, at, bins[{from, to, rows, height, suspect}]}`, heights and the
        place of the threshold in percent."""
        logs = [math.log(max(s, FLOOR)) for s in self.scores]
        low, high = min(logs), max(logs)
        width = (high - low) / bins or 1.0
        counts = [0] * bins
        for v in logs:
            counts[min(bins - 1, int((v - low) / width))] += 1
        border = None if self.threshold.value is None else math.log(self.threshold.value)
        made = [{"from": math.exp(low + n * width), "to": math.exp(low + (n + 1) * width), "rows": count,
                 "height": 100 * math.sqrt(count / max(counts)),
                 "suspect": border is not None and low + (n + 0.5) * width > border} for n, count in enumerate(counts)]
        at = None if border is None else min(100.0, max(0.0, 100 * (border - low) / (width * bins)))
        return {"low": math.exp(low), "high": math.exp(high), "at": at, "bins": made}


def means(losses: np.ndarray, ends: np.ndarray) -> list[float]:
    """Mean loss of each row; row i's tokens are losses[ends[i]:ends[i + 1]]."""
    import numpy as np

    return (np.add.reduceat(losses.astype(np.float64), ends[:-1]) / np.diff(ends)).tolist()


def threshold(scores: Sequence[float], wrong: Sequence[float]) -> Threshold:
    """Between what rows cost that agree with the others and what rows cost that are `wrong` on purpose.

    exp of (1 - p) log(lower quartile of the scores) + p log(median of the wrong), p = 0.6. Not used when fewer than nine
    in ten of the wrong rows lie above it, when the wrong do not even cost twice as much, or when there are none.
    """
    import numpy as np

    typical = max(float(np.quantile(scores, TYPICAL)), FLOOR)
    if not len(wrong):
        return Threshold(None, typical, math.nan, 0.0)
    median = max(float(np.median(wrong)), FLOOR)
    value = math.exp((1 - POSITION) * math.log(typical) + POSITION * math.log(median))
    power = float(np.mean(np.asarray(wrong) > value))
    return Threshold(value if power >= POWER and median > 2 * typical else None, typical, median, power)


def judge(rows: Sequence[Row], scores: Sequence[float], base: Sequence[float], folds: Sequence[int], found: Threshold,
          count: int | None = None) -> Judged:
    """Suspects, and the rows to propose: all others, or `count` diverse ones of them.

    Raises:
        DataError: `count` is more than there are rows above suspicion, or there is none.
    """
    suspect = [found.value is not None and s > found.value for s in scores]
    above = [i for i, s in enumerate(suspect) if not s]
    if not above or (count is not None and count > len(above)):
        raise DataError(f"{count or 1} rows are asked for, and {len(above)} of {len(rows)} are not suspect",
                        fix=f"ask for --rows {len(above)} or fewer" if above else "read the suspects yourself")
    chosen = set(above if count is None else diverse(rows, above, count))
    verdicts = [SUSPECT if suspect[i] else CHOSEN if i in chosen else LEFT for i in range(len(rows))]
    return Judged(list(scores), list(base), found, verdicts, [int(f) for f in folds])


def digest(row: Row) -> bytes:
    """Of what a row says, wherever it stands."""
    return hashlib.sha256(canonical_json([row.messages, row.tools]).encode()).digest()


def canonical_order(rows: Sequence[Row]) -> list[int]:
    """Numbers of the rows by their content, so that the order of a file changes nothing."""
    return sorted(range(len(rows)), key=lambda i: (digest(rows[i]), rows[i].where))


def wrong_on_purpose(rows: Sequence[Row], count: int) -> list[Row]:
    """Up to `count` of the rows, evenly spaced, each with the last answer of the next row that answers something else."""
    made = []
    answers = [fold(row.answer) or canonical_json(row.messages[-1].get("tool_calls")) for row in rows]
    for i in range(0, len(rows), max(1, len(rows) // max(1, count))):
        other = next((j % len(rows) for j in range(i + 1, i + len(rows)) if answers[j % len(rows)] != answers[i]), None)
        if other is not None and len(made) < count:
            made.append(replace(rows[i], messages=[*rows[i].question, rows[other].messages[-1]]))
    return made


def diverse(rows: Sequence[Row], numbers: Sequence[int], count: int) -> list[int]:
    """`count` of these rows, each the farthest from those before it, ascending: half as well spread as can be, at least.

    Distance is 1 - Jaccard similarity of the character 5-grams of everything but the system prompt. The first is the row
    whose content has the smallest hash. Time grows with len(numbers) * count: some 4 s for 300 of 1,500 short rows.

    Raises:
        ValueError: there are fewer than `count` rows.
    """
    import numpy as np

    if count > len(numbers):
        raise ValueError(f"{count} of {len(numbers)} rows")
    if count == len(numbers):
        return sorted(numbers)
    chosen_from = [rows[i] for i in numbers]
    ranked = [numbers[n] for n in canonical_order(chosen_from)]
    texts = [fold("\n".join(m["content"] for m in rows[i].messages if m["role"] != "system")) for i in ranked]
    found = sets(texts, commonness(texts), 1)
    nearest = np.full(len(ranked), -1.0)  # similarity to the nearest chosen row
    chosen = [0]
    while len(chosen) < count:
        own = found[chosen[-1]]
        at = np.minimum(np.searchsorted(own, found.numbers), len(own) - 1)
        shared = np.add.reduceat(own[at] == found.numbers, found.starts[:-1], dtype=np.int64)
        nearest = np.maximum(nearest, shared / (len(own) + found.sizes - shared))
        nearest[chosen] = 2.0
        chosen.append(int(nearest.argmin()))
    return sorted(ranked[n] for n in chosen)
