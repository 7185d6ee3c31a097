"""The HTML report: it says what the report says and no more, and no answer can become markup.

pytest tests/evals/test_html.py
"""

import copy
import math
import random

import pytest
from tests.evals.page import (
    SYSTEMS,
    Element,
    answer_boxes,
    by_id,
    everything,
    make_report,
    make_training,
    read,
    with_answer,
)

from tunesmith.evals.charts import Scale, curve, scale_from_zero, shown, smooth, thin
from tunesmith.evals.html import render_report
from tunesmith.evals.report_diff import diff_words
from tunesmith.evals.report_items import linked


def edge_cases() -> dict[str, dict]:
    cases = {name: make_report() for name in ("whole", "base only", "no items", "no sets", "one step", "no steps")}
    del cases["base only"]["training"]
    for one_set in cases["base only"]["sets"].values():
        for scored in [*one_set["metrics"].values()]:
            scored["systems"].pop("few_shot", None)
        for item in one_set["items"]:
            del item["answers"]["few_shot"], item["stopped"]["few_shot"]
    cases["no items"]["sets"]["test"] |= {"items": [], "n": 0, "metrics": {}}
    cases["no sets"] |= {"sets": {}, "worry": []}
    cases["one step"]["training"] = make_training(1) | {"evals": []}
    cases["no steps"]["training"] |= {"steps": [], "evals": []}
    return cases


# ---- the page as a document ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", edge_cases())
def test_every_tag_is_closed_ids_are_unique_and_there_is_one_h1(name):
    page = read(edge_cases()[name])
    ids = [e.attrs["id"] for e in everything(page) if "id" in e.attrs]
    assert len(ids) == len(set(ids))
    assert [h.text for h in page.all("h1")] == ["addresses evaluation report"]
    links = [a.attrs["href"] for a in page.all("a")]
    assert set(links) <= {"#" + i for i in ids}, "every link leads somewhere"


@pytest.mark.parametrize("name", edge_cases())
def test_every_drawn_position_is_a_number_inside_its_figure(name):
    for svg in read(edge_cases()[name]).all("svg"):
        for e in everything(svg):
            for key in ("x", "x1", "x2", "cx", "cy", "y1"):
                if (e.attrs.get(key) or "").endswith("%"):
                    assert 0 <= float(e.attrs[key][:-1]) <= 100
            for pair in (e.attrs.get("points") or "").split():
                assert all(0 <= float(number) <= 100 for number in pair.split(","))


def test_page_loads_nothing_and_forbids_loading():
    page = render_report(make_report())
    assert not any(word in page for word in ("http://", "https://", "src=", "@import", "url(", "<link"))
    assert "default-src 'none'" in page


def test_same_report_gives_same_bytes_and_stays_as_it_was():
    report = make_report()
    before = copy.deepcopy(report)
    assert render_report(report) == render_report(copy.deepcopy(before))
    assert report == before


def test_verdict_worries_and_facts_are_on_the_page():
    page = read(make_report())
    assert page.all("p", "verdict")[0].text == make_report()["verdict"]
    assert page.all("aside", "check")[0].all("li")[0].text == make_report()["worry"][0]
    facts = {row.all("dt")[0].text: row.all("dd")[0].text for g in page.all("div", "group") for row in g.all("div")}
    assert facts["parameters"] == "134,515,008"
    assert facts["size"] == "19.6 MB"
    assert facts["peak memory"] == "4.0 GB"
    assert facts["time"] == "4 min 22 s"
    assert facts["tokens per second"] == "290.1"
    assert facts["seed"] == "1234"
    assert facts["template fingerprint"] == make_report()["dataset"]["template_fingerprint"]


def test_no_worry_no_block():
    assert not read(make_report() | {"worry": []}).all("aside")


# ---- untrusted text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attack", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</textarea></details>"]
)
def test_text_from_outside_never_becomes_markup(attack):
    tags = {e.tag for e in everything(read(make_report()))}
    report = make_report() | {"name": attack, "verdict": attack, "worry": [attack], "run_id": attack}
    report["base"]["ref"] = attack
    report["sets"]["test"] |= {"source": attack, "note": attack}
    report["sets"]["test"]["metrics"]["exact_match"]["label"] = attack
    item = report["sets"]["test"]["items"][3]
    item |= {"id": attack, "prompt": attack, "reference": attack, "answers": dict.fromkeys(SYSTEMS, attack)}
    page = read(report)
    assert {e.tag for e in everything(page)} <= tags
    assert len(page.all("script")) == 1
    assert not any(name.startswith("on") for e in everything(page) for name in e.attrs)
    assert page.all("p", "verdict")[0].text == attack


def test_script_in_an_answer_is_escaped_and_readable():
    page = render_report(with_answer("<script>alert(1)</script>", "<script>alert(1)</script>"))
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_control_characters_are_shown_and_the_page_is_valid_utf8():
    box = answer_boxes(read(with_answer("a\x00b\x1b[31m\r\n\ud800", "a")), "test:data/test.jsonl:1")["tuned"]
    assert box.all("div", "text")[0].text == "a␀b␛[31m␍\n\ufffd"
    render_report(with_answer("\ud800")).encode("utf-8")


def test_right_to_left_text_finds_its_own_direction():
    page = read(with_answer("شارع الملك فهد ١٢", "شارع الملك فهد ١٣"))
    box = answer_boxes(page, "test:data/test.jsonl:1")["tuned"].all("div", "text")[0]
    assert box.attrs["dir"] == "auto"
    assert [m.text for m in box.all("mark")] == ["١٢"] and [d.text for d in box.all("del")] == ["١٣"]


# ---- numbers ---------------------------------------------------------------------------------------------------------


def table_rows(page: Element, set_number: int) -> dict[str, list[list[str]]]:
    table = page.all("article", "set")[set_number].all("table")[0]
    return {
        row.all("th")[0].text: [[part.text for part in cell.all("b") + cell.all("small")] for cell in row.all("td")]
        for row in table.all("tbody")[0].all("tr")
    }


def test_table_shows_the_numbers_that_were_given():
    report = make_report()
    for set_number, name in enumerate(["test", "hand_labelled"]):  # the primary set first
        metrics, rows = report["sets"][name]["metrics"], table_rows(read(report), set_number)
        for key, label in (("exact_match", "exact match"), ("json_f1", "JSON F1")):
            for system, cell in zip(SYSTEMS, rows[label], strict=False):
                low, high = metrics[key]["systems"][system]["ci95"]
                assert cell == [
                    f"{100 * metrics[key]['systems'][system]['value']:.1f}%",
                    f"{100 * low:.1f} to {100 * high:.1f}",
                ]
            low, high = metrics[key]["ci95"]
            change = [
                f"{100 * metrics[key]['delta']:+.1f} points",
                f"{100 * low:.1f} to {100 * high:.1f}",
                "better, p = 0.0001",
            ]
            assert rows[label][3] == change
        loss = metrics["loss"]
        assert rows["loss, nats"][0][0] == f"{loss['base']:.3f}" and rows["loss, nats"][2][0] == f"{loss['tuned']:.3f}"
        assert rows["loss, nats"][1] == []
        assert rows["loss, nats"][3][0] == f"{loss['delta']:.3f}".replace("-", "−")
        assert rows["loss, nats"][3][2] == "better"


def test_dots_stand_at_their_values_and_every_set_has_the_same_scale():
    report = make_report()
    sets = read(report).all("article", "set")
    ticks = [[t.text for t in s.all("text", "tick")] for s in sets]
    assert ticks[0] == ticks[1] and ticks[0][:5] == ["0%", "25%", "50%", "75%", "100%"]
    marks = [float(m.attrs["x"][:-1]) for m in sets[0].all("svg", "mark")][:3]
    exact = report["sets"]["test"]["metrics"]["exact_match"]["systems"]
    assert marks == [pytest.approx(100 * exact[s]["value"], abs=0.01) for s in SYSTEMS]


@pytest.mark.parametrize(
    ("interval", "higher_is_better", "call"),
    [
        ([0.01, 0.2], True, "better"),
        ([0.01, 0.2], False, "worse"),
        ([-0.2, -0.01], True, "worse"),
        ([-0.2, -0.01], False, "better"),
        ([-0.01, 0.2], True, "no clear change"),
        ([0.0, 0.0], True, "no clear change"),
        ([math.nan, 0.2], True, "no interval"),
        (None, True, "no interval"),
    ],
)
def test_a_change_is_named_only_when_its_interval_leaves_out_zero(interval, higher_is_better, call):
    report = make_report()
    metric = report["sets"]["test"]["metrics"]["exact_match"]
    metric |= {"ci95": interval, "higher_is_better": higher_is_better}
    del metric["p_value"]
    assert table_rows(read(report), 0)["exact match"][3][-1] == call


@pytest.mark.parametrize(
    ("value", "unit", "signed", "text"),
    [
        (0.914, "share", False, "91.4%"),
        (0.914, "share", True, "+91.4 points"),
        (-0.03, "share", True, "−3.0 points"),
        (-0.0001, "share", True, "0.0 points"),
        (2.3144, "nats", False, "2.314"),
        (0.00042, "nats", False, "0.00042"),
        (12345.6, "ratio", False, "12,346"),
        (-1.5, "nats", True, "−1.500"),
        (None, "share", False, "–"),
        (math.nan, "nats", False, "NaN"),
        (math.inf, "ratio", False, "∞"),
    ],
)
def test_numbers_are_written_for_people(value, unit, signed, text):
    assert shown(value, unit, signed=signed) == text


def test_negative_and_zero_width_and_missing_values_are_drawn_or_left_out():
    report = make_report()
    metrics = report["sets"]["test"]["metrics"]
    metrics["exact_match"]["systems"]["few_shot"] = {"value": math.nan, "ci95": [math.nan, math.nan]}
    metrics["json_f1"]["systems"]["zero_shot"] = {"value": 0.0, "ci95": [0.0, 0.0]}
    metrics["loss"]["systems"] |= {"zero_shot": {"value": -0.4, "ci95": [-0.9, 0.1]}, "tuned": {"value": None}}
    page = read(report)
    assert table_rows(page, 0)["exact match"][1][0] == "NaN"
    assert table_rows(page, 0)["loss, nats"][0] == ["−0.400", "−0.900 to 0.100"]
    assert "nan" not in "".join(str(sorted(e.attrs.items())) for s in page.all("svg") for e in everything(s))
    assert len(page.all("article", "set")[0].all("svg", "mark")) == 8, "ten systems were measured, two have no value"


def test_absent_few_shot_and_training_leave_no_trace():
    page = read(edge_cases()["base only"])
    (_overview, results, _facts, answers) = page.all("section")
    assert "few-shot" not in results.text + answers.text
    assert "Training" not in page.all("nav")[0].text


# ---- curves ----------------------------------------------------------------------------------------------------------


def test_loss_curve_has_a_point_for_each_step_and_each_evaluation():
    section = by_id(read(make_report()), "training")
    assert [len(p.attrs["points"].split()) for p in section.all("polyline", "raw")] == [132]
    assert len(section.all("figure")[0].all("circle", "held-point")) == 7


def test_steps_without_finite_loss_are_gaps_and_are_counted():
    report = make_report()
    report["training"]["steps"][50]["loss"] = math.nan
    report["training"]["steps"][51]["loss"] = None
    section = by_id(read(report), "training")
    assert [len(p.attrs["points"].split()) for p in section.all("polyline", "raw")] == [50, 80]
    assert "2 steps have no finite loss" in section.text


def test_scales_contain_zero_and_all_values():
    assert scale_from_zero([0.3, 2.3]) == Scale(0.0, 3.0)
    assert scale_from_zero([0.2, 0.9], at_least=1.0).ticks() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert scale_from_zero([-0.4, 0.9], at_least=1.0).low <= -0.4
    assert scale_from_zero([]) == Scale(0.0, 1.0)
    assert curve([(3, 1.0)], Scale(3, 3), Scale(0, 2)) == [[(50.0, 50.0)]]


def test_smoothing_keeps_a_straight_line_and_thinning_keeps_the_spike():
    assert smooth([float(i) for i in range(9)], 5) == [float(i) for i in range(9)]
    points = [(step, 9.0 if step == 4321 else 1.0) for step in range(10_000)]
    assert (4321, 9.0) in thin(points) and len(thin(points)) <= 802


# ---- items -----------------------------------------------------------------------------------------------------------


def test_highlights_stand_only_where_the_text_differs():
    report = make_report()
    page = read(report)
    for item in report["sets"]["test"]["items"]:
        boxes = answer_boxes(page, f"test:{item['id']}")
        for system, label in zip(SYSTEMS, ("zero-shot", "few-shot", "tuned"), strict=True):
            box = boxes[label].all("div", "text")[0]
            differs = item["answers"][system] != item["reference"]
            assert bool(box.all("mark") + box.all("del")) == differs
            assert (
                "".join(c if isinstance(c, str) else c.text for c in box.children if not is_del(c))
                == item["answers"][system]
            )


def is_del(child: Element | str) -> bool:
    return isinstance(child, Element) and child.tag == "del"


def test_diff_pieces_rebuild_both_texts():
    rng = random.Random(0)
    alphabet = ["Oak", "Main", " ", " ", "\n", '"', ",", "東", "京", "नमस्ते", "é", "12"]
    for _ in range(300):
        one, other = ("".join(rng.choices(alphabet, k=rng.randint(0, 25))) for _ in range(2))
        pieces = diff_words(one, other)
        assert "".join(text for kind, text in pieces if kind != "missing") == other
        assert "".join(text for kind, text in pieces if kind != "extra") == one
        assert diff_words(one, one) == ([("same", one)] if one else [])


def test_a_replaced_phrase_is_one_mark():
    assert diff_words("at 12 Main St now", "at 9 Oak Ave now") == [
        ("same", "at "),
        ("missing", "12 Main St"),
        ("extra", "9 Oak Ave"),
        ("same", " now"),
    ]


def test_very_long_answers_are_compared_by_their_ends():
    body = " ".join(f"w{i}" for i in range(2000))
    pieces = diff_words(f"start {body} end", f"start {'x ' * 5000}end")
    assert [kind for kind, _ in pieces] == ["same", "missing", "extra", "same"]
    assert diff_words(body, body) == [("same", body)]


def test_marks_and_filters_follow_the_scores():
    report = make_report()
    page = read(report)
    classes = {"tuned-wrong": 0, "fixed": 0, "broken": 0}
    for item in report["sets"]["test"]["items"]:
        details, score = by_id(page, f"test:{item['id']}"), item["scores"]["exact_match"]
        marks = [b.text.split()[-1] for b in details.all("summary")[0].all("b")]
        assert marks == ["right" if score[s] else "wrong" for s in SYSTEMS]
        expected = {"tuned-wrong": not score["tuned"], "fixed": score["tuned"] > score["zero_shot"]}
        expected["broken"] = score["tuned"] < score["zero_shot"]
        assert {c: c in details.attrs["class"].split() for c in classes} == expected
        classes = {c: n + expected[c] for c, n in classes.items()}
    assert classes == {"tuned-wrong": 3, "fixed": 20, "broken": 1}, (
        "the sample has each, and one that was right and stays right"
    )
    heading = page.all("details", "answer-set")[0].all("h3")[0].text
    assert "24 items, right means exact match 100%, 3 tuned wrong, 20 fixed by tuning, 1 broken by tuning" in heading


def test_an_answer_that_never_stopped_says_so():
    page = read(make_report())
    assert "hit the token limit" in answer_boxes(page, "test:data/test.jsonl:10")["tuned"].text
    assert "hit the token limit" not in answer_boxes(page, "test:data/test.jsonl:13")["tuned"].text


def test_the_list_leaves_out_the_shared_instruction_and_the_item_keeps_it():
    details = by_id(read(make_report()), "test:data/test.jsonl:1")
    prompt = make_report()["sets"]["test"]["items"][0]["prompt"]
    assert details.all("span", "opening")[0].text == prompt.split("\n\n")[1]
    assert details.all("div", "prompt")[0].text == prompt


def test_empty_answer_is_named():
    assert "empty answer" in answer_boxes(read(with_answer("", "")), "test:data/test.jsonl:1")["tuned"].text


def test_item_ids_that_repeat_get_their_own_anchors():
    report = make_report()
    for item in report["sets"]["test"]["items"][:3]:
        item["id"] = "one id"
    ids = [d.attrs["id"] for d in read(report).all("details", "item")]
    assert ids[:3] == ["test:one-id", "test:one-id~2", "test:one-id~3"]


def test_worries_link_to_the_items_they_name():
    anchors = {"data/test.jsonl:12": "test:data/test.jsonl:12", "data/test.jsonl:90": "test:data/test.jsonl:90"}
    links = [pair for pair in linked("2 lost their end (data/test.jsonl:12, :90), not :91.", anchors) if pair[1]]
    assert links == [("data/test.jsonl:12", "#test:data/test.jsonl:12"), (":90", "#test:data/test.jsonl:90")]
    assert "".join(text for text, _ in linked("see data/test.jsonl:12.", anchors)) == "see data/test.jsonl:12."
