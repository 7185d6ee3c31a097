"""The regression suite is what it says it is, and finds what it is for.

pytest tests/evals/test_regression.py
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.evals import regression
from tunesmith.evals.compare import compare_suite, measurable
from tunesmith.evals.items import Item, Outcome
from tunesmith.evals.regression import goldens
from tunesmith.evals.run import evaluate
from tunesmith.evals.strata import stratified
from tunesmith.recipe.evaluation import Regression
from tunesmith.training.run import Run

PERMISSIVE = {"MIT", "Apache-2.0"}
SIGNS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


# ---- what ships ------------------------------------------------------------------------------------------------------


def test_every_item_can_be_measured_and_says_where_it_is_from():
    suite, = regression.suites(Regression(goldens=False), "x", "run", 0)
    measurable(suite)
    assert len(suite.items) == len({i.id for i in suite.items}) == 272
    assert len({(i.prompt, i.choices) for i in suite.items}) == 272
    head = json.loads(regression.GENERAL.read_text(encoding="utf-8").splitlines()[0])
    assert {s["licence"] for s in head["sources"].values()} <= PERMISSIVE
    assert all(item.source.rpartition("; ")[2] in PERMISSIVE for item in suite.items)
    assert regression.GENERAL.stat().st_size < 300_000
    notice = regression.GENERAL.with_name("NOTICE.md").read_text(encoding="utf-8")
    for source in head["sources"].values():
        assert source["name"].split(" (")[0] in notice and source["copyright"] in notice


def test_the_right_choice_cannot_be_told_by_its_place_or_its_length():
    """Who always takes the first, the longest or the shortest is at chance, to within four standard errors."""
    items = regression.general()
    lengths = {i.id: [len(c) for c in i.choices] for i in items}
    for pick in (lambda i: 0, lambda i: len(i.choices) - 1, lambda i: lengths[i.id].index(max(lengths[i.id])),
                 lambda i: lengths[i.id].index(min(lengths[i.id]))):
        chances = [1 / len(i.choices) for i in items]
        right = sum(pick(i) == i.correct for i in items)
        error = sum(p * (1 - p) for p in chances) ** 0.5
        assert abs(right - sum(chances)) < 4 * error


def test_the_arithmetic_is_right():
    items = [i for i in regression.general() if i.tags == ("arithmetic",)]
    assert len(items) == 30
    for item in items:
        a, sign, b = re.fullmatch(r"What is (\d+) ([-+*]) (\d+)\?", item.prompt).groups()
        assert int(item.reference) == SIGNS[sign](int(a), int(b))


def test_the_verb_agrees_with_its_noun_in_the_right_sentence():
    for item in (i for i in regression.general() if i.tags == ("grammar",)):
        plural = re.match(r"The (\w+)", item.reference)[1] in ("dogs", "teachers", "keys", "children", "letters", "ships")
        assert bool(re.search(r" (are|were|have) ", item.reference)) == plural


# ---- fewer of them ---------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60), st.integers(1, 70), st.integers(0, 3))
def test_fewer_items_keep_the_share_of_each_tag_and_their_order(tags, count, seed):
    items = [Item(id=str(n), messages=[], tags=(tag,)) for n, tag in enumerate(tags)]
    taken = stratified(items, count, seed)
    assert len(taken) == min(count, len(items)) and taken == stratified(items, count, seed)
    assert [int(i.id) for i in taken] == sorted({int(i.id) for i in taken})
    whole, part = Counter(tags), Counter(i.tags[0] for i in taken)
    assert all(abs(part[tag] - n * len(taken) / len(items)) <= 1 for tag, n in whole.items())


# ---- what it finds ---------------------------------------------------------------------------------------------------


def said(items: list[Item], right: set[int]) -> list[Outcome]:
    """Outcomes of a system that takes the right choice of the items in `right`, and the next one of all others."""
    found = []
    for n, item in enumerate(items):
        taken = item.correct if n in right else (item.correct + 1) % len(item.choices)
        found.append(Outcome(choices=tuple(-1.0 if c == taken else -2.0 for c in range(len(item.choices)))))
    return found


def test_a_planted_drop_is_found_with_its_tag_and_none_where_there_is_none():
    suite, = regression.suites(Regression(goldens=False), "x", "run", 0)
    everything = set(range(len(suite.items)))
    lost = {n for n, item in enumerate(suite.items) if item.tags == ("knowledge",) and n % 2}
    part = compare_suite(suite, {"zero_shot": said(suite.items, everything), "tuned": said(suite.items, everything - lost)})
    m = part["metrics"]["choice"]
    assert m["delta"] == pytest.approx(-len(lost) / 272) and m["ci95"][1] < 0
    assert part["tags"]["knowledge"]["metrics"]["choice"]["ci95"][1] < 0
    assert part["tags"]["grammar"]["metrics"]["choice"]["delta"] == 0
    same = compare_suite(suite, {"zero_shot": said(suite.items, lost), "tuned": said(suite.items, lost)})
    low, high = same["metrics"]["choice"]["ci95"]
    assert same["metrics"]["choice"]["delta"] == 0 and -0.03 < low <= 0 <= high < 0.03


# ---- earlier releases ------------------------------------------------------------------------------------------------


def test_goldens_of_an_earlier_release_are_asked_with_its_answers_as_references(project):
    name, run_id = project.done["release_id"], project.done["run_id"]
    kept = json.loads((project.release_dir / "golden.json").read_text())
    suite = goldens.suite("tiny", "another-run")
    assert (suite.name, suite.kind, suite.metrics) == ("goldens", "regression", ("exact_match", "token_f1"))
    assert [(i.messages, i.references, i.tags) for i in suite.items] == [(g["messages"], (g["answer"],), (name,)) for g in kept]
    measurable(suite)
    assert goldens.suite("tiny", run_id) is None  # those of this very run are no earlier ones
    assert goldens.suite("another-name") is None


def test_a_question_of_several_releases_is_asked_once_with_the_newest_answer(project):
    older = project.release_dir.with_name("rel-older")
    shutil.copytree(project.release_dir, older)
    manifest = json.loads((older / "manifest.json").read_text())
    (older / "manifest.json").write_text(json.dumps(manifest | {"release_id": "rel-older", "created": "2000-01-01T00:00:00Z"}))
    other = json.loads((older / "golden.json").read_text())
    other[0]["answer"] = "an answer of long ago"
    other[1]["messages"][-1]["content"] = "a question of long ago"
    (older / "golden.json").write_text(json.dumps(other))
    suite = goldens.suite("tiny", "another-run")
    assert len(suite.items) == len(other) + 1
    assert "an answer of long ago" not in {i.reference for i in suite.items}
    assert {i.tags[0] for i in suite.items if i.prompt == "a question of long ago"} == {"rel-older"}


def test_a_report_has_the_suites_and_the_same_model_agrees_with_its_release(project):
    path = project.run_dir / "recipe.resolved.json"
    recipe = json.loads(path.read_text())
    recipe["eval"]["regression"] = {"suite": "general", "items": 16, "goldens": True}
    path.write_text(json.dumps(recipe))
    release = Path(project.release_dir) / "manifest.json"
    release.write_text(json.dumps(json.loads(release.read_text()) | {"run_id": "earlier"}))
    report = evaluate(Run(project.run_dir))
    assert list(report["sets"]) == ["test", "general", "goldens"]
    assert report["sets"]["general"]["metrics"]["choice"]["systems"].keys() == {"zero_shot", "tuned"}
    assert report["sets"]["general"]["n"] == 16
    golden = report["sets"]["goldens"]["metrics"]["exact_match"]
    assert golden["tuned"] == 1.0 and golden["base"] < 1.0
