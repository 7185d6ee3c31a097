"""How far a model has moved on neutral text, against a formula written otherwise, and what asking does to a training: nothing.

pytest tests/training/test_drift.py
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div

from tunesmith import methods
from tunesmith.engine import fast, plain
from tunesmith.evals.drift import summed_up
from tunesmith.objectives.sft import sample
from tunesmith.recipe.methods import Full, Lora
from tunesmith.training.drift import Moved, during_training, moved, neutral
from tunesmith.training.health import FORGOTTEN_NATS, Health
from tunesmith.training.run import Run, train


@pytest.fixture
def model(tiny_base):
    """A LoRA model that has moved a little."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    made = methods.attach(AutoModelForCausalLM.from_pretrained(tiny_base), Lora(rank=4, alpha=8), str(tiny_base))
    with torch.no_grad():
        for name, p in made.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.3)
    return made.eval()


def test_the_text_is_prose_of_many_kinds_and_is_cut_where_it_is_told(tiny_tokenizer):
    rows = neutral(tiny_tokenizer)
    assert len(rows) == 16 and all(len(ids) == 128 for ids, _ in rows)
    ids, labels = neutral(tiny_tokenizer, 2, 10)[0]
    assert labels[:-1] == ids[1:] and len(neutral(tiny_tokenizer, 2, 10)) == 2


@pytest.mark.parametrize("engine", [plain, fast], ids=["plain", "fast"])
def test_it_is_the_divergence_that_torch_computes(model, tiny_tokenizer, engine):
    row = neutral(tiny_tokenizer, 1, 20)[0]
    ids = torch.tensor([row[0]])
    with torch.no_grad():
        tuned = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        with model.disable_adapter():
            base = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    if engine is fast:
        fast.accelerate(model)
    found, = moved(model, [row], engine.answer_logits)
    assert found.tokens == 19
    assert found.kl == pytest.approx(kl_div(tuned, base, reduction="sum", log_target=True).item(), rel=1e-3)
    assert found.base_nats == pytest.approx(-base.gather(1, ids[0, 1:, None]).sum().item(), rel=1e-4)
    assert found.tuned_nats == pytest.approx(-tuned.gather(1, ids[0, 1:, None]).sum().item(), rel=1e-4)
    assert found.kl > 0.01


def test_an_adapter_that_changes_nothing_has_not_moved(model, tiny_tokenizer):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.zero_()
    found = moved(model, neutral(tiny_tokenizer, 3), plain.answer_logits)
    assert all(m.kl == 0 and m.tuned_nats == m.base_nats for m in found)


def test_asking_leaves_what_is_trained_as_it_was(model, tiny_tokenizer):
    before = [p.requires_grad for p in model.parameters()]
    frozen = next(p for n, p in model.named_parameters() if "lora_A" in n)
    frozen.requires_grad_(False)  # by hand: PEFT would switch it on again
    state = torch.get_rng_state()
    moved(model, neutral(tiny_tokenizer, 1), plain.answer_logits)
    assert not frozen.requires_grad and torch.equal(state, torch.get_rng_state())
    frozen.requires_grad_(True)
    assert [p.requires_grad for p in model.parameters()] == before


def test_full_fine_tuning_remembers_its_base(tiny_base, tiny_tokenizer, make_recipe):
    from transformers import AutoModelForCausalLM

    from tunesmith.recipe.load import load

    recipe = load(make_recipe(method={"type": "full"}, **{"train.drift_every_steps": 1, "train.learning_rate": 1e-4})).recipe
    made = methods.attach(AutoModelForCausalLM.from_pretrained(tiny_base), Full(type="full"), str(tiny_base)).eval()
    measure = during_training(recipe, made, tiny_tokenizer, "plain")
    assert measure() == {"drift_kl": 0.0, "drift_loss": 0.0}
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(1.1)
    assert measure()["drift_kl"] > 1e-4
    assert during_training(recipe.model_copy(update={"train": recipe.train.model_copy(update={"drift_every_steps": None})}),
                           made, tiny_tokenizer, "plain") is None


def test_the_report_s_numbers_are_ratios_of_sums_with_intervals_over_passages():
    found = [Moved(10, 1.0, 30.0, 33.0), Moved(30, 6.0, 60.0, 61.0), Moved(20, 2.0, 50.0, 50.0)]
    said = summed_up(found)
    assert (said["passages"], said["tokens"]) == (3, 60)
    assert said["kl"]["value"] == pytest.approx(9 / 60)
    assert (said["loss"]["base"], said["loss"]["tuned"]) == (pytest.approx(140 / 60), pytest.approx(144 / 60))
    assert said["loss"]["delta"] == pytest.approx(4 / 60)
    low, high = said["kl"]["ci95"]
    assert low <= 9 / 60 <= high and low >= 0.1 - 1e-9 and high <= 0.2 + 1e-9  # between the passages' own means
    assert json.dumps(said)


# ---- during training -------------------------------------------------------------------------------------------------

ASKED = {"train.max_steps": 6, "train.drift_every_steps": 2, "train.checkpoint.keep": 100}


def records(run_dir, key: str) -> list[dict]:
    lines = map(json.loads, (Run(run_dir).path / "metrics.jsonl").read_text().splitlines())
    return [r for r in lines if key in r]


def test_asking_changes_nothing_that_is_trained(make_recipe, left):
    quiet = left(train(make_recipe(**{"train.max_steps": 6}))["run_dir"])
    state = train(make_recipe(**ASKED))
    asked = left(state["run_dir"])
    assert asked.adapter == quiet.adapter and [m for m in asked.metrics if "drift_kl" not in m] == quiet.metrics
    drift = records(Run.find(state["run_id"]).path, "drift_kl")
    assert [r["step"] for r in drift] == [2, 4, 6] and state["steps"] == 6
    assert all(r["drift_kl"] > 0 and np.isfinite(r["drift_loss"]) for r in drift)


def test_a_resumed_run_has_the_same_drift_and_the_same_bytes(make_recipe, crashed, left, assert_same):
    recipe = make_recipe(**ASKED)
    run, straight = crashed(recipe, at=3)
    train(recipe, resume=run.path.name)
    assert_same(left(run.path), straight)
    assert records(run.path, "drift_kl")


def observed(health: Health, losses: list[float]) -> list[dict]:
    return [w for n, loss in enumerate(losses) for w in health.observe({"step": n + 1, "drift_kl": 0.5, "drift_loss": loss})]


def test_a_model_that_forgets_is_warned_of_once_and_one_that_does_not_is_left_alone():
    high = FORGOTTEN_NATS + 0.01
    warning, = observed(Health(10), [0.1, high, high, high])
    assert (warning["code"], warning["step"]) == ("drift", 3) and "replay" in warning["fix"]
    assert observed(Health(10), [0.1, high, 0.2, high, 0.3]) == []  # never twice in a row
    assert observed(Health(10), [-0.5, 0.0, FORGOTTEN_NATS]) == []


def test_a_learning_rate_far_too_high_makes_a_real_run_forget(make_recipe, sharp_base):
    hot = train(make_recipe(base=str(sharp_base), **ASKED | {"train.learning_rate": 0.05, "train.max_steps": 12}))
    assert "drift" in [w["code"] for w in hot["warnings"]]
    calm = train(make_recipe(base=str(sharp_base), **ASKED | {"train.learning_rate": 0.0005}))
    assert "drift" not in [w["code"] for w in calm["warnings"]]


def test_samples_are_predicted_from_their_second_token_on():
    assert sample([5, 6, 7], [False, True, True])[1] == [6, 7, -100]
