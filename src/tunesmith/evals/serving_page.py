"""The words of the report's table of serving: how fast the first token and the answer come, how many tokens, at what cost."""

from __future__ import annotations

from typing import Any


def serving_view(serving: dict[str, Any]) -> dict[str, Any]:
    """`{lede, header, rows[{name, cells[(value, interval)]}]}` of the report's `serving` (`evals.latency`)."""
    settings, memory = serving["settings"], serving["memory_bytes"]
    priced = settings["price_per_hour"] is not None
    header = ["clients", "first token, median", "95th percentile", "answer, median", "95th percentile", "tokens/s",
              "lost to adapter", "failed", *(["per million tokens"] if priced else [])]
    rows = []
    for part, name in (("base", "base"), ("tuned", "tuned")):
        for load in serving[part]:
            overhead = load.get("overhead")
            cells = [*_times(load["first_token_seconds"]), *_times(load["seconds"]), (f"{load['tokens_per_second']:,.1f}", ""),
                     ("–" if overhead is None else f"{100 * overhead:.0f}%", ""),
                     (f"{load['failed']} of {load['requests']}", "; ".join(load["errors"]))]
            cost = load["cost_per_million_tokens"]
            rows.append({"name": f"{load['clients']}, {name}",
                         "cells": cells + ([("–" if cost is None else f"{cost:,.2f}", "")] if priced else [])})
    lede = ("The real server on this machine, base and adapter in one process, asked questions of the test set by so many "
            f"clients at a time, up to {settings['new_tokens']} tokens an answer. Small print: 95% intervals of the quantiles.")
    if memory is not None:
        lede += f" Its memory peaked at {memory / 1e9:.2f} GB."
    if serving["stopped"]:
        lede += f" Not everything was measured: {serving['stopped']}."
    return {"lede": lede, "header": header, "rows": rows}


def _times(found: dict[str, Any]) -> list[tuple[str, str]]:
    cells = []
    for name in ("p50", "p95"):
        low, high = found[f"{name}_ci95"]
        ends = "" if low is None and high is None else f"{_seconds(low)} to {_seconds(high)}"
        cells.append((_seconds(found[name]), ends))
    return cells


def _seconds(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value:.3f} s" if value < 1 else f"{value:.2f} s"
