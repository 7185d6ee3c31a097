"""The evaluation report as one HTML page: no script needed to read it, nothing loaded from anywhere, prints well.

    python -m tunesmith.evals.html < report.json > report.html

Python decides every word and position, `report.html.jinja` draws them. Prompts, references and answers are untrusted
text: they reach the page only through Jinja's escaping, never as markup.

    report (JSON)  ->  views (plain dicts of strings and percentages)  ->  page
    system   zero_shot | few_shot | retrieval | tuned | tuned_retrieval: who answered

The views are in `report_sets` (suites) and `report_items` (answers), words and names in `report_words`.
"""

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from tunesmith.evals import charts
from tunesmith.evals.charts import shown
from tunesmith.evals.merge_page import merge_view
from tunesmith.evals.report_items import linked
from tunesmith.evals.report_sets import CHANGES, calibration_view, overview, set_order, set_views, systems_of
from tunesmith.evals.report_words import WORDS, duration, label, size, words, written_date
from tunesmith.evals.serving_page import serving_view
from tunesmith.evals.style.view import style_view

FACT_GROUPS = ("base", "adapter", "dataset", "settings")
CALLS = {"better": ("good", "✓"), "worse": ("bad", "✗"), "not_shown": ("unclear", "≈")}
"""Of a baseline: tone and mark."""

# Control characters become their visible pictures; half a surrogate pair cannot be written as UTF-8 at all.
VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
VISIBLE |= {0x7F: 0x2421} | dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)


def render_report(report: dict[str, Any]) -> str:
    """The page for one report. Pure: the same report gives the same bytes."""
    report = visible(report)
    sets, anchors = set_views(report)
    baselines = [(*CALLS[b["call"]], b["message"]) for b in report.get("baselines", ())]
    parents = [(*CALLS[c["call"]], c["message"]) for c in report.get("composition", {}).get("compared", ())]
    said = {message for *_, message in (*baselines, *parents)}
    return template().render(
        report=report,
        created=written_date(report["created"]),
        summary=summary_facts(report),
        worries=[linked(line, anchors) for line in report["worry"] if line not in said],
        overview=overview(report),
        baselines=baselines,
        parents=parents,
        sets=sets,
        total=sum(len(s["cases"]) for s in sets),
        changes=[(key, name, sum(s["changes"][key] for s in sets)) for key, name in CHANGES.items()],
        systems=[(key, label(key)) for key in systems_of(report["sets"].values())],
        training=training_view(report["training"]) if report.get("training", {}).get("steps") else None,
        facts=fact_groups(report),
        calibration=[(words(name), figures) for name in set_order(report)
                     if (figures := calibration_view(report["sets"][name]))],
        serving=serving_view(report["serving"]) if "serving" in report else None,
        merge=merge_view(report["merge"]) if "merge" in report else None,
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
    found = {name: report[name] for name in FACT_GROUPS if report.get(name)}
    inner = {key: value for facts in found.values() for key, value in facts.items() if isinstance(value, dict)}
    groups = [(words(name), [fact(*pair) for pair in facts.items() if pair[0] not in inner])
              for name, facts in (found | inner).items()]
    if composition := report.get("composition"):
        shown_ = {k: v for k, v in composition.items() if k not in ("parents", "compared") and v is not None}
        parents = {p["name"]: f"{p['id']}, weight {p['weight']:g}" for p in composition["parents"]}
        groups.append(("composition", [fact(*pair) for pair in (shown_ | parents).items()]))
    if (training := report.get("training")) and training["steps"]:
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
