"""A metric whose helper cannot be asked is told as not measured, and the others stand in the report as ever.

pytest tests/evals/test_not_measured.py
"""

import json

import pytest

from tunesmith.evals.compare import compare_suite
from tunesmith.evals.items import Item, Outcome, Suite
from tunesmith.recipe.evaluation import Eval

ITEMS = [Item(f"f:{i}", [{"role": "user", "content": "Where?"}], ("Oak",), check={"regex": "^(a|aa)+$"}) for i in range(3)]


def said() -> dict:
    return {"zero_shot": [Outcome("Elm"), Outcome("Oak"), Outcome("")],
            "tuned": [Outcome("Oak"), Outcome("Oak"), Outcome("a" * 60 + "!")]}


@pytest.mark.parametrize("metric, words", [("judge", "no judge is set"), ("regex", "takes over"), ("similarity", "nowhere")])
def test_it_is_named_with_its_reason_and_leaves_no_number_behind(tmp_path, metric, words):
    part = compare_suite(Suite("s", "suite", ITEMS, (metric, "exact_match"), "", 8), said(),
                         Eval(embedder=str(tmp_path / "nowhere")))
    assert words in part["not_measured"][metric]["reason"] and part["not_measured"][metric]["fix"]
    assert list(part["metrics"]) == ["exact_match"] and part["metrics"]["exact_match"]["tuned"] == pytest.approx(2 / 3)
    assert all(list(i["scores"]) == ["exact_match"] for i in part["items"])
    json.dumps(part)


def test_what_could_be_measured_is_not_named():
    assert "not_measured" not in compare_suite(Suite("s", "suite", ITEMS, ("exact_match",), "", 8), said())
