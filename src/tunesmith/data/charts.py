"""Numbers of a manifest as the bars of the data card: what each stands for, and how wide it is. Names are masked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunesmith.data.leaks import PARTIAL, REFUSING
from tunesmith.data.quality.evidence import mask
from tunesmith.data.quality.language import UNKNOWN

BARS = 12
"""Of one picture; more are drawn as one."""


def bars(counts: dict[str, int], total: int | None = None, rest: str = "", files: Sequence[str] = ()) -> list[dict[str, Any]]:
    """`[{name, count, share}]`, the first BARS of them and the others as one; shares add up to 1.

    What `total` has beyond the counts is one more bar, called `rest`. No counts give no bars. Names of `files`
    are not masked: a date in them is no telephone number.
    """
    if not counts:
        return []
    total = sum(counts.values()) if total is None else total
    shown = list(counts.items())
    if len(shown) > BARS + 1:
        shown = [*shown[:BARS], (f"{len(shown) - BARS} others", sum(n for _, n in shown[BARS:]))]
    if left := total - sum(counts.values()):
        shown.append((rest, left))
    return [{"name": _name(name, files), "count": n, "share": n / total if total else 0.0} for name, n in shown]


def shares(statistics: dict[str, Any], groups: dict[str, list[int]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """`[(title, bars)]` of what is known: no picture of a single bar "unknown", and none of sources that the mix shows."""
    rows, languages, sources = (statistics[k] for k in ("rows", "languages", "sources"))
    drawn = [("Labels", bars(_counted(statistics["labels"], rows), rows, "other answers")),
             ("Languages of the answers", bars(_counted(languages if languages.keys() != {UNKNOWN} else {}, rows), rows)),
             ("Licences", bars(statistics["licenses"], rows, "no licence named")),
             ("Sources", bars(sources if not sources.keys() <= groups.keys() else {}, rows, "no source named"))]
    return [picture for picture in drawn if picture[1]]


def _counted(of: dict[str, float], rows: int) -> dict[str, int]:
    return {name: round(share * rows) for name, share in of.items()}


def mix(groups: dict[str, list[int]], files: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows there and rows trained on, both as shares of the largest group."""
    most = max((there for there, _ in groups.values()), default=0)
    return [{"name": _name(name, files), "there": there, "kept": kept, "width": there / most, "kept_width": kept / most}
            for name, (there, kept) in groups.items()]


def near(found: dict[str, Any]) -> dict[str, Any]:
    """Groups by size: 2, 3, 4, then doubling."""
    cells: dict[str, int] = {}
    for size, count in ((int(n), count) for n, count in found["sizes"].items()):
        low = size if size < 5 else (1 << (size - 1).bit_length() - 1) + 1
        name = f"{low} rows" if size < 5 else f"{low} to {2 * (low - 1)} rows"
        cells[name] = cells.get(name, 0) + count
    return {"sizes": bars(cells), "groups": found["groups"]}


def leak(kind: dict[str, Any]) -> dict[str, Any]:
    """One kind of leak in one set, with what it is in words and whether the leak gate counts it."""
    what = (REFUSING | PARTIAL)[kind["code"]]
    return kind | {"title": what[0].upper() + what[1:], "refusing": kind["code"] in REFUSING}


def funnel(filters: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows before the first filter and after each chosen one: `[{name, count, dropped, before, share}]`, shares of them all."""
    acting = [f for f in filters if f["chosen"]]
    if not acting:
        return []
    total = left = acting[0]["rows"]
    steps = [{"name": "rows in", "count": total, "dropped": 0, "before": 1.0, "share": 1.0}]
    for one in acting:
        before, left = left, left - one["in_order"]
        steps.append({"name": one["name"].replace("_", " "), "count": left, "dropped": one["in_order"],
                      "before": before / total, "share": left / total})
    return steps


def _name(name: str, files: Sequence[str]) -> str:
    return name if any(file.endswith(name) for file in files) else mask(name)


def overlong(lost: dict[str, Any], files: Sequence[str] = ()) -> dict[str, Any]:
    """Rows by task and source, and the tokens that a cut would lose: of answers, and of what they answer."""
    groups = [(kind, bars(counts, files=files)) for kind, counts in lost["groups"].items() if counts]
    asked = {"answers": lost["answer_tokens"], "prompts and template": lost["tokens"] - lost["answer_tokens"]}
    return lost | {"groups": groups, "by_role": bars(asked)}
