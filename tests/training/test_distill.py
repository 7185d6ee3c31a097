"""Learning from a teacher, from a recipe to a release.

pytest tests/training/test_distill.py
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import tunesmith
from tunesmith.errors import RecipeError, TrainingError
from tunesmith.training import reference
from tunesmith.training.check import check
from tunesmith.training.loop import read_metrics
from tunesmith.training.run import Run, train

TEACHES = {"train.learning_rate": 0.005}


@pytest.fixture(scope="session")
def teacher(sharp_base) -> Path:
    """Another model with the same tokenizer, sure of some words."""
    return sharp_base


@pytest.fixture
def recipe_of(make_recipe, lively_base, teacher):
    def make(objective: dict | None = None, **changes) -> Path:
        given = {"type": "distill", "teacher": str(teacher), "alpha": 1.0, "top_k": 16} | (objective or {})
        return make_recipe(**{"base": str(lively_base), "objective": given} | TEACHES | changes)

    return make


def evaluations(state: dict) -> list[dict]:
    return [r for r in read_metrics(Path(state["run_dir"])) if "eval_loss" in r]


def test_from_recipe_to_release_and_the_student_comes_nearer(recipe_of, home):
    done = tunesmith.run(recipe_of({"alpha": 0.9}, **{"train.epochs": 6}))
    assert done["release_id"]
    before, after = evaluations(done)
    assert after["eval_teacher_kl"] < 0.98 * before["eval_teacher_kl"]
    for r in (before, after):
        assert r["eval_loss"] == pytest.approx(0.9 * r["eval_teacher_kl"] + 0.1 * r["eval_cross_entropy"], rel=1e-4)


@pytest.mark.parametrize("objective", [{"kl": "reverse"}, {"temperature": 2.0}, {"top_k": 100000}],
                         ids=["reverse", "warm", "all"])
def test_other_settings_bring_the_student_nearer_too(recipe_of, home, objective):
    before, after = evaluations(train(recipe_of(objective, **{"train.epochs": 3})))
    assert after["eval_teacher_kl"] < before["eval_teacher_kl"]


def test_alpha_0_is_supervised_fine_tuning(recipe_of, make_recipe, lively_base, home):
    taught = train(recipe_of({"alpha": 0.0}))
    plain = train(make_recipe(**{"base": str(lively_base)} | TEACHES))
    losses = [[r["loss"] for r in read_metrics(Path(s["run_dir"])) if "loss" in r] for s in (taught, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_fast_and_plain_path_train_the_same(recipe_of, home):
    losses = [[r["loss"] for r in read_metrics(Path(train(recipe_of(**{"train.engine": e}))["run_dir"])) if "loss" in r]
              for e in ("fast", "plain")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_resume_is_the_uninterrupted_training_bit_for_bit(recipe_of, crashed, left, assert_same, home):
    recipe = recipe_of(**{"train.checkpoint.keep": 100})
    run, straight = crashed(recipe, at=3)
    for path in run.dataset().path.glob("reference/*/train.npz"):
        path.unlink()
    train(recipe, resume=run.path.name)
    assert_same(left(run.path), straight)


def test_second_run_does_not_ask_the_teacher_again(recipe_of, home):
    said: list[str] = []
    recipe = recipe_of()
    first = train(recipe, say=said.append)
    assert any("the teacher's log-probabilities of 'train'" in line for line in said)
    said.clear()
    again = train(recipe, say=said.append)
    assert not any("teacher" in line for line in said)
    assert again["adapter_digest"] == first["adapter_digest"]


def test_control_a_run_does_not_go_on_with_another_teacher(recipe_of, crashed, home):
    recipe = recipe_of(**{"train.checkpoint.keep": 100})
    run, _ = crashed(recipe, at=3)
    kept = reference.Kept(run.dataset(), "train", run.state["reference"]["key"], print)
    kept.arrays["logps"][:, 0] -= np.float32(0.1)
    kept.write()
    with pytest.raises(TrainingError, match="the reference has changed"):
        train(recipe, resume=run.path.name)


def test_teacher_of_another_vocabulary_is_refused_before_anything_is_trained(recipe_of, teacher, tmp_path, home):
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    first, second = (next(w for w, n in words.items() if n == number) for number in (300, 301))
    words[first], words[second] = words[second], words[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    recipe = recipe_of({"teacher": str(other)})
    with pytest.raises(RecipeError, match="has another vocabulary than the base") as error:
        train(recipe)
    assert "word 300 is" in error.value.why and error.value.exit_code == 2
    checked = check(recipe)
    assert not checked["ok"] and "another vocabulary" in checked["problems"][-1]["message"]
    assert check(recipe_of())["ok"]


def test_teacher_that_is_not_there_is_named(recipe_of, home):
    checked = check(recipe_of({"teacher": "./nowhere"}))
    assert not checked["ok"] and "nowhere" in checked["problems"][-1]["message"]


def test_the_teacher_leaves_no_trace_in_random_numbers(recipe_of, home):
    """The first run asks the teacher, the second finds what it said: their adapters begin and end as one."""
    recipe = recipe_of(**{"train.max_steps": 2})
    a = train(recipe)
    b = train(recipe)
    assert Run.find(a["run_id"]).state["adapter_digest"] == b["adapter_digest"]
