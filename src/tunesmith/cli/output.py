"""How results and errors are shown: one JSON document on stdout, or lines for a person."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from tunesmith.errors import TunesmithError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; progress stays on stderr.")]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def emit(document: dict, as_json: bool, lines: list[str]) -> None:
    """The document for machines, or the lines for people."""
    print(json.dumps(document, indent=1, ensure_ascii=False) if as_json else "\n".join(lines), flush=True)


def fail(error: TunesmithError, as_json: bool) -> int:
    """Show an error, and return its exit code."""
    say(f"error: {error.render()}")
    if as_json:
        emit(error.as_dict(), True, [])
    return error.exit_code


def problem_lines(problems: list[dict]) -> list[str]:
    lines = []
    for p in problems:
        lines.append(f"{p['severity']}: {p['message']}" + (f"  [{p['where']}]" if p["where"] else ""))
        if p["fix"]:
            lines.append(f"  do: {p['fix']}")
    return lines


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Columns wide enough for their cells; the first is left-aligned, the others right."""
    widths = [max(len(str(r[i])) for r in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        return "  ".join(str(c).ljust(w) if i == 0 else str(c).rjust(w)
                         for i, (c, w) in enumerate(zip(cells, widths, strict=True))).rstrip()

    return [line(header), *(line(r) for r in rows)]


BASELINES = {"few_shot": "few-shot", "retrieval": "retrieval", "tuned_retrieval": "tuned + retrieval"}
"""Systems beside base and tuned, and what a person reads."""


def metric_lines(metrics: dict) -> list[str]:
    """Before and after, one metric a line. Shares are 0 to 1, scores 0 to 100."""
    parents = {s: s.replace("_", " ", 1) for m in metrics.values() for s in m if s.startswith("parent_")}
    names = BASELINES | parents
    others = [s for s in names if any(s in m for m in metrics.values())]
    before, after = [s for s in others if s != "tuned_retrieval"], [s for s in others if s == "tuned_retrieval"]
    rows = []
    for name, m in metrics.items():
        number = "{:.1f}" if m["unit"] == "score" else "{:.3f}"
        change = number.replace(":", ":+")
        values = [number.format(m[s]) if s in m else "-" for s in ("base", *before, "tuned", *after)]
        rows.append([name, *values, change.format(m["delta"]), " to ".join(change.format(end) for end in m["ci95"])])
    return table(["metric", "base", *(names[s] for s in before), "tuned", *(names[s] for s in after), "change",
                  "95% interval"], rows)


def gate_lines(gates: list[dict]) -> list[str]:
    return [f"{g['verdict']:>12}  {g['name']}: {g['evidence']['message']}" for g in gates]
