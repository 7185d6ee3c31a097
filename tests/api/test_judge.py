"""Our own server as the judge's endpoint: a base that answers nonsense gives no verdicts, and is reported so.

pytest tests/api/test_judge.py
"""

import json
import shutil

import pytest

from tunesmith.evals.compare import compare_suite
from tunesmith.evals.items import Item, Outcome, Suite
from tunesmith.recipe.evaluation import Eval, Judge

ITEMS = [Item(f"f:{i}", [{"role": "user", "content": f"{i} Oak Street"}]) for i in range(2)]
SAID = {"zero_shot": [Outcome("Oak")] * 2, "tuned": [Outcome("Oak Street")] * 2}


@pytest.fixture(scope="module")
def roomy(lively_base, start_server, tmp_path_factory):
    """The random base with room for a judge's prompt, served."""
    folder = shutil.copytree(lively_base, tmp_path_factory.mktemp("roomy") / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    return str(folder), start_server(tmp_path_factory.mktemp("home"), "--base", str(folder))


def test_a_judge_that_talks_nonsense_measures_nothing(roomy):
    model, server = roomy
    settings = Eval(judge=Judge(base_url=server.url, model=model, max_tokens=12))
    part = compare_suite(Suite("s", "suite", ITEMS, ("judge",), "", 8), SAID, settings)
    missing = part["not_measured"]["judge"]
    assert "no readable verdict on 2 of 2 pairs" in missing["reason"]
    assert (missing["facts"]["unreadable"], missing["facts"]["wins"], missing["facts"]["losses"]) == (2, 0, 0)
    assert part["metrics"] == {}


@pytest.mark.parametrize("model, words", [("somebody-else", "404"), (None, "400")])
def test_a_judge_that_is_not_served_or_has_no_room_measures_nothing(server, base, model, words):
    settings = Eval(judge=Judge(base_url=server.url, model=model or base, retries=0))
    part = compare_suite(Suite("s", "suite", ITEMS, ("judge",), "", 8), SAID, settings)
    assert words in part["not_measured"]["judge"]["reason"]
