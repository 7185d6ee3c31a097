"""A sweep as one page: what was chosen and why, every combination with its interval, the table. No script, nothing loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.evals import charts


def render(document: dict[str, Any]) -> str:
    """The page of a `sweep.json`. Pure: the same document gives the same bytes."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True, undefined=StrictUndefined)
    return environment.get_template("sweep.html.jinja").render(s=document, figure=figure(document))


def figure(document: dict[str, Any]) -> dict[str, Any] | None:
    """One lane a finished combination, from the fewest parameters down: a dot and its interval on one axis, in percent."""
    m = document["metric"]
    rows = sorted((r for r in document["rows"] if r["status"] == "finished"), key=lambda r: r["trainable_parameters"])
    if not rows:
        return None
    base = rows[0]["target"]["base"]
    values = [v for r in rows for v in (r["target"]["value"], *r["target"]["ci95"])]
    scale = charts.scale_from_zero([*values, base], at_least=1.0 if m["unit"] == "share" else None)
    taken = (document["recommended"] or {}).get("run_id")
    axis = "share" if m["unit"] == "share" else m["name"]
    lanes = [{"label": r["label"], "parameters": f"{r['trainable_parameters']:,}", "x": scale.place(r["target"]["value"]),
              "low": scale.place(r["target"]["ci95"][0]), "high": scale.place(r["target"]["ci95"][1]),
              "said": charts.shown(r["target"]["value"], m["unit"]), "taken": r["run_id"] == taken} for r in rows]
    return {"lanes": lanes, "base": scale.place(base), "base_said": charts.shown(base, m["unit"]),
            "ticks": [(scale.place(t), charts.tick_label(t, axis)) for t in scale.ticks()]}
