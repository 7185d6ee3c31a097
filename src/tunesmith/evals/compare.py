"""From what each system said to metrics with intervals, per item and per suite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tunesmith.errors import DataError, NotMeasured
from tunesmith.evals import power, statistics
from tunesmith.evals.items import Item, Outcome, Suite
from tunesmith.evals.metrics import METRICS, Metric
from tunesmith.evals.statistics import Paired, paired
from tunesmith.recipe.evaluation import Eval
from tunesmith.training.compose import PARENT

BASE, TUNED = "zero_shot", "tuned"
BOUNDS = {"share": (0.0, 1.0), "score": (0.0, 100.0), "cosine": (-1.0, 1.0), "nats": (0.0, None), "ratio": (0.0, None)}
"""The least and the most that a metric of this unit can be."""
PAIRS = ((TUNED, "few_shot"), (TUNED, "retrieval"), ("tuned_retrieval", "retrieval"), ("tuned_retrieval", TUNED))
"""Systems that are compared beside tuned and base, the first minus the second: what they say is in `evals.words`. A composed
adapter is compared with its parents too: `evals.parents`."""


def measurable(suite: Suite) -> None:
    """Raises DataError when a suite has no items, or items that one of its metrics cannot be computed on."""
    if not suite.items:
        raise DataError(f"{suite.kind} set {suite.name!r} has no rows", fix="see `tunesmith data audit`, or raise "
                        "data.max_tokens")
    for name in suite.metrics:
        for item in suite.items:
            try:
                METRICS[name].check(item)
            except ValueError as error:
                raise DataError(f"metric {name} cannot be computed on {suite.name!r}", where=item.id, why=str(error),
                                fix="take it out of " + ("eval.metrics" if suite.kind == "test" else "the suite's metrics")
                                ) from error


def compare_suite(suite: Suite, said: dict[str, list[Outcome]], settings: Eval | None = None,
                  folder: Path | None = None) -> dict:
    """One suite of the report: `kind`, `source`, `n`, `metrics`, `power`, `items`; `tags` and `not_measured` too if there are
    any.

    `said[system]` has an outcome for each item. A metric has a value for each system that was measured with what it needs,
    and one that could not be measured at all is in `not_measured` with the reason. `settings` say what a metric's `prepare`
    asks, and paths in them are relative to `folder`.
    """
    parts, facts, missing = {}, {}, {}
    for name in suite.metrics:
        metric = METRICS[name]
        try:
            if metric.prepare:
                facts[name] = metric.prepare(suite.items, said, settings or Eval(), folder)
            parts[name] = parts_of(metric, suite.items, said)
        except NotMeasured as error:
            reason = error.what + (f" ({error.why})" if error.why else "")
            missing[name] = {"label": metric.label, "reason": reason, "fix": error.fix, "facts": error.facts}
    tags = sorted({tag for item in suite.items for tag in item.tags})
    found = {"kind": suite.kind, "source": suite.source, "n": len(suite.items),
             "metrics": {name: measured(name, p) | ({"facts": facts[name]} if facts.get(name) else {})
                         for name, p in parts.items()}}
    found["power"] = what_shows(found)
    if missing:
        found["not_measured"] = missing
    if tags:
        found["tags"] = {tag: _of_tag(tag, suite.items, parts) for tag in tags}
    return found | {"items": [_item(i, item, said, parts) for i, item in enumerate(suite.items)]}


def parts_of(metric: Metric, items: Sequence[Item], said: dict[str, list[Outcome]]) -> dict[str, np.ndarray]:
    """[N, S] of each system that was measured with what the metric needs."""
    return {system: np.array([metric.parts(o, item) for o, item in zip(outcomes, items, strict=True)], dtype=float)
            for system, outcomes in said.items() if _has(outcomes[0], metric)}


def measured(name: str, parts: dict[str, np.ndarray]) -> dict:
    """One metric of the report: each system's value and 95% interval; the difference of tuned to base, item by item, with its
    interval, the p of no difference, and the smallest one that so many items can show."""
    metric, n = METRICS[name], len(parts[BASE])
    systems = {s: {"value": value(metric, p_NS), "ci95": list(interval(metric, p_NS))} for s, p_NS in parts.items()}
    change = change_of(metric, parts[BASE], parts[TUNED])
    base, tuned = systems[BASE]["value"], systems[TUNED]["value"]
    found = {"label": metric.label, "higher_is_better": metric.higher_is_better, "unit": metric.unit, "systems": systems,
             "base": base, "tuned": tuned, "delta": tuned - base, "ci95": [change.low, change.high],
             "p_value": change.p_value, "detectable": power.detectable(change.sd, n)}
    parents = [(TUNED, system) for system in parts if system.startswith(PARENT)]
    pairs = [difference(metric, parts, a, b) for a, b in (*PAIRS, *parents) if a in parts and b in parts]
    return found | ({"pairs": pairs} if pairs else {})


def difference(metric: Metric, parts: dict[str, np.ndarray], a: str, b: str) -> dict:
    """`{a, b, delta, ci95, p_value}`: what system a has more than system b, item by item."""
    change = change_of(metric, parts[b], parts[a])
    return {"a": a, "b": b, "delta": value(metric, parts[a]) - value(metric, parts[b]), "ci95": [change.low, change.high],
            "p_value": change.p_value}


def change_of(metric: Metric, base_NS: np.ndarray, tuned_NS: np.ndarray) -> Paired:
    """How sure the difference of two systems is, item by item, second minus first."""
    low, high = BOUNDS.get(metric.unit, (None, None))
    return paired(metric.value, base_NS, tuned_NS, mean=metric.is_mean, span=None if high is None else high - low)


def value(metric: Metric, parts_NS: np.ndarray) -> float:
    return float(metric.value(parts_NS.sum(0, keepdims=True))[0])


def interval(metric: Metric, parts_NS: np.ndarray) -> tuple[float, float]:
    """95% interval of one system's value, never of zero width where the metric is bounded."""
    if metric.scale == "log":
        low, high = statistics.interval(lambda sums_RS: np.log(metric.value(sums_RS)), parts_NS, mean=False)
        return float(np.exp(low)), float(np.exp(high))
    return statistics.interval(metric.value, parts_NS, mean=metric.is_mean,
                               bounds=BOUNDS.get(metric.unit, (None, None)))


def what_shows(part: dict) -> str:
    """How small a change this suite can show: one sentence about its first share of right answers, else its first metric."""
    metrics = part["metrics"]
    name = next((n for n, m in metrics.items() if m["unit"] == "share"), next(iter(metrics), None))
    if name is None:
        return ""
    return power.sentence(part["n"], metrics[name]["label"], metrics[name]["unit"], metrics[name]["detectable"])


def _of_tag(tag: str, items: Sequence[Item], parts: dict[str, dict[str, np.ndarray]]) -> dict:
    rows = np.array([tag in item.tags for item in items])
    return {"n": int(rows.sum()),
            "metrics": {name: measured(name, {s: p_NS[rows] for s, p_NS in p.items()}) for name, p in parts.items()}}


def _has(outcome: Outcome, metric: Metric) -> bool:
    asked = {"answer": outcome.text is not None, "likelihood": outcome.nats is not None, "choices": bool(outcome.choices)}
    return asked[metric.needs] and (metric.fetches is None or metric.fetches in outcome.extra)


def _item(i: int, item: Item, said: dict[str, list[Outcome]], parts: dict[str, dict[str, np.ndarray]]) -> dict:
    answered = {s: o[i] for s, o in said.items() if o[i].text is not None}
    scored = {name: p for name, p in parts.items() if METRICS[name].needs != "likelihood"}
    found = {"id": item.id, "prompt": item.prompt, "reference": item.reference,
             "answers": {s: o.text for s, o in answered.items()}, "stopped": {s: o.stopped for s, o in answered.items()},
             "scores": {name: {s: value(METRICS[name], p_NS[i : i + 1]) for s, p_NS in p.items()}
                        for name, p in scored.items()},
             "losses": {s: o[i].nats / max(1, o[i].tokens) for s, o in said.items() if o[i].nats is not None},
             "parts": {name: {s: p_NS[i].tolist() for s, p_NS in p.items()} for name, p in parts.items()
                       if not METRICS[name].is_mean}}
    if item.choices:
        found["choices"] = list(item.choices)
        found["log_likelihoods"] = {s: list(o[i].choices) for s, o in said.items() if o[i].choices}
    return found | ({"tags": list(item.tags)} if item.tags else {})
