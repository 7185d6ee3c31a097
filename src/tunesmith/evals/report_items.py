"""Each item of the report as its page shows it: marks, answers with their differences, choices, passages.

    lead     the metric that says whether an answer is right: the first scored share where higher is better
    mark     what the lead metric says of one answer: right, wrong, or a share in between
"""

import re
from collections import Counter
from typing import Any
from urllib.parse import quote

from tunesmith.evals.charts import is_finite, shown
from tunesmith.evals.report_diff import common_start, diff_words
from tunesmith.evals.report_words import label


def lead_metric(one_set: dict[str, Any]) -> str | None:
    for name, metric in one_set["metrics"].items():
        scored = any(name in item["scores"] for item in one_set["items"])
        if metric["unit"] == "share" and metric["higher_is_better"] and scored:
            return name
    return None


def anchor_for(set_name: str, item_id: str, taken: Counter[str]) -> str:
    anchor = re.sub(r"\s+", "-", f"{set_name}:{item_id}")
    taken[anchor] += 1
    return anchor if taken[anchor] == 1 else anchor_for(set_name, f"{item_id}~{taken[anchor]}", taken)


def shared_opening(prompts: list[str]) -> int:
    """Length of the instruction that every prompt begins with: a list that repeats it on each line says nothing."""
    if len(set(prompts)) < 2:
        return 0
    common = prompts[0][: common_start(min(prompts), max(prompts))]
    return len(common) - len(re.split(r"(?<=\s)", common)[-1]) if len(common) >= 20 else 0


def case_view(item: dict[str, Any], metrics: dict[str, Any], systems: list[str], lead: str | None,
              passages: dict[str, str]) -> dict[str, Any]:
    scores = item["scores"].get(lead, {}) if lead else {}
    return {
        "id": item["id"],
        "prompt": item["prompt"],
        "reference": item["reference"],
        "marks": [(label(s), mark(scores.get(s))) for s in systems if s in item["answers"] or s in scores],
        "answers": [answer_view(item, s, metrics, scores) for s in systems if s in item["answers"]],
        "changes": changes(scores.get("tuned"), scores.get("zero_shot")),
        "tags": item.get("tags", []),
        "choices": choices_view(item, systems),
        "passages": [(p["id"], f"{p['score']:.2f}", passages.get(p["id"], "")) for p in item.get("passages", ())],
    }


def changes(tuned: float | None, base: float | None) -> list[str]:
    """Which of the page's filters an item is in."""
    if tuned is None:
        return []
    found = ["tuned-wrong"] * (tuned < 1)
    return found if base is None else found + ["fixed"] * (base < 1 <= tuned) + ["broken"] * (tuned < 1 <= base)


def answer_view(item: dict[str, Any], system: str, metrics: dict[str, Any], scores: dict[str, float]) -> dict[str, Any]:
    pieces = diff_words(item["reference"], item["answers"][system]) if item["reference"] else [
        ("same", text) for text in [item["answers"][system]] if text]
    kept = sum(len(text) for kind, text in pieces if kind == "same")
    unlike = 2 * kept < len(item["reference"])
    if unlike:  # listing what is missing would only repeat the reference
        pieces = [piece for piece in pieces if piece[0] != "missing"]
    return {
        "label": label(system),
        "pieces": pieces,
        "unlike": unlike,
        "mark": mark(scores.get(system)),
        "hit_limit": not item["stopped"].get(system, True),
        "scores": [
            (metrics[name]["label"], shown(by_system[system], metrics[name]["unit"]))
            for name, by_system in item["scores"].items()
            if name in metrics and system in by_system
        ],
    }


def choices_view(item: dict[str, Any], systems: list[str]) -> dict[str, Any] | None:
    """A row for each choice: how likely each system finds it, and which it finds likeliest."""
    if not item.get("choices"):
        return None
    asked = [s for s in systems if s in item["log_likelihoods"]]
    rows = []
    for at, choice in enumerate(item["choices"]):
        cells = []
        for system in asked:
            nats = item["log_likelihoods"][system]
            cells.append((shown(nats[at], "nats"), is_finite(nats[at]) and nats[at] == max(filter(is_finite, nats))))
        rows.append((choice, choice == item["reference"], cells))
    return {"systems": [label(s) for s in asked], "rows": rows}


def mark(score: float | None) -> tuple[str, str] | None:
    """(tone, text), or nothing where the lead metric did not score the answer."""
    if score is None:
        return None
    return ("good", "right") if score >= 1 else ("bad", "wrong") if score == 0 else ("bad", shown(score, "share"))


def linked(line: str, anchors: dict[str, str]) -> list[tuple[str, str | None]]:
    """A line in pieces (text, link): item ids become links, also where `:90` follows `data/test.jsonl:12`."""
    pieces: list[tuple[str, str | None]] = []
    source = ""
    for text in re.split(r"([\s(),;]+|\.(?=\s|$))", line):
        item_id = source + text if text.startswith(":") else text
        if item_id in anchors:
            source = item_id.rpartition(":")[0]
        pieces.append((text, "#" + quote(anchors[item_id], safe="/:~") if item_id in anchors else None))
    return [piece for piece in pieces if piece[0]]
