"""Training on preferences from a recipe to a release: what it learns, how it resumes, and what stops it.

pytest tests/training/test_preferences.py
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

import tunesmith
from tunesmith.errors import DataError, TrainingError
from tunesmith.training import reference
from tunesmith.training.loop import read_metrics
from tunesmith.training.run import Run, train

STREETS = ("Oak", "Elm", "Main", "Bever", "Stone Hedge", "4th", "Cottage Grove", "Washington")
DPO = {"objective": {"type": "dpo"}, "train.learning_rate": 0.005}


def pair(n: int, street: str) -> dict:
    """The street is preferred to the number."""
    return {"prompt": f"{n} {street} Street", "chosen": json.dumps({"street": street}),
            "rejected": json.dumps({"number": str(n)})}


def swapped(row: dict) -> dict:
    return row | {"chosen": row["rejected"], "rejected": row["chosen"]}


TRAIN = [pair(n * 37 + 11, STREETS[n % 8]) for n in range(40)]
TEST = [pair(n * 91 + 5003, STREETS[n % 8]) for n in range(12)]


@pytest.fixture
def recipe_of(make_recipe, lively_base):
    def make(train: list = TRAIN, test: list = TEST, **changes) -> Path:
        return make_recipe(train=train, test=test, **{"base": str(lively_base)} | DPO | changes)

    return make


def references(dataset_dir: Path) -> list[Path]:
    return sorted(dataset_dir.glob("reference/*/*.npz"))


def dataset_of(state: dict, home: Path) -> Path:
    return home / "datasets" / state["dataset_id"]


def test_from_recipe_to_release_and_metrics_say_what_was_learned(recipe_of, home):
    done = tunesmith.run(recipe_of(**{"train.epochs": 6}))
    assert done["verdict"] == "pass" and done["ok"]
    records = read_metrics(Path(done["run_dir"]))
    first, *steps = [r for r in records if "loss" in r]
    before, after = (r for r in records if "eval_loss" in r)
    assert before["eval_loss"] == pytest.approx(math.log(2), abs=1e-5) == pytest.approx(first["loss"], abs=1e-5)
    assert after["eval_loss"] < 0.5 and after["eval_accuracy"] == 1.0
    assert after["eval_reward_margin"] == pytest.approx(after["eval_reward_chosen"] - after["eval_reward_rejected"])
    assert all(r["reward_margin"] == pytest.approx(r["reward_chosen"] - r["reward_rejected"], abs=1e-5) for r in steps)
    assert steps[-1]["accuracy"] == 1.0 and steps[-1]["loss"] < first["loss"]
    rendered = (Path(done["run_dir"]) / "report" / "report.html").read_text()
    assert "tiny" in rendered


def test_resume_after_a_crash_is_the_uninterrupted_training_bit_for_bit(recipe_of, crashed, left, assert_same, home):
    recipe = recipe_of(**{"train.checkpoint.keep": 100})
    run, straight = crashed(recipe, at=3)
    train(recipe, resume=run.path.name)
    assert_same(left(run.path), straight)


def test_resume_without_the_kept_reference_computes_the_same_again(recipe_of, crashed, left, assert_same, home):
    recipe = recipe_of(**{"train.checkpoint.keep": 100})
    run, straight = crashed(recipe, at=3)
    for path in references(dataset_of(run.state, home)):
        path.unlink()
    train(recipe, resume=run.path.name)
    assert_same(left(run.path), straight)


def test_resume_with_another_reference_is_refused(recipe_of, crashed, home):
    recipe = recipe_of(**{"train.checkpoint.keep": 100})
    run, _ = crashed(recipe, at=3)
    rewrite(run.state, 0.25)
    with pytest.raises(TrainingError, match="the reference has changed"):
        train(recipe, resume=run.path.name)


def rewrite(state: dict, by: float) -> None:
    """Other numbers, in files that are whole: only their values are wrong."""
    dataset = Run.find(state["run_id"]).dataset()
    for part in ("train", "test"):
        kept = reference.Kept(dataset, part, state["reference"]["key"], print)
        kept.arrays["logps"] += np.array([by, 0.0])
        kept.write()


def test_second_run_finds_the_reference_and_a_damaged_file_is_computed_again(recipe_of, home):
    said: list[str] = []
    recipe = recipe_of()
    state = train(recipe, say=said.append)
    assert any("the base's log-probabilities of 'train'" in line for line in said)
    paths = references(dataset_of(state, home))
    assert [p.name for p in paths] == ["test.test.npz", "train.npz"]
    good = [p.read_bytes() for p in paths]

    said.clear()
    again = train(recipe, say=said.append)
    assert not any("log-probabilities" in line for line in said)
    assert again["reference"] == state["reference"] and again["adapter_digest"] == state["adapter_digest"]

    paths[1].write_bytes(good[1][:-200] + bytes(200))
    said.clear()
    assert train(recipe, say=said.append)["reference"] == state["reference"]
    assert any("is damaged: it is computed again" in line for line in said)
    with np.load(paths[1]) as found, np.load(io.BytesIO(good[1])) as before:
        assert np.array_equal(found["logps"], before["logps"])


def test_only_rows_that_are_trained_are_asked_of_the_base_and_more_steps_ask_for_the_rest(recipe_of, home):
    state = train(recipe_of(**{"train.max_steps": 2}))
    path = references(dataset_of(state, home))[1]
    with np.load(path) as found:
        few = found["logps"]
    assert 0 < np.isfinite(few[:, 0]).sum() < len(TRAIN)
    train(recipe_of())
    with np.load(path) as found:
        every = found["logps"]
    assert np.isfinite(every).all() and (every < 0).all()
    assert np.array_equal(every[np.isfinite(few)], few[np.isfinite(few)])


@pytest.mark.parametrize("method, rate", [
    ({"type": "full"}, 1e-3), ({"type": "bottleneck", "size": 8}, 5e-3), ({"type": "ia3"}, 5e-2),
    ({"type": "prompt", "tokens": 4}, 5e-2), ({"type": "prefix", "tokens": 4}, 5e-2)],
    ids=lambda v: v["type"] if isinstance(v, dict) else "")
def test_every_method_learns_from_preferences_against_the_same_base(method, rate, recipe_of, lively_base, home):
    """The reference is what the base alone says, in plain transformers, and the held-out loss falls from there."""
    import torch
    from transformers import AutoModelForCausalLM

    done = train(recipe_of(**{"method": method, "train.learning_rate": rate, "train.epochs": 4}))
    before, after = (r["eval_loss"] for r in read_metrics(Path(done["run_dir"])) if "eval_loss" in r)
    assert after < before
    if method["type"] not in ("prompt", "prefix"):
        assert before == pytest.approx(math.log(2), abs=1e-4)

    dataset = Run.find(done["run_id"]).dataset()
    model = AutoModelForCausalLM.from_pretrained(lively_base, dtype=torch.float32).eval()
    with np.load(references(dataset.path)[1]) as found, torch.inference_mode():
        for row in range(4):
            for side, answer in enumerate((dataset.tokens("train")[row], dataset.rejected("train")[row])):
                ids, trained = torch.tensor([answer[0]]), torch.tensor(answer[1][1:])
                logp = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
                assert found["logps"][row, side] == pytest.approx(float(logp[trained].sum()), abs=1e-3)


def test_control_a_reference_with_its_adapter_on_stops_before_step_1(recipe_of, home):
    """The numbers of a tuned model, its adapter merged so that nothing can switch it off, where the base's should be."""
    import torch

    from tunesmith.data.pairs import Answers
    from tunesmith.engine import plain
    from tunesmith.methods import lora
    from tunesmith.models.load import model_of
    from tunesmith.objectives.families import family

    recipe = recipe_of()
    run = Run.find(train(recipe)["run_id"])
    tuned = lora.load(model_of(run.base(), torch.float32, "cpu"), run.adapter).merge_and_unload()
    for path in references(run.dataset().path):
        part = path.stem.removeprefix("test.")
        rows = Answers.of_pairs(run.dataset(), part)
        path.unlink()
        kept = reference.Kept(run.dataset(), part, path.parent.name, print)
        reference.base_logps(kept, tuned, plain.answer_logps, range(len(rows)), lambda i, rows=rows: family(*rows[i]), 512)
    with pytest.raises(TrainingError, match="the loss before step 1 is .* and it must be 0.6931") as error:
        train(recipe)
    assert "reference" in error.value.fix


def test_control_a_kept_reference_of_other_rows_stops_before_step_1(recipe_of, home):
    recipe = recipe_of()
    state = train(recipe)
    rewrite(state, 2.0)
    with pytest.raises(TrainingError, match="the loss before step 1"):
        train(recipe)


def test_control_answers_the_wrong_way_round_end_below_half(recipe_of, home):
    state = train(recipe_of(train=[swapped(r) for r in TRAIN], **{"train.epochs": 4}))
    last = [r for r in read_metrics(Path(state["run_dir"])) if "eval_loss" in r][-1]
    assert last["eval_accuracy"] < 0.5 and last["eval_reward_margin"] < 0 and last["eval_loss"] > math.log(2)


@pytest.mark.parametrize("change", [{"objective": {"type": "dpo", "loss": "ipo", "beta": 0.5}},
                                    {"objective": {"type": "dpo", "label_smoothing": 0.2}}, {"train.engine": "plain"}],
                         ids=["ipo", "smoothing", "plain"])
def test_other_settings_train_too(recipe_of, home, change):
    state = train(recipe_of(**{"train.epochs": 3} | change))
    before, after = [r for r in read_metrics(Path(state["run_dir"])) if "eval_loss" in r]
    assert after["eval_loss"] < before["eval_loss"] and after["eval_accuracy"] > 0.8


def test_fast_and_plain_train_the_same(recipe_of, home):
    losses = []
    for engine in ("fast", "plain"):
        state = train(recipe_of(**{"train.engine": engine}))
        losses.append([r["loss"] for r in read_metrics(Path(state["run_dir"])) if "loss" in r])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


CHAT = [{"messages": [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": "a"}]} for n in range(9)]
KTO = [{"prompt": f"{n}", "completion": "a", "label": n % 2 == 0} for n in range(9)]


@pytest.mark.parametrize("objective, rows, what, fix", [
    ("dpo", CHAT, "chat rows .* cannot be trained with objective dpo", "chosen and rejected"),
    ("dpo", KTO, "KTO rows .* cannot be trained with objective dpo", "objective.type: kto"),
    ("sft", TRAIN, "preference rows .* cannot be trained with objective sft", "objective.type: dpo"),
])
def test_rows_of_another_kind_are_refused_with_a_way_out(recipe_of, home, objective, rows, what, fix):
    with pytest.raises(DataError, match=what) as error:
        train(recipe_of(train=rows, objective={"type": objective}))
    assert fix in error.value.fix and error.value.where.startswith("train.jsonl:")
    assert error.value.exit_code == 2


def test_a_pair_is_as_long_as_its_longer_answer(recipe_of, home):
    long = pair(7, "Oak") | {"rejected": "no " * 200}
    with pytest.raises(DataError) as error:
        train(recipe_of(train=[*TRAIN, long]))
    assert "tokens, and data.max_tokens is 128" in error.value.problems[0].message
    state = train(recipe_of(train=[*TRAIN, long], **{"data.on_overflow": "drop"}))
    assert Run.find(state["run_id"]).dataset().manifest["counts"]["train"] == len(TRAIN)


def test_two_pairs_that_differ_in_the_rejected_answer_are_two(recipe_of, home):
    other = TRAIN[0] | {"rejected": "something else"}
    state = train(recipe_of(train=[*TRAIN, other, dict(TRAIN[1])]))
    counts = Run.find(state["run_id"]).dataset().manifest["counts"]
    assert (counts["rows_read"], counts["train"]) == (len(TRAIN) + 2, len(TRAIN) + 1)
