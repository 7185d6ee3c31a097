"""Losses that are no numbers, and losses that do not move.

pytest tests/runbooks/test_loss_flat_or_nan.py
"""

import pytest

import tunesmith


def test_a_rate_that_overflows_and_a_tenth_of_a_usual_one(make_recipe, command, page):
    done = command("train", make_recipe(**{"train.learning_rate": 1.0e30}), check=1)
    assert page("loss-flat-or-nan").missing("nan", done.stderr) == [], done.stderr
    command("train", make_recipe(**{"train.learning_rate": 0.001, "train.max_steps": 4}), check=0)


def test_a_rate_that_cannot_change_anything_is_known_before_step_1(make_recipe, command, page):
    done = command("train", make_recipe(**{"train.learning_rate": 1.0e-12}), check=1)
    assert page("loss-flat-or-nan").missing("reach", done.stderr) == [], done.stderr


@pytest.mark.slow
def test_a_flat_loss_is_a_warning_and_ten_thousand_times_the_rate_learns(make_recipe, command, page):
    few = [{"prompt": f"{n} Oak Street", "completion": "Oak"} for n in range(4)]
    flat = {"train": few, "train.learning_rate": 1.0e-7, "train.epochs": 200, "train.checkpoint": {"every_steps": 1000}}
    recipe = make_recipe(**flat)
    done = command("train", recipe, check=0)
    assert page("loss-flat-or-nan").missing("flat", done.stderr.replace("warning: ", "")) == [], done.stderr
    run = tunesmith.runs()["runs"][0]["run_id"]
    assert "the loss has not fallen" in command("watch", run, "--once").stdout
    assert "has not fallen" not in command("train", make_recipe(**flat | {"train.learning_rate": 1.0e-3}), check=0).stderr
