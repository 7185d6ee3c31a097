"""How varied the training rows are: what kinds there are, how many rows each has, and how alike those are.

    rows -> a sample that does not depend on their order -> vectors -> clusters, scores, a map -> findings

A model that is shown one template a thousand times learns the template. The sample is the rows with the smallest hashes of
their content, drawn while the rows pass by (bottom-k sampling); the mathematics is in `tunesmith.data.topics`. The system
prompt is left out: it is mostly the same in all rows. What is shown of a row is masked like every excerpt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from tunesmith.data import topics
from tunesmith.data.finding import EXAMPLES, Finding
from tunesmith.data.quality.evidence import excerpt, finding, texts
from tunesmith.data.rows import Row

SAMPLE = 20_000
READ = 1_000
"""Characters that are read of what is asked in a row, and as many of what is answered."""
FEWEST = 20
"""Rows below which nothing is measured."""
DRAWN = 800
"""Rows on the map."""
MAP = 1_000
"""Its coordinates go from 0 to this."""
TERMS_SHOWN = 5
EXCERPT_FROM = 400
"""Characters of a row that are searched for what must be masked in the 40 that are shown."""
ALIKE_ROWS = 50
"""Rows of a cluster whose nearest row is looked up."""

FEW_TEMPLATES = 0.05
"""Vendi Score as a share of the rows it was measured on, up to which they are a few templates: see docs/measurements.md."""
NARROW = 0.2
"""... below which they are one narrow task. Instructions of all kinds reach 0.7 to 0.8."""
UNEVEN = 0.4
"""... below which it counts when nearly all rows are of one kind: 97% of all kinds of instructions are no narrow kind."""


class Sample:
    """The `size` rows with the smallest hashes, whatever order they come in; a fixed amount of memory."""

    def __init__(self, size: int = SAMPLE) -> None:
        self.size, self.rows = size, 0
        self._kept: list[tuple[bytes, str, str, str]] = []
        self._worst: bytes | None = None

    def see(self, row: Row) -> None:
        self.rows += 1
        said = [(role, text) for role, _place, text in texts(row) if role != "system"]
        digest = hashlib.sha256("\0".join(part for turn in said for part in turn).encode("utf-8", "surrogatepass")).digest()
        if self._worst is not None and digest > self._worst:
            return
        asked, answered = (" ".join(t for role, t in said if (role in ("assistant", "call")) is answer)[:READ]
                           for answer in (False, True))
        self._kept.append((digest, row.where, asked, answered))
        if len(self._kept) >= 2 * self.size:
            self._cut()

    def through(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The same rows, seen while somebody else reads them."""
        for row in rows:
            self.see(row)
            yield row

    def drawn(self) -> list[tuple[str, str, str]]:
        """(place, asked, answered), in an order that is random and always the same."""
        self._cut()
        return [kept[1:] for kept in self._kept]

    def _cut(self) -> None:
        self._kept.sort()
        del self._kept[self.size :]
        if len(self._kept) == self.size:
            self._worst = self._kept[-1][0]


def diversity(sample: Sample) -> dict[str, Any] | None:
    """What the manifest, the card and the command line say; None below 20 rows.

        rows, sample            rows there are, and rows of them that were measured
        clusters[]              number (from 1, the largest first), rows, share, terms[], example{where, text}, alike,
                                at[[x, y]] where its number stands on the map
        effective_clusters      exp of the entropy of their shares
        silhouette              -1 to 1, how far apart they stand; None where no clusters could be tried
        outlying                whether one cluster is nearly all and the others are something else
        vendi                   {score, rows, share}: as many rows that share nothing would be as varied
        alike                   mean cosine of a row and the row most like it
        distinct_1, distinct_2  different words, and pairs of words, of the answers by all of them (Li et al. 2016)
        map                     {size, points[[x, y, cluster number]]}

    Cosines are of TF-IDF vectors of words and pairs of words; the first 1,000 characters of question and answer are read.
    """
    from threadpoolctl import threadpool_limits

    drawn = sample.drawn()
    if len(drawn) < FEWEST:
        return None
    with threadpool_limits(1):
        return {"rows": sample.rows, "sample": len(drawn), **_measured(drawn)}


def _measured(drawn: list[tuple[str, str, str]]) -> dict[str, Any]:
    import numpy as np

    tfidf, terms = topics.vectors([f"{asked}\n{answered}" for _where, asked, answered in drawn])
    near, similar = topics.reduced(tfidf), topics.cosines(tfidf)
    score = topics.vendi(similar)
    rest = topics.outlying(tfidf, similar) if score / len(similar) < UNEVEN else None
    found, silhouette = rest or topics.clusters(near)
    sizes = np.bincount(found)
    order = [int(c) for c in np.argsort(-sizes, kind="stable") if sizes[c]]
    number = {c: n for n, c in enumerate(order, 1)}
    points = topics.plane(near[:DRAWN], MAP)
    places = topics.labels(points, found[: len(points)], MAP)
    told = [{**_cluster(np.flatnonzero(found == c), near, tfidf, terms, drawn), "at": places.get(c, [])} for c in order]
    alike = sum(c["alike"] * c["rows"] for c in told) / len(drawn)
    answers = [topics.words(answered) for _where, _asked, answered in drawn[: topics.COMPARED]]
    return {
        "clusters": [{"number": n, **c} for n, c in enumerate(told, 1)],
        "effective_clusters": round(topics.effective([c["rows"] for c in told]), 2),
        "silhouette": None if silhouette is None else round(silhouette, 3), "outlying": rest is not None,
        "vendi": {"score": round(score, 1), "rows": len(similar), "share": round(score / len(similar), 4)},
        "alike": round(alike, 3), "distinct_1": _distinct(answers, 1), "distinct_2": _distinct(answers, 2),
        "map": {"size": MAP, "points": [[int(x), int(y), number[int(c)]] for (x, y), c in zip(points, found, strict=False)]},
    }


def _cluster(members, near, tfidf, terms, drawn) -> dict[str, Any]:
    """One cluster; its example is the row nearest to its centre."""
    import numpy as np

    centre = near[members].mean(axis=0)
    where, asked, answered = drawn[int(members[np.argmax((near[members] @ centre).round(5))])]
    text = " ".join((asked or answered)[:EXCERPT_FROM].split())
    return {"rows": len(members), "share": round(len(members) / len(drawn), 4),
            "terms": [excerpt(term, 0, len(term)) for term in topics.telling(tfidf, terms, members, TERMS_SHOWN)],
            "example": {"where": where, "text": excerpt(text, 0, len(text))},
            "alike": round(float(topics.nearest(tfidf, members[:ALIKE_ROWS]).mean()), 3)}


def _distinct(answers: list[list[str]], n: int) -> float | None:
    """Different n-grams by all n-grams; None when there is none."""
    found = [gram for answer in answers for gram in zip(*(answer[i:] for i in range(n)), strict=False)]
    return round(len(set(found)) / len(found), 3) if found else None


def findings(report: dict[str, Any] | None) -> list[Finding]:
    """`low_diversity`, or nothing: the thresholds and what they were measured on stand in docs/measurements.md."""
    if report is None:
        return []
    varied, measured, share = report["vendi"]["score"], report["vendi"]["rows"], report["vendi"]["share"]
    as_varied = f"{measured:,} rows are as varied as {varied:,.0f} that share no words (Vendi Score)"
    clusters = report["clusters"]
    if share <= FEW_TEMPLATES:
        return [_low("warning", report["rows"], f"the rows are a few templates with other words in them: {as_varied}",
                     "write more kinds of requests and answers: of rows like these a model learns the template and little else",
                     clusters)]
    if report["outlying"]:
        rest = len(clusters) - 1
        return [_low("warning", round(clusters[0]["share"] * report["rows"]),
                     f"{clusters[0]['share']:.0%} of the rows are one narrow kind, beside "
                     f"{f'{rest} small groups' if rest > 1 else 'a small group'} of something else; {as_varied}",
                     "the few will hardly be learned: add rows of their kind, cap the many with data.mix, or leave the few out",
                     clusters[1:])]
    if share < NARROW:
        return [_low("info", report["rows"], f"the rows are one narrow task: {as_varied}",
                     "nothing, if that is what the model is for; the evaluation should ask for that, and something else too",
                     clusters)]
    return []


def _low(severity: str, count: int, message: str, fix: str, clusters: list[dict]) -> Finding:
    shown = [f"{c['example']['where']}: {c['example']['text']!r} ({c['share']:.1%} of the rows are like it)"
             for c in clusters[:EXAMPLES]]
    return finding("low_diversity", severity, count, message, fix, shown)


def lines(report: dict[str, Any] | None) -> list[str]:
    """Three lines for people."""
    if report is None:
        return [f"diversity: not measured below {FEWEST} rows"]
    v, clusters = report["vendi"], report["clusters"]
    return [f"diversity: {v['rows']:,} rows are as varied as {v['score']:,.0f} that share no words; "
            f"a row and the one most like it: {report['alike']:.2f} of 1",
            f"  clusters: {len(clusters)}, effectively {report['effective_clusters']:.1f}; the largest has "
            f"{clusters[0]['share']:.0%} of the rows" if len(clusters) > 1 else "  clusters: none stand apart",
            "  " + "; ".join(f"{c['number']} {', '.join(c['terms'][:3]) or '-'} {c['share']:.0%}" for c in clusters[:4])]
