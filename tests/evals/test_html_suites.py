"""The report of several suites: every number on the page is the report's, and nothing of an item becomes markup.

    python -m pytest tests/evals/test_html_suites.py
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
from tests.evals.page import by_id, everything, make_report, read

from tunesmith.evals.charts import difference, shown
from tunesmith.evals.compare import compare_suite
from tunesmith.evals.items import Item, Outcome, Suite
from tunesmith.evals.report_sets import overview, verdict_on
from tunesmith.evals.words import compared

SYSTEMS = ("zero_shot", "few_shot", "retrieval", "tuned", "tuned_retrieval")


def answered(right: dict[str, list[int]], tags: list[tuple[str, ...]] | None = None) -> dict[str, Any]:
    """A suite of the report, from the outcomes of each system (1: the right answer)."""
    n = len(next(iter(right.values())))
    items = [Item(f"facts.yaml:{i + 5}", [{"role": "user", "content": f"Question {i}?"}], (f"answer {i}",),
                  tags=tags[i] if tags else ()) for i in range(n)]
    said = {s: [Outcome(f"answer {i}" if hit else "no idea", True) for i, hit in enumerate(hits)] for s, hits in right.items()}
    return compare_suite(Suite("facts", "suite", items, ("exact_match",), "suites/facts.yaml: by hand (CC0)", 8), said)


def choices() -> dict[str, Any]:
    """A multiple choice suite as `compare_suite` writes it: likelihoods of choices, and no answers."""
    systems = {s: {"value": v, "ci95": [v / 2, (1 + v) / 2]} for s, v in (("zero_shot", 0.0), ("tuned", 1.0))}
    metric = {"label": "accuracy", "higher_is_better": True, "unit": "share", "systems": systems, "base": 0.0, "tuned": 1.0,
              "delta": 1.0, "ci95": [0.2, 1.0]}
    item = {"id": "quiz/1", "prompt": "Which is a bird?", "reference": "an owl", "answers": {}, "stopped": {}, "losses": {},
            "scores": {"accuracy": {"zero_shot": 0.0, "tuned": 1.0}}, "parts": {}, "choices": ["a fox", "an owl"],
            "log_likelihoods": {"zero_shot": [-4.25, -5.5], "tuned": [-7.125, -0.5]}}
    return {"kind": "regression", "source": "quiz.yaml", "n": 1, "metrics": {"accuracy": metric}, "items": [item]}


def translated() -> dict[str, Any]:
    systems = {"zero_shot": {"value": 12.34, "ci95": [10.0, 15.0]}, "few_shot": {"value": 20.0, "ci95": [18.0, 22.0]},
               "tuned": {"value": 31.25, "ci95": [28.0, 34.0]}}
    metric = {"label": "BLEU", "higher_is_better": True, "unit": "score", "systems": systems, "base": 12.34, "tuned": 31.25,
              "delta": 18.91, "ci95": [15.0, 22.0]}
    return {"kind": "suite", "source": "mt.yaml", "n": 9, "metrics": {"bleu": metric}, "items": []}


def many() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    right = {s: (rng.random(40) < p).astype(int).tolist() for s, p in zip(SYSTEMS, (0.1, 0.5, 0.9, 0.55, 0.95), strict=True)}
    report = make_report()
    report["sets"]["facts"] = answered(right, [("north", "old") if i % 2 else ("south",) for i in range(40)])
    report["sets"]["facts"]["prompt_tokens"] = dict(zip(SYSTEMS, (30.0, 210.0, 700.4, 30.0, 700.4), strict=True))
    for i, item in enumerate(report["sets"]["facts"]["items"]):
        item["passages"] = [{"id": f"docs/a.md#{i}", "score": 3.14159}]
    report["passages"] = {f"docs/a.md#{i}": f"Passage <b>{i}</b>." for i in range(40)}
    report["sets"] |= {"quiz": choices(), "translation": translated()}
    report["settings"] |= {"retrieval": {"documents": ["docs"], "top": 2, "by": "bm25"}}
    report["target"] = "exact_match"
    report["baselines"] = compared({"sets": {"facts": report["sets"]["facts"]}, "settings": report["settings"]}, "exact_match")
    report["worry"] += [b["message"] for b in report["baselines"] if b["call"] != "better"]
    return report


def overview_rows(page) -> dict[str, dict[str, str]]:
    table = next(s for s in page.all("section") if s.attrs.get("id") == "overview").all("table")[0]
    return {row.all("a")[0].text: {c.attrs["data-of"]: c.text for c in row.all("td") if "data-of" in c.attrs}
            for row in table.all("tbody")[0].all("tr")}


def test_the_page_is_well_formed_and_every_link_leads_somewhere():
    page = read(many())
    ids = [e.attrs["id"] for e in everything(page) if "id" in e.attrs]
    assert len(ids) == len(set(ids)) and len(page.all("h1")) == 1
    assert {a.attrs["href"] for a in page.all("a")} <= {"#" + i for i in ids}


def test_the_overview_has_a_line_for_each_suite_with_the_reports_numbers():
    report = many()
    rows = overview_rows(read(report))
    assert list(rows) == ["test", "hand labelled", "facts", "quiz", "translation"], "the primary set first"
    facts = report["sets"]["facts"]["metrics"]["exact_match"]
    low, high = (f"{100 * end:.1f}" for end in facts["ci95"])
    systems = facts["systems"]
    assert systems["retrieval"]["value"] > systems["few_shot"]["value"]
    best = f"{shown(systems['retrieval']['value'], 'share')} retrieval beats tuned"
    assert {k: " ".join(v.split()) for k, v in rows["facts"].items()} == {
        "items": "40", "base": shown(facts["base"], "share"), "best baseline": best, "tuned": shown(facts["tuned"], "share"),
        "change": f"{shown(facts['delta'], 'share', signed=True)} {low} to {high} better"}
    assert rows["quiz"]["best baseline"] == "–" and rows["translation"]["best baseline"].split() == ["20.0", "few-shot"]
    assert rows["translation"]["base"] == "12.3" and rows["translation"]["change"].startswith("+18.9 points")


def test_a_baseline_beats_the_fine_tune_only_by_its_interval():
    report = many()
    pairs = report["sets"]["facts"]["metrics"]["exact_match"]["pairs"]
    (pair,) = [p for p in pairs if (p["a"], p["b"]) == ("tuned", "retrieval")]
    pair["ci95"] = [pair["ci95"][0], 0.01]
    assert overview_rows(read(report))["facts"]["best baseline"].split() == ["77.5%", "retrieval"]


def test_differences_are_drawn_where_they_are_and_right_is_better():
    rng = np.random.default_rng(1)
    for _ in range(200):
        low, delta, high = sorted(rng.normal(size=3))
        reach = max(abs(low), abs(high), abs(delta))
        drawn, turned = (difference(delta, [low, high], reach, sign) for sign in (1, -1))
        assert 0 <= drawn["whisker"][0] <= drawn["x"] <= drawn["whisker"][1] <= 100
        assert (drawn["x"] > 50) == (delta > 0.0001 * reach) or abs(drawn["x"] - 50) < 0.01
        assert drawn["x"] + turned["x"] == pytest.approx(100, abs=0.02)
    assert difference(math.nan, [0, 1], 1.0, 1) is None and difference(0.5, None, 1.0, 1)["whisker"] is None


def test_one_set_has_no_overview():
    report = make_report()
    del report["sets"]["hand_labelled"]
    assert overview(report) is None and not [s for s in read(report).all("section") if s.attrs["id"] == "overview"]


def test_a_suite_that_was_not_measured_says_so():
    report = many()
    judge = {"label": "judge", "reason": "no verdicts", "fix": None}
    report["sets"]["quiz"] |= {"metrics": {}, "not_measured": {"judge": judge}}
    page = read(report)
    assert "no metric was measured" in page.all("table", "overview")[0].text
    assert "judge was not measured: no verdicts" in page.text


def test_what_is_said_of_baselines_stands_once_and_apart_from_the_worries():
    report = many()
    page = read(report)
    said = [li.all("span")[0].text for li in page.all("ul", "worth")[0].all("li")]
    assert said == [b["message"] for b in report["baselines"]] and len(said) == 4
    tones = [li.all("b")[0].attrs["class"] for li in page.all("ul", "worth")[0].all("li")]
    assert tones == [{"better": "good", "worse": "bad", "not_shown": "unclear"}[b["call"]] for b in report["baselines"]]
    worries = page.all("aside", "check")[0].text
    assert report["worry"][0] in worries and not any(message in worries for message in said)


def test_every_tag_has_its_line():
    report = many()
    table = read(report).all("details", "tags")[0].all("table")[0]
    rows = {r.all("th")[0].text: r for r in table.all("tbody")[0].all("tr")}
    assert list(rows) == ["north", "old", "south"]
    for tag, row in rows.items():
        part = report["sets"]["facts"]["tags"][tag]
        cells = {c.attrs["data-of"]: c.text for c in row.all("td") if "data-of" in c.attrs}
        assert cells["items"] == str(part["n"]) == "20"
        assert cells["tuned"] == shown(part["metrics"]["exact_match"]["tuned"], "share")
        assert verdict_on(part["metrics"]["exact_match"])[0] in cells["change"]


def test_choices_show_what_each_system_finds_likeliest():
    page = read(many())
    table = by_id(page, "quiz:quiz/1").all("table", "choices")[0]
    fox, owl = table.all("tbody")[0].all("tr")
    assert [c.text for c in fox.all("td")] == ["−4.250", "−7.125"]
    assert [c.text for c in owl.all("td")] == ["−5.500", "−0.500"]
    assert [b.text for b in table.all("b")] == ["−4.250", "−0.500"], "each one's likeliest"
    assert "right" in owl.all("th")[0].text and "right" not in fox.all("th")[0].text
    marks = [b.text for b in by_id(page, "quiz:quiz/1").all("summary")[0].all("b")]
    assert marks == ["✗ wrong", "✓ right"]


def test_passages_are_shown_as_text_with_their_scores():
    page = read(many())
    found = by_id(page, "facts:facts.yaml:5").all("details", "passages")[0]
    assert "docs/a.md#0" in found.text and "score 3.14" in found.text and found.all("div")[0].text == "Passage <b>0</b>."


def test_prompts_that_differ_in_length_are_in_the_numbers():
    report = many()
    article = next(a for a in read(report).all("article") if a.attrs["id"] == "set-facts")
    (row,) = article.all("tr", "aside-row")
    assert [c.text for c in row.all("td")] == ["30", "210", "700", "30", "700", ""]
    same = copy.deepcopy(report)
    same["sets"]["facts"]["prompt_tokens"] = dict.fromkeys(SYSTEMS, 30.0)
    assert not read(same).all("tr", "aside-row")


@pytest.mark.parametrize("value, signed, text", [
    (31.25, False, "31.2"), (18.91, True, "+18.9 points"), (-0.04, True, "0.0 points"), (100.0, False, "100.0")])
def test_scores_are_out_of_a_hundred(value, signed, text):
    assert shown(value, "score", signed=signed) == text


def test_scores_stand_on_an_axis_of_their_own_to_a_hundred():
    article = next(a for a in read(many()).all("article") if a.attrs["id"] == "set-translation")
    assert [t.text for t in article.all("text", "tick")] == ["0", "25", "50", "75", "100"]
    marks = [float(m.attrs["x"][:-1]) for m in article.all("svg", "mark")]
    assert marks == [12.34, 20.0, 31.25]


@pytest.mark.parametrize("attack", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>'])
def test_text_of_suites_never_becomes_markup(attack):
    report = many()
    tags = {e.tag for e in everything(read(report))}
    for name in ("facts", "quiz"):
        item = report["sets"][name]["items"][0]
        item |= {"id": attack, "prompt": attack, "reference": attack, "tags": [attack]}
    quiz = report["sets"]["quiz"]
    quiz["items"][0]["choices"][1] = attack
    report["passages"]["docs/a.md#0"] = attack
    report["baselines"][0]["message"] = attack
    report["sets"]["facts"]["tags"][attack] = report["sets"]["facts"]["tags"].pop("north")
    report["sets"]["facts"]["kind"] = attack
    page = read(report)
    assert {e.tag for e in everything(page)} <= tags and len(page.all("script")) == 1
    assert not any(name.startswith("on") for e in everything(page) for name in e.attrs)
