"""Every method from a recipe: checked, trained, evaluated and resumed by the verbs that users have.

python -m pytest tests/methods/test_recipes.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tunesmith import methods
from tunesmith.evals.run import evaluate
from tunesmith.methods import files
from tunesmith.models.load import model_of
from tunesmith.training import prove
from tunesmith.training.check import check
from tunesmith.training.run import Run, train

RECIPES = {
    "lora": {"rank": 4, "lora_plus_ratio": 4.0, "rank_pattern": {"down_proj": 2}},
    "dora": {"type": "lora", "rank": 4, "dora": True},
    "pissa": {"type": "lora", "rank": 4, "init": "pissa"},
    "whole": {"type": "lora", "rank": 4, "targets": ["q_proj"], "modules_to_save": ["norm"]},
    "qlora": {"type": "qlora", "rank": 4},
    "full": {"type": "full"},
    "prompt": {"type": "prompt", "tokens": 4},
    "prefix": {"type": "prefix", "tokens": 4, "init_text": "Street"},
    "ia3": {"type": "ia3"},
    "bottleneck": {"type": "bottleneck", "size": 8},
}
ENGINE = {"whole": "plain", "prompt": "plain", "prefix": "plain"}
SHORT = {"train.max_steps": 4, "eval.max_new_tokens": 4, "eval.baselines": ["zero_shot"], "eval.samples": 3,
         "train.checkpoint": {"every_steps": 2}, "gates": {"target": {"metric": "loss", "min_gain": 0.0}}}


@pytest.fixture(params=RECIPES)
def named(request) -> str:
    return request.param


@pytest.fixture
def recipe(make_recipe, named) -> Path:
    return make_recipe(**SHORT | {"method": RECIPES[named]})


def test_checked_trained_and_evaluated(recipe, named):
    checked = check(recipe)
    assert checked["ok"], checked["problems"]
    loads = checked["serving"]["vllm"]["loads"]
    assert loads == (named in ("lora", "pissa", "qlora"))
    assert loads == (not [p for p in checked["problems"] if p["code"] == "vllm_refuses"])
    said: list[str] = []
    state = train(recipe, say=said.append)
    run = Run.find(state["run_id"])
    assert (state["status"], state["engine"]) == ("finished", ENGINE.get(named, "fast"))
    assert state["trainable_parameters"] == checked["estimate"]["trainable_parameters"]
    assert state["trainable_parameters"] == sum(t["parameters"] for t in checked["targets"])
    if ENGINE.get(named) == "plain":
        assert any(line.startswith("chose engine=plain (") and ("virtual" in line or "whole copy" in line) for line in said)
    origin = json.loads((run.adapter / "tunesmith.json").read_text())
    assert origin["method"]["type"] == run.recipe().recipe.method.type == methods.kind(run.adapter)
    shares = state["gradient_shares"]["1"]
    assert sum(shares.values()) == pytest.approx(1.0) and all(s >= 0 for s in shares.values())
    report = evaluate(run)
    assert report["adapter"]["method"] == {"pissa": "lora+pissa", "whole": "lora"}.get(named, named)
    assert report["adapter"]["trainable_parameters"] == state["trainable_parameters"]
    loss = report["sets"][report["primary"]]["metrics"]["loss"]
    assert loss["tuned"] != loss["base"] and abs(loss["tuned"]) < 100
    the_adapter_is_that_of_the_last_checkpoint_and_moves_the_base(run)


def the_adapter_is_that_of_the_last_checkpoint_and_moves_the_base(run: Run) -> None:
    last = sorted(run.path.glob("checkpoint-*"))[-1]
    assert (last / files.WEIGHTS_FILE).read_bytes() == (run.adapter / files.WEIGHTS_FILE).read_bytes()
    assert (last / files.CONFIG_FILE).read_bytes() == (run.adapter / files.CONFIG_FILE).read_bytes()
    model = methods.load(model_of(run.base(), torch.float32), run.adapter)
    ids = torch.arange(3, 20)[None]
    with torch.inference_mode():
        on = model(input_ids=ids).logits
        with model.disable_adapter():
            assert (model(input_ids=ids).logits - on).abs().max() > 1e-4


@pytest.mark.parametrize("named", ["pissa", "qlora", "full", "prefix", "bottleneck"])
def test_resumed_by_the_verb_it_is_the_same_to_the_last_bit(make_recipe, named):
    found = prove.resume(make_recipe(**SHORT | {"method": RECIPES[named]}), 4, lambda _line: None)
    assert found["identical"], found


def test_recipes_that_train_whole_weights_choose_float32(make_recipe):
    changes = SHORT | {"method": {"type": "full"}, "train.dtype": "auto", "train.max_steps": 1}
    assert train(make_recipe(**changes))["dtype"] == "float32"


@pytest.mark.parametrize(("method", "rate", "expected"), [
    ({"type": "full"}, 0.01, True), ({"type": "full"}, 2e-5, False), ({"type": "prompt"}, 2e-4, True),
    ({"type": "prompt"}, 0.03, False), ({"type": "lora"}, 2e-4, False), ({"type": "lora"}, 0.1, True)])
def test_a_learning_rate_of_another_method_is_a_warning(make_recipe, method, rate, expected):
    found = check(make_recipe(**{"method": method, "train.learning_rate": rate}))
    assert found["ok"]
    assert any(p["code"] == "learning_rate" for p in found["problems"]) == expected


def test_virtual_tokens_that_leave_no_room_are_a_warning(make_recipe):
    found = check(make_recipe(method={"type": "prefix", "tokens": 500}))
    assert [p["code"] for p in found["problems"] if p["code"] == "context"] == ["context"]
    assert not [p for p in check(make_recipe())["problems"] if p["code"] == "context"]
