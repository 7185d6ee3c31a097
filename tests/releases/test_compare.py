"""`tunesmith compare`: what differed before, and what came of it, of runs and of releases.

pytest tests/releases/test_compare.py
"""

from __future__ import annotations

import json
import shutil

import pytest

from tunesmith.releases.compare import compare, side
from tunesmith.training.loop import read_metrics
from tunesmith.training.run import Run, train

KEYS = {"a", "b", "recipe", "dataset", "metrics", "curves", "at_steps", "speed", "notes"}


def test_only_what_differs_is_named(make_recipe, command, home):
    one = train(make_recipe(**{"train.max_steps": 6, "train.eval_every_steps": 3}))
    other = train(make_recipe(**{"train.max_steps": 6, "train.eval_every_steps": 3, "train.learning_rate": 0.001,
                                 "method.targets": ["q_proj"]}))
    found = command("compare", one["run_id"], other["run_id"], "--json", check=0).json
    assert found.keys() == KEYS and (found["a"], found["b"]) == (one["run_id"], other["run_id"])
    assert found["recipe"] == {"method.targets": ["all-linear", ["q_proj"]], "train.learning_rate": [0.01, 0.001]}
    assert found["dataset"]["differs"] is False and found["metrics"] == {} and found["notes"] == []
    for i, state in enumerate((one, other)):
        records = read_metrics(Run.find(state["run_id"]).path)
        assert found["curves"]["loss"][i] == [[r["step"], r["loss"]] for r in records if "loss" in r]
        assert found["curves"]["eval_loss"][i] == [[r["step"], r["eval_loss"]] for r in records if "eval_loss" in r]
        held_out = dict(found["curves"]["eval_loss"][i])
        assert [[row[0], row[i + 1]] for row in found["at_steps"]["eval_loss"]] == [[s, held_out[s]] for s in (0, 3, 6)]
        losses = [r["loss"] for r in records if "loss" in r]
        assert found["at_steps"]["train_loss"][-1][i + 1] == pytest.approx(sum(losses) / 6)
        assert found["speed"]["trainable_parameters"][i] == state["trainable_parameters"]
    people = command("compare", one["run_id"], other["run_id"], check=0).stdout
    for words in ("recipe train.learning_rate", "0.001", "held-out loss at step 6", "tokens per second", "peak memory"):
        assert words in people, words


def test_a_run_and_itself_have_no_difference(make_recipe, command, home):
    run = train(make_recipe(**{"train.max_steps": 2}))["run_id"]
    found = command("compare", run, run, "--json", check=0).json
    assert found["recipe"] == {} and not found["dataset"]["differs"] and found["notes"] == []


def test_other_data_are_compared_by_their_rows(make_recipe, command, home):
    recipe = make_recipe(**{"train.max_steps": 2})
    one = train(recipe)
    rows = [json.loads(line) for line in (recipe.parent / "train.jsonl").read_text().splitlines()]
    other = train(make_recipe(train=rows[:-2], **{"train.max_steps": 2}))
    found = command("compare", one["run_id"], other["run_id"], "--json", check=0).json
    assert found["dataset"]["differs"] and found["dataset"]["parts"]["train"]["removed"] == 2
    assert "the data differ" in found["notes"][0]
    assert "data rows of train" in command("compare", one["run_id"], other["run_id"], check=0).stdout
    shutil.rmtree(home / "datasets" / one["dataset_id"])
    found = command("compare", one["run_id"], other["run_id"], "--json", check=0).json
    assert "is no longer here" in found["notes"][0]


def test_a_release_says_the_same_as_the_run_it_was_made_from(command, project):
    run, release = project.done["run_id"], project.done["release_id"]
    found = command("compare", run, release, "--json", check=0).json
    assert found["recipe"] == {} and not found["dataset"]["differs"]
    for by_name in found["metrics"].values():
        assert by_name and all(a == b and a["ci95"][0] <= a["value"] <= a["ci95"][1] for a, b in by_name.values())
    assert found["curves"]["loss"][0] == found["curves"]["loss"][1]
    for key in ("steps", "tokens", "peak_memory_bytes", "tokens_per_second", "trainable_parameters", "adapter_bytes"):
        a, b = found["speed"][key]
        assert a == pytest.approx(b), key
    shutil.rmtree(project.run_dir)
    alone = command("compare", release, release, "--json", check=0).json
    assert alone["metrics"] == {part: {n: [b, b] for n, (_, b) in m.items()} for part, m in found["metrics"].items()}


def test_sets_of_one_name_that_ask_other_things_are_told(project):
    run = Run.find(project.done["run_id"])
    one, other = side(None, run), side(None, run)
    assert compare(one, other)["notes"] == []
    name = one.report["primary"]
    other.report["sets"][name]["items"][0]["prompt"] += "?"
    notes = compare(one, other)["notes"]
    items = len(one.report["sets"][name]["items"])
    assert len(notes) == 1 and notes[0].startswith(f"{name!r} asks other things: {items - 1} items are in both")


def test_something_unknown_is_exit_code_2(command, project):
    assert command("compare", project.done["run_id"], "nobody", "--json", check=2).json["error"] == "NotFoundError"
