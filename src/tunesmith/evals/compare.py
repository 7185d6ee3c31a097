"""From what each system said to metrics with intervals, per item and per suite."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tunesmith.errors import DataError
from tunesmith.evals.items import Item, Outcome, Suite
from tunesmith.evals.metrics import METRICS, Metric
from tunesmith.evals.statistics import mean_interval, paired_bootstrap

BASE, TUNED = "zero_shot", "tuned"
PAIRS = ((TUNED, "few_shot"), (TUNED, "retrieval"), ("tuned_retrieval", "retrieval"), ("tuned_retrieval", TUNED))
"""Systems that are compared beside tuned and base, the first minus the second: what they say is in `evals.words`."""


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


def compare_suite(suite: Suite, said: dict[str, list[Outcome]]) -> dict:
    """One suite of the report: `kind`, `source`, `n`, `metrics`, `items`; `tags` too if items have any.

    `said[system]` has an outcome for each item. A metric has a value for each system that was measured with what it needs.
    """
    for name in suite.metrics:
        if METRICS[name].prepare:
            for outcomes in said.values():
                METRICS[name].prepare(list(zip(suite.items, outcomes, strict=True)))
    parts = {name: parts_of(METRICS[name], suite.items, said) for name in suite.metrics}
    tags = sorted({tag for item in suite.items for tag in item.tags})
    found = {"kind": suite.kind, "source": suite.source, "n": len(suite.items),
             "metrics": {name: measured(name, p) for name, p in parts.items()}}
    if tags:
        found["tags"] = {tag: _of_tag(tag, suite.items, parts) for tag in tags}
    return found | {"items": [_item(i, item, said, parts) for i, item in enumerate(suite.items)]}


def parts_of(metric: Metric, items: Sequence[Item], said: dict[str, list[Outcome]]) -> dict[str, np.ndarray]:
    """[N, S] of each system that was measured with what the metric needs."""
    return {system: np.array([metric.parts(o, item) for o, item in zip(outcomes, items, strict=True)], dtype=float)
            for system, outcomes in said.items() if _has(outcomes[0], metric)}


def measured(name: str, parts: dict[str, np.ndarray]) -> dict:
    """One metric of the report: each system's value and 95% interval, and the difference of tuned to base, item by item."""
    metric, n = METRICS[name], len(parts[BASE])
    systems = {s: {"value": value(metric, p_NS), "ci95": list(interval(metric, p_NS))} for s, p_NS in parts.items()}
    low, high = paired_bootstrap(
        lambda w_RN: metric.value(w_RN @ parts[TUNED]) - metric.value(w_RN @ parts[BASE]), n)
    base, tuned = systems[BASE]["value"], systems[TUNED]["value"]
    found = {"label": metric.label, "higher_is_better": metric.higher_is_better, "unit": metric.unit, "systems": systems,
             "base": base, "tuned": tuned, "delta": tuned - base, "ci95": [low, high]}
    pairs = [difference(metric, parts, a, b) for a, b in PAIRS if a in parts and b in parts]
    return found | ({"pairs": pairs} if pairs else {})


def difference(metric: Metric, parts: dict[str, np.ndarray], a: str, b: str) -> dict:
    """`{a, b, delta, ci95}`: what system a has more than system b, item by item."""
    interval = paired_bootstrap(lambda w_RN: metric.value(w_RN @ parts[a]) - metric.value(w_RN @ parts[b]), len(parts[a]))
    return {"a": a, "b": b, "delta": value(metric, parts[a]) - value(metric, parts[b]), "ci95": list(interval)}


def value(metric: Metric, parts_NS: np.ndarray) -> float:
    return float(metric.value(parts_NS.sum(0, keepdims=True))[0])


def interval(metric: Metric, parts_NS: np.ndarray) -> tuple[float, float]:
    """95% interval of one system's value; Wilson's for shares of zeros and ones, which is never of zero width."""
    if metric.is_mean:
        return mean_interval(parts_NS[:, 0])
    return paired_bootstrap(lambda w_RN: metric.value(w_RN @ parts_NS), len(parts_NS))


def _of_tag(tag: str, items: Sequence[Item], parts: dict[str, dict[str, np.ndarray]]) -> dict:
    rows = np.array([tag in item.tags for item in items])
    return {"n": int(rows.sum()),
            "metrics": {name: measured(name, {s: p_NS[rows] for s, p_NS in p.items()}) for name, p in parts.items()}}


def _has(outcome: Outcome, metric: Metric) -> bool:
    return {"answer": outcome.text is not None, "likelihood": outcome.nats is not None,
            "choices": bool(outcome.choices)}[metric.needs]


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
