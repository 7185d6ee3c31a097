"""Every suite of the report as its page shows it: the line in the overview, the figure, the numbers, the tags.

    headline   the metric that stands for a suite in the overview: the target gate's where it was measured, else the lead
"""

from collections import Counter
from typing import Any

from tunesmith.evals import charts
from tunesmith.evals.charts import shown, span
from tunesmith.evals.report_items import anchor_for, case_view, lead_metric, shared_opening
from tunesmith.evals.report_words import SYSTEMS, label, metric_label, words
from tunesmith.training.compose import PARENT

CHANGES = {"tuned-wrong": "tuned wrong", "fixed": "fixed by tuning", "broken": "broken by tuning"}
KINDS = {"test": "test set", "suite": "suite", "regression": "regression", "safety": "safety", "style": "style"}
BASELINES = ("few_shot", "retrieval")
MANY_TAGS = 5
MOST_SYSTEMS = 3
"""More have a table that does not stand beside another."""


def systems_of(sets: Any) -> list[str]:
    """Every system that was measured, in the order zero-shot, few-shot, retrieval, parents, tuned, others."""
    found = {name for one_set in sets for metric in one_set["metrics"].values() for name in metric["systems"]}
    found |= {name for one_set in sets for item in one_set["items"] for name in item["answers"]}
    parents = sorted(name for name in found if name.startswith(PARENT))
    known = [*(name for name in SYSTEMS if not name.startswith("tuned")), *parents, "tuned", "tuned_retrieval"]
    return [name for name in known if name in found] + sorted(found - set(known))


def set_order(report: dict[str, Any]) -> list[str]:
    return sorted(report["sets"], key=lambda name: name != report["primary"])


def set_views(report: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Every set as the page shows it, and the anchor of each item id (of the first set that has the id)."""
    scales, reach = charts.metric_scales(report["sets"]), reaches(report)
    taken: Counter[str] = Counter()
    anchors: dict[str, str] = {}
    views = []
    for name in set_order(report):
        one_set = report["sets"][name]
        systems = systems_of([one_set])
        lead, head = lead_metric(one_set), headline(report, one_set)
        cases = []
        shared = shared_opening([item["prompt"] for item in one_set["items"]])
        for item in one_set["items"]:
            anchor = anchor_for(name, item["id"], taken)
            anchors.setdefault(item["id"], anchor)
            opening = " ".join(item["prompt"][shared:][:400].split())[:160]
            case = case_view(item, one_set["metrics"], systems, lead, report.get("passages", {}))
            cases.append(case | {"anchor": anchor, "opening": opening})
        views.append(
            {
                "key": name,
                "name": words(name),
                "anchor": f"set-{name}",
                "kind": kind_of(one_set),
                "primary": name == report["primary"],
                "broad": len(systems) > MOST_SYSTEMS,
                "source": one_set["source"],
                "n": one_set["n"],
                "note": ". ".join(filter(None, (one_set.get("power"), one_set.get("note")))),
                "systems": [(key, label(key)) for key in systems],
                "figures": figures(one_set["metrics"], systems, scales),
                "rows": [metric_row(metric, systems) for metric in one_set["metrics"].values()],
                "prompts": prompt_cells(one_set, systems),
                "missing": [(m["label"], m["reason"]) for m in one_set.get("not_measured", {}).values()],
                "tags": tag_view(one_set, head, reach),
                "lead": one_set["metrics"][lead]["label"] if lead else None,
                "cases": cases,
                "changes": {key: sum(key in case["changes"] for case in cases) for key in CHANGES},
            }
        )
    return views, anchors


def calibration_view(one_set: dict[str, Any]) -> list[dict[str, Any]]:
    """Reliability of base and tuned, or nothing where it was not measured."""
    return [figure | {"label": label(figure["system"]), "items": sum(dot["n"] for dot in figure["dots"])}
            for figure in charts.reliability_figure(one_set)]


def kind_of(one_set: dict[str, Any]) -> str:
    kind = one_set.get("kind", "test")
    return KINDS.get(kind, words(kind))


# ---- one line a suite -------------------------------------------------------------------------------------------------


def headline(report: dict[str, Any], one_set: dict[str, Any]) -> str | None:
    named = (report.get("target"), lead_metric(one_set), *one_set["metrics"])
    return next((name for name in named if name in one_set["metrics"]), None)


def reaches(report: dict[str, Any]) -> dict[str, float]:
    """How far from zero differences are drawn, by unit, the same in every row: the farthest end of an interval."""
    ends: dict[str, list[float]] = {}
    for one_set in report["sets"].values():
        head = headline(report, one_set)
        parts = [one_set, *one_set.get("tags", {}).values()] if head else []
        for metric in (part["metrics"][head] for part in parts if head in part["metrics"]):
            drawn = [metric.get("delta"), *(metric.get("ci95") or ())]
            ends.setdefault(metric["unit"], []).extend(abs(v) for v in drawn if charts.is_finite(v))
    reach = {unit: max(found, default=0.0) or 1.0 for unit, found in ends.items()}
    points = max(reach.get("share", 0.0), reach.get("score", 0.0) / 100)  # both are shown in points, on one scale
    return reach | {unit: points * per for unit, per in (("share", 1), ("score", 100)) if unit in reach}


def overview(report: dict[str, Any]) -> dict[str, Any] | None:
    """A line for each suite; none when there is only one."""
    reach = reaches(report)
    rows = []
    for name in set_order(report):
        one_set = report["sets"][name]
        head = headline(report, one_set)
        found = {"name": words(name), "anchor": f"set-{name}", "kind": kind_of(one_set), "n": f"{one_set['n']:,}",
                 "primary": name == report["primary"]}
        rows.append(found | (compared(one_set["metrics"][head], reach) if head else {"metric": None}))
    scales = {}
    for unit, end in reach.items():
        text = shown(end, unit, signed=True).lstrip("+").replace(".0 ", " ")
        scales["±" + text + (" nats" if unit == "nats" else "")] = None
    return {"rows": rows, "baselines": any(r.get("best") for r in rows), "scales": list(scales)} if len(rows) > 1 else None


def compared(metric: dict[str, Any], reach: dict[str, float]) -> dict[str, Any]:
    """Base, the best baseline, tuned, and their difference drawn; right is better whichever way the metric goes."""
    unit, sign = metric["unit"], 1 if metric["higher_is_better"] else -1
    helped = [(sign * metric["systems"][s]["value"], s) for s in BASELINES if s in metric["systems"]]
    helped = [pair for pair in helped if charts.is_finite(pair[0])]
    best = max(helped, default=None)
    call, tone = verdict_on(metric)
    return {
        "metric": metric_label(metric),
        "base": shown(metric.get("base"), unit),
        "best": (shown(sign * best[0], unit), label(best[1]), beats_tuned(metric, best[1])) if best else None,
        "tuned": shown(metric.get("tuned"), unit),
        "delta": shown(metric.get("delta"), unit, signed=True),
        "interval": span(metric.get("ci95"), unit),
        "call": call,
        "tone": tone,
        "drawn": charts.difference(metric.get("delta"), metric.get("ci95"), reach[unit], sign),
    }


def beats_tuned(metric: dict[str, Any], baseline: str) -> bool:
    """Whether a baseline is shown to be better than the fine-tune, by their paired interval."""
    pair = next((p for p in metric.get("pairs", ()) if (p["a"], p["b"]) == ("tuned", baseline)), None)
    return bool(pair) and verdict_on(metric | {"ci95": pair["ci95"]})[1] == "bad"


def tag_view(one_set: dict[str, Any], head: str | None, reach: dict[str, float]) -> dict[str, Any] | None:
    """The headline metric for the items of each tag."""
    tags = one_set.get("tags")
    if not tags or not head:
        return None
    rows = [{"tag": tag, "n": f"{part['n']:,}"} | compared(part["metrics"][head], reach)
            for tag, part in tags.items() if head in part["metrics"]]
    return {"metric": metric_label(one_set["metrics"][head]), "rows": rows, "many": len(rows) if len(rows) > MANY_TAGS else 0}


# ---- numbers ------------------------------------------------------------------------------------------------------------


def figures(metrics: dict[str, Any], systems: list[str], scales: dict[str, charts.Scale]) -> list[dict[str, Any]]:
    """One figure for each axis: all shares together, every other metric alone."""
    by_axis: dict[str, list[dict[str, Any]]] = {}
    for name, metric in metrics.items():
        by_axis.setdefault(charts.axis_of(name, metric), []).append(metric)
    drawn = []
    for axis, members in by_axis.items():
        scale = scales[axis]
        present = [s for s in systems if any(s in metric["systems"] for metric in members)]
        ticks = [(scale.place(tick), charts.tick_label(tick, axis)) for tick in scale.ticks()]
        rows = [
            {
                "label": metric_label(metric),
                "lower_is_better": not metric["higher_is_better"],
                "said": ", ".join(
                    f"{label(s)} {shown(by['value'], metric['unit'])}" for s, by in metric["systems"].items()
                ),
                "dots": charts.dots(metric, present, scale),
            }
            for metric in members
        ]
        drawn.append({"ticks": ticks, "rows": rows, "lanes": len(present)})
    return drawn



def metric_row(metric: dict[str, Any], systems: list[str]) -> dict[str, Any]:
    """One line of the numbers table."""
    unit = metric["unit"]
    scores = [metric["systems"].get(system) for system in systems]
    call, tone = verdict_on(metric)
    p_value = metric.get("p_value")
    return {
        "label": metric_label(metric),
        "cells": [(shown(s["value"], unit), span(s.get("ci95"), unit)) if s else None for s in scores],
        "delta": shown(metric.get("delta"), unit, signed=True),
        "interval": span(metric.get("ci95"), unit),
        "call": call,
        "tone": tone,
        "p_value": None if p_value is None else "p < 0.0001" if p_value < 0.0001 else f"p = {p_value:.2g}",
    }


def verdict_on(metric: dict[str, Any]) -> tuple[str, str]:
    """(call, tone) of a change: better or worse only when its interval leaves out zero."""
    interval = metric.get("ci95")
    if interval is None or not all(map(charts.is_finite, interval)):
        return "no interval", "unclear"
    if interval[0] > 0 or interval[1] < 0:
        good = (interval[0] > 0) == metric["higher_is_better"]
        return ("better", "good") if good else ("worse", "bad")
    return "no clear change", "unclear"


def prompt_cells(one_set: dict[str, Any], systems: list[str]) -> list[str] | None:
    """Mean tokens of a prompt, where systems differ in it: what help costs at every question."""
    tokens = one_set.get("prompt_tokens", {})
    return [f"{tokens[s]:,.0f}" if s in tokens else "–" for s in systems] if len(set(tokens.values())) > 1 else None
