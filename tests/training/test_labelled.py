"""Training on labelled answers (KTO) from a recipe to a release.

pytest tests/training/test_labelled.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

import tunesmith
from tunesmith.data.pairs import Labelled
from tunesmith.errors import DataError, TrainingError
from tunesmith.training.loop import read_metrics
from tunesmith.training.run import Run, train

STREETS = ("Oak", "Elm", "Main", "Bever", "Stone Hedge", "4th", "Cottage Grove", "Washington")
KTO = {"objective": {"type": "kto", "beta": 0.5}, "train.learning_rate": 0.005}


def row(n: int, good: bool) -> dict:
    """Naming the street is good, naming the number is bad."""
    street = STREETS[n % 8]
    return {"prompt": f"{n} {street} Street", "completion": json.dumps({"street": street} if good else {"number": str(n)}),
            "label": good}


TRAIN = [row(n * 37 + 11, n % 2 == 0) for n in range(40)]
TEST = [row(n * 91 + 5003, n % 3 > 0) for n in range(12)]


@pytest.fixture
def recipe_of(make_recipe, lively_base):
    def make(train: list = TRAIN, test: list = TEST, **changes) -> Path:
        return make_recipe(train=train, test=test, **{"base": str(lively_base)} | KTO | changes)

    return make


def evaluations(state: dict) -> list[dict]:
    return [r for r in read_metrics(Path(state["run_dir"])) if "eval_loss" in r]


def test_from_recipe_to_release_and_good_answers_are_the_references(recipe_of, home):
    done = tunesmith.run(recipe_of(**{"train.epochs": 8}))
    before, after = evaluations(done)
    assert before["eval_loss"] == pytest.approx(0.5, abs=1e-5)
    assert after["eval_loss"] < 0.45 and after["eval_reward_desirable"] > after["eval_reward_undesirable"] + 0.1
    assert after["eval_kl"] >= 0 and after["eval_accuracy"] > 0.6
    report = json.loads((Path(done["run_dir"]) / "report" / "report.json").read_text())
    assert report["sets"]["test"]["n"] == sum(r["label"] for r in TEST)
    assert all("street" in item["reference"] for item in report["sets"]["test"]["items"])


def test_resume_is_the_uninterrupted_training_bit_for_bit(recipe_of, crashed, left, assert_same, home):
    recipe = recipe_of(**{"train.checkpoint.keep": 100})
    run, straight = crashed(recipe, at=3)
    train(recipe, resume=run.path.name)
    assert_same(left(run.path), straight)


def test_control_labels_the_wrong_way_round_teach_the_opposite(recipe_of, home):
    state = train(recipe_of(train=[r | {"label": not r["label"]} for r in TRAIN], **{"train.epochs": 6}))
    last = evaluations(state)[-1]
    assert last["eval_reward_desirable"] < last["eval_reward_undesirable"] and last["eval_loss"] > 0.5


def test_control_a_reference_of_other_rows_stops_before_step_1(recipe_of, home):
    import numpy as np

    from tunesmith.training import reference

    recipe = recipe_of()
    state = train(recipe)
    dataset = Run.find(state["run_id"]).dataset()
    for part in ("train", "test"):
        kept = reference.Kept(dataset, part, state["reference"]["key"], print)
        kept.arrays["logps"] += np.array([3.0, 0.0])
        kept.write()
    with pytest.raises(TrainingError, match="the loss before step 1 is .* and it must be 0.5000"):
        train(recipe)


def test_each_row_has_a_partner_with_another_prompt_and_keeps_it(recipe_of, home):
    twice = [r | {"completion": "no", "label": not r["label"]} for r in TRAIN]  # the halves of pairs stand side by side
    rows = [half for both in zip(TRAIN, twice, strict=True) for half in both]
    state = train(recipe_of(train=rows, **{"train.max_steps": 1}))
    dataset = Run.find(state["run_id"]).dataset()
    labelled, texts = Labelled.of(dataset, "train", 0), dataset.rows("train")
    assert labelled.others == Labelled.of(dataset, "train", 0).others != Labelled.of(dataset, "train", 1).others
    assert all(texts[i].prompt != texts[j].prompt for i, j in enumerate(labelled.others))
    for i in random.Random(0).sample(range(len(rows)), 9):
        (ids, trained), = labelled[i]
        (others, marks), = labelled[labelled.others[i]]
        mixed, mask = labelled.mismatched(i)
        begin = trained.index(True)
        assert mixed[:begin] == ids[:begin] and mixed[begin:] == others[marks.index(True) :]
        assert mask.index(True) == begin


def test_rows_of_one_prompt_have_no_partner(recipe_of, home):
    rows = [{"prompt": "Name a street.", "completion": s, "label": s > "F"} for s in STREETS]
    with pytest.raises(DataError, match="all rows have the same prompt"):
        train(recipe_of(train=rows, **{"data.dedup.near": None}))


@pytest.mark.parametrize("rows, what, fix", [
    ([{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}],
     "chat rows .* cannot be trained with objective kto", "label"),
    ([{"prompt": "q", "chosen": "a", "rejected": "b"}], "preference rows .* cannot be trained with objective kto",
     "tunesmith data convert IN --to kto"),
])
def test_rows_of_another_kind_are_refused_with_a_way_out(recipe_of, home, rows, what, fix):
    with pytest.raises(DataError, match=what) as error:
        train(recipe_of(train=rows))
    assert fix in error.value.fix


def test_the_way_out_of_pairs_works(recipe_of, home, tmp_path):
    from tunesmith.data.convert import convert

    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"prompt": r["prompt"], "chosen": "good", "rejected": "bad"}) + "\n" for r in TRAIN))
    made = convert(str(pairs), tmp_path / "labelled.jsonl", "kto")
    assert (made["rows_read"], made["rows"], made["lossy"]) == (40, 80, [])
    assert made["notes"] == ["40 pairs became two labelled rows each"]
    rows = [json.loads(line) for line in (tmp_path / "labelled.jsonl").read_text().splitlines()]
    assert rows[:2] == [{"prompt": TRAIN[0]["prompt"], "completion": "good", "label": True},
                        {"prompt": TRAIN[0]["prompt"], "completion": "bad", "label": False}]
    assert train(recipe_of(train=rows, **{"train.max_steps": 2}))["status"] == "finished"


def test_bad_answers_are_no_contradiction_and_a_test_set_of_them_alone_cannot_be_scored(recipe_of, home):
    from tunesmith.evals.run import evaluate

    both = [r | {"completion": "yes" if r["label"] else "no"} for r in TRAIN]
    both += [r | {"completion": "no" if r["label"] else "yes", "label": not r["label"]} for r in TRAIN]
    bad = [r | {"label": False} for r in TEST]
    state = train(recipe_of(train=both, test=bad, **{"train.max_steps": 1}))
    run = Run.find(state["run_id"])
    assert "contradiction" not in [f["code"] for f in run.dataset().manifest["findings"]]
    with pytest.raises(DataError, match="every answer of test set 'test' is labelled bad"):
        evaluate(run)
