"""From answers and likelihoods of each system to metrics with intervals, per item and per set."""

from __future__ import annotations

import numpy as np

from tunesmith.data.rows import Row
from tunesmith.errors import DataError
from tunesmith.evals.metrics import METRICS
from tunesmith.evals.statistics import mean_interval, paired_bootstrap
from tunesmith.recipe.schema import Eval

BASE, TUNED = "zero_shot", "tuned"


def measurable(name: str, rows: list[Row], config: Eval) -> None:
    """Raises DataError when test set `name` has no rows, or references that a metric cannot be computed on."""
    if not rows:
        raise DataError(f"test set {name!r} has no rows", fix="see `tunesmith data audit`, or raise data.max_tokens")
    for metric in config.metrics:
        score = METRICS[metric].score
        for row in rows if score else ():
            try:
                score(row.answer, row.answer)
            except ValueError as error:
                raise DataError(f"metric {metric} cannot be computed on {name!r}", where=row.where, why=str(error),
                                fix="take it out of eval.metrics") from error


def compare_set(rows: list[Row], results: dict[str, dict], config: Eval) -> dict:
    """One test set of the report: `n`, `metrics`, `items`.

    `results[system]` has `answers` [(text, stopped)] and, except for few_shot, `losses` ([nats], [tokens]) by row.
    """
    scores = {name: _scores(name, rows, results) for name in config.metrics if METRICS[name].score}
    metrics = {}
    for name in config.metrics:
        metrics[name] = _by_score(name, scores[name]) if name in scores else _by_likelihood(name, results)
    return {"n": len(rows), "metrics": metrics, "items": [_item(i, row, results, scores) for i, row in enumerate(rows)]}


def _scores(name: str, rows: list[Row], results: dict[str, dict]) -> dict[str, list[float]]:
    score = METRICS[name].score
    return {system: [score(text, row.answer) for (text, _), row in zip(r["answers"], rows, strict=True)]
            for system, r in results.items()}


def _by_score(name: str, scores: dict[str, list[float]]) -> dict:
    base, tuned = np.array(scores[BASE]), np.array(scores[TUNED])
    n = len(base)
    low, high = paired_bootstrap(lambda w_RN: w_RN @ (tuned - base) / n, n)
    systems = {s: {"value": float(np.mean(v)), "ci95": list(mean_interval(v))} for s, v in scores.items()}
    return _metric(name, systems, (low, high))


def _by_likelihood(name: str, results: dict[str, dict]) -> dict:
    """Loss per token over the whole set, so long rows weigh more; the bootstrap resamples rows."""
    losses = {s: tuple(np.array(x, dtype=float) for x in r["losses"]) for s, r in results.items() if "losses" in r}
    n = len(losses[BASE][0])

    def value(system: str):
        nats, tokens = losses[system]

        def statistic(w_RN: np.ndarray) -> np.ndarray:
            mean = (w_RN @ nats) / (w_RN @ tokens)
            return np.exp(mean) if name == "perplexity" else mean

        return statistic

    once = np.ones((1, n))
    systems = {s: {"value": float(value(s)(once)[0]), "ci95": list(paired_bootstrap(value(s), n))} for s in losses}
    difference = paired_bootstrap(lambda w_RN: value(TUNED)(w_RN) - value(BASE)(w_RN), n)
    return _metric(name, systems, difference)


def _metric(name: str, systems: dict[str, dict], ci95: tuple[float, float]) -> dict:
    m = METRICS[name]
    base, tuned = systems[BASE]["value"], systems[TUNED]["value"]
    return {"label": m.label, "higher_is_better": m.higher_is_better, "unit": m.unit, "systems": systems,
            "base": base, "tuned": tuned, "delta": tuned - base, "ci95": list(ci95)}


def _item(i: int, row: Row, results: dict[str, dict], scores: dict[str, dict[str, list[float]]]) -> dict:
    answered = {s: r["answers"][i] for s, r in results.items() if "answers" in r}
    return {"id": row.where, "prompt": row.prompt, "reference": row.answer,
            "answers": {s: text for s, (text, _) in answered.items()},
            "stopped": {s: stopped for s, (_, stopped) in answered.items()},
            "scores": {name: {s: v[i] for s, v in by.items()} for name, by in scores.items()},
            "losses": {s: r["losses"][0][i] / max(1, r["losses"][1][i]) for s, r in results.items() if "losses" in r}}
