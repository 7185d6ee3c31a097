"""A training that goes on from another's adapter begins exactly where that one ended.

pytest tests/training/test_start.py
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import TRAIN_ROWS

import tunesmith
from tunesmith.data.pack import plan_steps
from tunesmith.errors import RecipeError
from tunesmith.training.run import Run


def held_out(state: dict) -> list[float]:
    lines = (Run.find(state["run_id"]).path / "metrics.jsonl").read_text().splitlines()
    return [r["eval_loss"] for r in map(json.loads, lines) if "eval_loss" in r]


METHODS = [{"type": "lora", "rank": 4, "alpha": 8}, {"type": "lora", "rank": 2, "alpha": 8, "init": "pissa"},
           {"type": "ia3"}, {"type": "prompt", "tokens": 4}]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m["type"] + m.get("init", ""))
def test_the_loss_before_step_1_is_the_one_that_the_first_training_ended_with(make_recipe, method):
    first = tunesmith.train(make_recipe(method=method, **{"train.max_steps": 4}))
    second = tunesmith.train(make_recipe(method=method, **{"train.max_steps": 3, "train.start_from": first["run_id"]}))
    assert held_out(second)[0] == pytest.approx(held_out(first)[-1], rel=1e-6)
    assert held_out(first)[0] != pytest.approx(held_out(first)[-1], rel=1e-5), "the control: the first one moved"
    assert second["started_from"]["digest"] == first["adapter_digest"]
    origin = json.loads((Run.find(second["run_id"]).adapter / "tunesmith.json").read_text())
    assert origin["started_from"] == first["adapter_digest"]


def test_a_resumed_one_is_the_uninterrupted_one_also_when_the_first_is_gone(make_recipe):
    first = tunesmith.train(make_recipe(**{"train.max_steps": 4}))
    recipe = make_recipe(**{"train.start_from": first["run_id"], "train.max_steps": 4, "train.checkpoint.every_steps": 2})
    whole = Run.find(tunesmith.train(recipe)["run_id"])
    cut = Run(shutil.copytree(whole.path, whole.path.with_name(whole.path.name + "-cut")))
    shutil.rmtree(cut.adapter)
    shutil.rmtree(cut.path / "checkpoint-4")
    cut.update(status="running", run_id=cut.path.name)
    shutil.rmtree(Run.find(first["run_id"]).path)
    tunesmith.train(recipe, resume=cut.path.name)
    ours, theirs = (load_file(r.adapter / "adapter_model.safetensors") for r in (cut, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("other, why", [({"method.rank": 8}, "its r is 4"), ({"method.alpha": 4.0}, "its lora_alpha is 8"),
                                        ({"method": {"type": "ia3"}}, "it is of lora"),
                                        ({"method.targets": ["q_proj"]}, "do not match")])
def test_an_adapter_that_means_something_else_is_refused(make_recipe, other, why):
    first = tunesmith.train(make_recipe(**{"train.max_steps": 3}))
    with pytest.raises(RecipeError, match="does not fit method") as raised:
        tunesmith.train(make_recipe(**other, **{"train.start_from": first["run_id"], "train.max_steps": 3}))
    assert why in raised.value.why


def test_what_is_not_there_and_what_has_changed_is_refused(make_recipe, lively_base, tiny_base):
    with pytest.raises(RecipeError, match="no adapter 'nobody'"):
        tunesmith.train(make_recipe(**{"train.start_from": "nobody"}))
    first = tunesmith.train(make_recipe(**{"train.max_steps": 3}))
    with pytest.raises(RecipeError, match="was trained on another base"):
        tunesmith.train(make_recipe(base=str(lively_base), **{"train.start_from": first["run_id"]}))


def test_preferences_are_compared_with_the_adapter_that_the_training_goes_on_from(make_recipe):
    """At the first step policy and reference are one model again: the loss is log 2, and the first adapter moved."""
    first = tunesmith.train(make_recipe(**{"train.max_steps": 6}))
    pairs = [{"input": {"messages": r["messages"][:1]}, "preferred_output": r["messages"][1:],
              "non_preferred_output": [{"role": "assistant", "content": "no"}]} for r in TRAIN_ROWS]
    changed = {"objective": {"type": "dpo"}, "train.max_steps": 2, "train.start_from": first["run_id"]}
    second = tunesmith.train(make_recipe(train=pairs[:30], test=pairs[30:], **changed))
    assert held_out(second)[0] == pytest.approx(0.693147, abs=1e-4)


def test_rows_per_step_makes_the_steps_that_batches_make(make_recipe):
    for rows, batch, epochs in ((40, 8, 2), (40, 7, 3), (5, 8, 2)):
        steps = plan_steps([11] * rows, tokens_per_step=16, epochs=epochs, rows_per_step=batch)
        assert len(steps) == epochs * -(-rows // batch)
        assert sorted(r for s in steps for r in s.rows) == sorted(list(range(rows)) * epochs)
        assert max(sum(11 for _ in pack) for s in steps for pack in s.packs) <= 16


def test_the_last_epochs_are_kept_and_measured(make_recipe):
    state = tunesmith.train(make_recipe(**{"train.epochs": 4, "train.rows_per_step": 20, "train.eval_every_epoch": True,
                                           "train.checkpoint": {"every_steps": 100, "keep_epochs": 3}}))
    run = Run.find(state["run_id"])
    assert sorted(p.name for p in run.path.glob("epoch-*")) == ["epoch-4", "epoch-6", "epoch-8"]
    assert len(held_out(state)) == 5
    last, adapter = (load_file(p / "adapter_model.safetensors") for p in (run.path / "epoch-8", run.adapter))
    assert all(torch.equal(last[n], adapter[n]) for n in adapter)
