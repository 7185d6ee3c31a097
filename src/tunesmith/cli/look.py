from __future__ import annotations

import json
from typing import Annotated

import typer

from tunesmith.cli.output import Json, emit, table


def runs(as_json: Json = False) -> None:
    """Runs and releases, newest first."""
    from tunesmith import verbs

    found = verbs.runs()
    rows = [[r["run_id"], r["status"], r.get("steps", "-"), _number(r.get("train_loss")), _number(r.get("eval_loss")),
             r.get("release_id") or "-"] for r in found["runs"]]
    emit(found, as_json, table(["run", "status", "steps", "loss", "held-out", "release"], rows) if rows else ["no runs yet"])


def show(
    name: Annotated[str, typer.Argument(metavar="ID", help="A run, a release or a channel.")],
    as_json: Json = False,
) -> None:
    """Everything known of a run, a release or a channel. A release is checked against its digests."""
    from tunesmith import verbs

    found = verbs.show(name)
    emit(found, as_json, [f"{key}: {json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value}"
                          for key, value in found.items()])


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A run or a release.")],
    b: Annotated[str, typer.Argument(metavar="B")],
    as_json: Json = False,
) -> None:
    """Two runs or releases side by side: what differs in recipe and data, and what came of it."""
    from tunesmith import verbs

    found = verbs.compare(a, b)
    rows = [[f"recipe {key}", _short(x), _short(y), ""] for key, (x, y) in found["recipe"].items()]
    rows += [[f"data {key}", _short(x), _short(y), ""] for key, (x, y) in found["dataset"]["inputs"].items()]
    for name, part in found["dataset"]["parts"].items():
        changed = f"+{part['added']:,} -{part['removed']:,} ~{part['changed']:,}"
        rows.append([f"data rows of {name}", f"{part['rows'][0]:,}", f"{part['rows'][1]:,}", changed])
    for key, name in (("train_loss", "training loss"), ("eval_loss", "held-out loss")):
        rows += [[f"{name} at step {step}", _number(x), _number(y), _change(x, y)] for step, x, y in found["at_steps"][key]]
    for part, metrics in found["metrics"].items():
        for name, (x, y) in metrics.items():
            both = x and y
            rows.append([f"{name} on {part}", _interval(x), _interval(y), _change(x["value"], y["value"]) if both else "-"])
    for key, (x, y) in found["speed"].items():
        rows.append([key.removesuffix("_bytes").replace("_", " "), _amount(key, x), _amount(key, y), _times(x, y)])
    emit(found, as_json, [*table(["", found["a"], found["b"], "change"], rows), *found["notes"]])


def _short(value) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _interval(measured: dict | None) -> str:
    if measured is None:
        return "-"
    return f"{measured['value']:.3f} ({measured['ci95'][0]:.3f} to {measured['ci95'][1]:.3f})"


def _change(x: float | None, y: float | None) -> str:
    return "-" if x is None or y is None else f"{y - x:+.4f}"


def _amount(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value / 1e6:,.1f} MB" if key.endswith("bytes") else f"{value:,.0f}"


def _times(x: float | None, y: float | None) -> str:
    return f"x {y / x:.2f}" if x and y else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
