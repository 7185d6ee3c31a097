"""The evaluation report as one HTML page: no script needed to read it, nothing loaded from anywhere, prints well.

    python -m tunesmith.evals.html < report.json > report.html

Python decides every word and position, `report.html.jinja` draws them. Prompts, references and answers are untrusted
text: they reach the page only through Jinja's escaping, never as markup.

    report (JSON)  ->  views (plain dicts of strings and percentages)  ->  page
    system   zero_shot | few_shot | tuned: who answered
    lead     the metric that says whether an answer is right: the first scored share where higher is better
    mark     what the lead metric says of one answer: right, wrong, or a share in between
"""

import difflib
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from tunesmith.evals import charts
from tunesmith.evals.charts import shown, span
from tunesmith.evals.style.view import style_view

SYSTEMS = {"zero_shot": "zero-shot", "few_shot": "few-shot", "tuned": "tuned"}
CHANGES = {"tuned-wrong": "tuned wrong", "fixed": "fixed by tuning", "broken": "broken by tuning"}
FACT_GROUPS = ("base", "adapter", "dataset", "settings")
WORDS = {"ref": "reference", "lora": "LoRA", "qlora": "QLoRA", "dtype": "precision", "bytes": "size"}

# A word, a run of spaces, or one sign. Chinese and Japanese have no spaces: each character is a word.
TOKEN = re.compile(r"\s+|[぀-ゖァ-ヿ㐀-鿿豈-﫿]|[!-/:-@\[-^`{-~]|[^\s!-/:-@\[-^`{-~぀-ゖァ-ヿ㐀-鿿豈-﫿]+")
MOST_DIFF_CELLS = 250_000
"""Words of the reference times words of the answer. Beyond it the differing middle is marked as a whole."""

# Control characters become their visible pictures; half a surrogate pair cannot be written as UTF-8 at all.
VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
VISIBLE |= {0x7F: 0x2421} | dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)


def render_report(report: dict[str, Any]) -> str:
    """The page for one report. Pure: the same report gives the same bytes."""
    report = visible(report)
    sets, anchors = set_views(report)
    return template().render(
        report=report,
        created=written_date(report["created"]),
        summary=summary_facts(report),
        worries=[linked(line, anchors) for line in report["worry"]],
        sets=sets,
        total=sum(len(s["cases"]) for s in sets),
        changes=[(key, name, sum(s["changes"][key] for s in sets)) for key, name in CHANGES.items()],
        systems=[(key, label(key)) for key in systems_of(report["sets"].values())],
        training=training_view(report["training"]) if report.get("training") else None,
        facts=fact_groups(report),
        style=style_view(report),
    )


@cache
def template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # always: select_autoescape looks at file endings and would leave .jinja unescaped
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja")


def visible(value: Any) -> Any:
    """The same document with control characters that a reader can see and that every browser keeps."""
    if isinstance(value, str):
        return value.translate(VISIBLE)
    if isinstance(value, list):
        return [visible(v) for v in value]
    if isinstance(value, dict):
        return {visible(k): visible(v) for k, v in value.items()}
    return value


# ---- words -----------------------------------------------------------------------------------------------------------


def size(count: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def words(key: str) -> str:
    return " ".join(WORDS.get(part, part) for part in key.split("_"))


def label(system: str) -> str:
    return SYSTEMS.get(system, words(system))


def written_date(created: str) -> str:
    moment = datetime.fromisoformat(created).astimezone(UTC)
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


# ---- sets and metrics ------------------------------------------------------------------------------------------------


def systems_of(sets: Any) -> list[str]:
    """Every system that was measured, in the order zero-shot, few-shot, tuned."""
    found = {name for one_set in sets for metric in one_set["metrics"].values() for name in metric["systems"]}
    found |= {name for one_set in sets for item in one_set["items"] for name in item["answers"]}
    return [name for name in SYSTEMS if name in found] + sorted(found - SYSTEMS.keys())


def set_order(report: dict[str, Any]) -> list[str]:
    return sorted(report["sets"], key=lambda name: name != report["primary"])


def set_views(report: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Every set as the page shows it, and the anchor of each item id (of the first set that has the id)."""
    scales = charts.metric_scales(report["sets"])
    taken: Counter[str] = Counter()
    anchors: dict[str, str] = {}
    views = []
    for name in set_order(report):
        one_set = report["sets"][name]
        systems = systems_of([one_set])
        lead = lead_metric(one_set)
        cases = []
        shared = shared_opening([item["prompt"] for item in one_set["items"]])
        for item in one_set["items"]:
            anchor = anchor_for(name, item["id"], taken)
            anchors.setdefault(item["id"], anchor)
            opening = " ".join(item["prompt"][shared:][:400].split())[:160]
            cases.append(case_view(item, one_set["metrics"], systems, lead) | {"anchor": anchor, "opening": opening})
        views.append(
            {
                "key": name,
                "name": words(name),
                "primary": name == report["primary"],
                "source": one_set["source"],
                "n": one_set["n"],
                "note": one_set.get("note"),
                "systems": [(key, label(key)) for key in systems],
                "figures": figures(one_set["metrics"], systems, scales),
                "rows": [metric_row(metric, systems) for metric in one_set["metrics"].values()],
                "lead": one_set["metrics"][lead]["label"] if lead else None,
                "cases": cases,
                "changes": {key: sum(key in case["changes"] for case in cases) for key in CHANGES},
            }
        )
    return views, anchors


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


def metric_label(metric: dict[str, Any]) -> str:
    return f"{metric['label']}, nats" if metric["unit"] == "nats" else metric["label"]


def metric_row(metric: dict[str, Any], systems: list[str]) -> dict[str, Any]:
    """One line of the numbers table. The change is called better or worse only when its interval leaves out zero."""
    unit = metric["unit"]
    scores = [metric["systems"].get(system) for system in systems]
    cells = [(shown(s["value"], unit), span(s.get("ci95"), unit)) if s else None for s in scores]
    delta, interval, p_value = metric.get("delta"), metric.get("ci95"), metric.get("p_value")
    call, tone = "no clear change", "unclear"
    if interval is None or not all(map(charts.is_finite, interval)):
        call = "no interval"
    elif interval[0] > 0 or interval[1] < 0:
        tone = "good" if (interval[0] > 0) == metric["higher_is_better"] else "bad"
        call = "better" if tone == "good" else "worse"
    return {
        "label": metric_label(metric),
        "cells": cells,
        "delta": shown(delta, unit, signed=True),
        "interval": span(interval, unit),
        "call": call,
        "tone": tone,
        "p_value": None if p_value is None else "p < 0.0001" if p_value < 0.0001 else f"p = {p_value:.2g}",
    }


# ---- items -----------------------------------------------------------------------------------------------------------


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


def case_view(item: dict[str, Any], metrics: dict[str, Any], systems: list[str], lead: str | None) -> dict[str, Any]:
    scores = item["scores"].get(lead, {}) if lead else {}
    answers = []
    for system in systems:
        if system not in item["answers"]:
            continue
        pieces = diff_words(item["reference"], item["answers"][system])
        kept = sum(len(text) for kind, text in pieces if kind == "same")
        unlike = 2 * kept < len(item["reference"])
        if unlike:  # listing what is missing would only repeat the reference
            pieces = [piece for piece in pieces if piece[0] != "missing"]
        answers.append(
            {
                "system": system,
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
        )
    tuned, base = scores.get("tuned"), scores.get("zero_shot")
    changes = []
    if tuned is not None:
        changes = ["tuned-wrong"] * (tuned < 1)
        if base is not None:
            changes += ["fixed"] * (base < 1 <= tuned) + ["broken"] * (tuned < 1 <= base)
    return {
        "id": item["id"],
        "prompt": item["prompt"],
        "reference": item["reference"],
        "answers": answers,
        "changes": changes,
    }


def mark(score: float | None) -> tuple[str, str] | None:
    """(tone, text), or nothing where the lead metric did not score the answer."""
    if score is None:
        return None
    return ("good", "right") if score >= 1 else ("bad", "wrong") if score == 0 else ("bad", shown(score, "share"))


def diff_words(reference: str, answer: str) -> list[tuple[str, str]]:
    """The answer in pieces: same, extra (only in the answer), missing (only in the reference).

    same + extra, joined, is the answer; same + missing is the reference. Spaces between two changed words count as
    changed, so that a replaced phrase is one mark and not one for each word.
    """
    ours, theirs = TOKEN.findall(reference), TOKEN.findall(answer)
    if len(ours) * len(theirs) <= MOST_DIFF_CELLS:
        opcodes = difflib.SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes()
    else:
        opcodes = ends_only(ours, theirs)
    pieces: list[tuple[str, str]] = []
    missing = extra = ""
    for n, (tag, i, i_end, j, j_end) in enumerate(opcodes):
        same = "".join(ours[i:i_end])
        if tag != "equal":
            missing, extra = missing + same, extra + "".join(theirs[j:j_end])
        elif same.isspace() and (missing or extra) and n + 1 < len(opcodes):
            missing, extra = missing + same, extra + same
        else:
            pieces += [("missing", missing), ("extra", extra), ("same", same)]
            missing = extra = ""
    pieces += [("missing", missing), ("extra", extra)]
    return [piece for piece in pieces if piece[1]]


def ends_only(ours: list[str], theirs: list[str]) -> list[tuple[str, int, int, int, int]]:
    """Opcodes that find only the common beginning and end: linear, for texts too long to compare word by word."""
    head = common_start(ours, theirs)
    tail = common_start(ours[: head - len(ours) - 1 : -1], theirs[: head - len(theirs) - 1 : -1])
    i, j = len(ours) - tail, len(theirs) - tail
    codes = [("equal", 0, head, 0, head), ("replace", head, i, head, j), ("equal", i, len(ours), j, len(theirs))]
    return [code for code in codes if code[1] < code[2] or code[3] < code[4]]


def common_start(one: Sequence[str], other: Sequence[str]) -> int:
    """How many leading elements two sequences share."""
    return next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


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


# ---- facts and training ----------------------------------------------------------------------------------------------


def summary_facts(report: dict[str, Any]) -> list[str]:
    """The line under the verdict: what was tuned, on what, measured on how much."""
    facts = [report["base"]["ref"]]
    if adapter := report.get("adapter"):
        facts.append(words(adapter["method"]) + (f", rank {adapter['rank']}" if adapter.get("rank") else ""))
    if dataset := report.get("dataset"):
        facts.append(f"{dataset['used_rows']:,} training rows used")
    return facts + [f"{report['sets'][name]['n']:,} {words(name)} items" for name in set_order(report)]


def fact_groups(report: dict[str, Any]) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """(title, [(label, value, is it code)]): every key that the report carries, known to this page or not."""
    groups = [(name, [fact(*pair) for pair in report[name].items()]) for name in FACT_GROUPS if report.get(name)]
    if training := report.get("training"):
        run = {"steps": len(training["steps"])} | {k: v for k, v in training.items() if k not in ("steps", "evals")}
        groups.append(("training", [fact(*pair) for pair in run.items()]))
    return groups


def fact(key: str, value: Any) -> tuple[str, str, bool]:
    if isinstance(value, str):
        return words(key), WORDS.get(value, value), key in ("id", "ref") or key.endswith(("digest", "fingerprint"))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return words(key), json.dumps(value, ensure_ascii=False), False
    if key.endswith("bytes"):
        return words(key.removesuffix("_bytes")), size(value), False
    if key == "seconds":
        return "time", duration(value), False
    return words(key), str(value) if key == "seed" else f"{round(value, 4):,}", False


def training_view(training: dict[str, Any]) -> dict[str, Any]:
    figure = charts.training_figure(training)
    figure["loss_ticks"] = [(y, charts.tick_label(tick, "loss")) for y, tick in figure["loss_ticks"]]
    for strip in figure["strips"]:
        strip |= {"label": words(strip["key"]), "highest": f"{strip['highest']:.3g}", "last": f"{strip['last']:.3g}"}
    return figure | {
        key: first_to_last(training[rows]) for key, rows in (("train_span", "steps"), ("held_span", "evals"))
    }


def first_to_last(rows: list[dict[str, Any]]) -> str:
    ends = [shown(row["loss"], "nats") for row in (rows[:1] + rows[1:][-1:])]
    return " → ".join(ends) or "not measured"


if __name__ == "__main__":
    sys.stdout.write(render_report(json.load(sys.stdin)))
