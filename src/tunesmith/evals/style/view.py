"""The style section of the report, as plain words and positions; `section.html.jinja` draws it.

Distances are drawn in multiples of the author's distance to himself: 1 is as near as he is to his own other chapters.
"""

from __future__ import annotations

from typing import Any

from tunesmith.evals.charts import is_finite, scale_from_zero, shown, span

NAMES = {"author": "author", "zero_shot": "base", "tuned": "tuned", "self": "author against himself", "other": "another author",
         "training": "training text"}
SHOWN_TEXTS = 3
"""Sample outputs that the section shows."""


def style_view(report: dict[str, Any]) -> dict[str, Any] | None:
    """What the section shows, or None for a report without one."""
    style = report.get("style")
    if not style:
        return None
    return {
        "verdict": style["verdict"],
        "n": style["n"],
        "set": style["set"].replace("_", " "),
        "words": [(NAMES[name], f"{style['words'][name]:,}") for name in ("author", "zero_shot", "tuned")],
        "decoding": _decoding(style["settings"]),
        "chart": _chart(style["distances"]),
        "distances": [_distance_row(d) for d in style["distances"].values()],
        "profile": [_profile_row(line) for line in style["profile"].values()],
        "telling": [(NAMES[system], [_telling(word) for word in words]) for system, words in style["telling"].items()],
        "told": [_told(name, style["two_sample"].get(name)) for name in ("self", "tuned", "zero_shot", "other")
                 if name in style["two_sample"]],
        "copies": [_copies(name, style["copying"][name]) for name in ("author", "zero_shot", "tuned")],
        "least_words": style["copying"]["least_words"],
        "longest": style["copying"]["tuned"]["longest"],
        "texts": [{"id": item["id"], "request": item["request"], "author": item["author"],
                   "zero_shot": item["texts"]["zero_shot"], "tuned": item["texts"]["tuned"]}
                  for item in style["items"][:SHOWN_TEXTS]],
        "votes": [_votes(against, votes) for against, votes in style.get("votes", {}).items()],
    }


def _decoding(settings: dict[str, Any]) -> str:
    if settings["temperature"] == 0:
        return "greedy"
    return f"sampled at temperature {settings['temperature']:g}, top_p {settings['top_p']:g}, seed {settings['seed']}"


def _chart(distances: dict[str, Any]) -> dict[str, Any]:
    """One row for each distance: the author's own range as a band, and a dot with its interval for each other text."""
    rows, values = [], [1.0]
    for distance in distances.values():
        unit = distance["self"]["value"]
        if not is_finite(unit) or unit <= 0:
            continue
        texts = [(name, distance["systems"][name]) for name in ("zero_shot", "tuned") if name in distance["systems"]]
        texts += [("other", distance["other"])] if "other" in distance else []
        dots = []
        for name, one in texts:
            interval = one.get("ci95") or one.get("range95")
            if is_finite(one["value"]) and all(map(is_finite, interval)):
                dots.append((name, one["value"] / unit, [end / unit for end in interval]))
        band = [end / unit for end in distance["self"]["range95"]]
        values += [x for _, value, interval in dots for x in (value, *interval)] + band
        rows.append({"label": distance["label"], "band": band, "dots": dots})
    scale = scale_from_zero(values)
    for row in rows:
        said = ", ".join(f"{NAMES[name]} {value:.1f}" for name, value, _ in row["dots"])
        row |= {"said": f"in multiples of the author against himself: {said}", "band": [scale.place(x) for x in row["band"]],
                "dots": [{"system": name, "lane": lane, "x": scale.place(value), "whisker": [scale.place(x) for x in interval]}
                         for lane, (name, value, interval) in enumerate(row["dots"])]}
    return {"rows": rows, "one": scale.place(1.0), "ticks": [(scale.place(t), f"{t:g}×") for t in scale.ticks()],
            "lanes": max((len(row["dots"]) for row in rows), default=0),
            "systems": [(name, NAMES[name]) for name in ("zero_shot", "tuned", "other")
                        if any(dot["system"] == name for row in rows for dot in row["dots"])]}


def _cell(one: dict[str, Any] | None, unit: str = "") -> tuple[str, str] | None:
    if one is None or one["value"] is None:
        return None
    return shown(one["value"], unit), span(one.get("ci95") or one.get("range95"), unit)


def _distance_row(distance: dict[str, Any]) -> dict[str, Any]:
    change = distance.get("ci95")
    call, tone = "no clear change", "unclear"
    if change and all(map(is_finite, change)):
        if change[1] < 0:
            call, tone = "closer", "good"
        elif change[0] > 0:
            call, tone = "farther", "bad"
    way = distance.get("way")
    return {"label": distance["label"], "unit": distance["unit"], "own": _cell(distance["self"]),
            "base": _cell(distance["systems"].get("zero_shot")), "tuned": _cell(distance["systems"].get("tuned")),
            "other": _cell(distance.get("other")), "call": call, "tone": tone,
            "delta": shown(distance.get("delta"), "", signed=True),
            "interval": span(change, "") if change and all(map(is_finite, change)) else "",
            "way": None if not way else f"{100 * way['value']:.0f}%",
            "way_interval": None if not way else f"{100 * way['ci95'][0]:.0f}% to {100 * way['ci95'][1]:.0f}%"}


def _profile_row(line: dict[str, Any]) -> dict[str, Any]:
    unit = line["unit"]
    return {"label": line["label"], "unit": "" if unit == "share" else unit, "note": line["note"], "sure": line["sure"],
            "cells": [(name, _number(line["systems"].get(name), unit), line["closer"] == name)
                      for name in ("author", "zero_shot", "tuned")]}


def _number(one: dict[str, Any] | None, unit: str) -> tuple[str, str] | None:
    if one is None:
        return None
    if unit == "share":
        return shown(one["value"], unit), span(one["ci95"], unit)
    return f"{one['value']:.1f}", " to ".join(f"{end:.1f}" for end in one["ci95"])


def _telling(word: dict[str, Any]) -> dict[str, str]:
    return {"word": word["word"], "often": "more" if word["apart"] > 0 else "less",
            "numbers": f"{word['own']:.1f} against {word['author']:.1f}"}


def _told(name: str, found: dict[str, Any] | None) -> dict[str, Any]:
    if found is None:
        return {"system": name, "label": NAMES[name], "measured": False}
    p = found["p_value"]
    return {"system": name, "label": NAMES[name], "measured": True, "accuracy": shown(found["accuracy"], "share"),
            "interval": span(found["ci95"], "share") + "%", "x": 100 * found["accuracy"],
            "whisker": [100 * x for x in found["ci95"]], "p_value": f"p = {p:.2g}", "pairs": found["pairs"],
            "call": "told apart" if p <= 0.05 else "not told apart"}


def _copies(name: str, found: dict[str, Any]) -> dict[str, Any]:
    longest = found["longest"]
    return {"system": name, "label": NAMES[name] + (", held out" if name == "author" else ""),
            "words": longest["words"] if longest else 0, "characters": longest["characters"] if longest else 0,
            "share": _cell({"value": found["share"], "ci95": found["ci95"]}, "share") if found["share"] else None}


def _votes(against: str, votes: dict[str, Any]) -> dict[str, Any]:
    p = votes["p_value"]
    return {"against": NAMES[against], "wins": votes["wins"], "losses": votes["losses"], "ties": votes["ties"],
            "readers": votes["readers"], "share": shown(votes["share"], "share"), "interval": span(votes["ci95"], "share"),
            "p_value": None if p is None else f"p = {p:.2g}"}
