"""Each check of a training's health: a real run that must trigger it, and ordinary ones that must not.

pytest tests/training/test_health.py
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tunesmith.errors import RecipeError, TrainingError
from tunesmith.recipe.load import load
from tunesmith.training import checkpoint
from tunesmith.training.health import EXPLODED_STEPS, Health
from tunesmith.training.loop import read_metrics
from tunesmith.training.run import Run, all_runs, train

SHARP = {"train.learning_rate": 0.003, "train.epochs": 60, "train.eval_every_steps": 6}
"""With four rows: one step an epoch, learned by heart; the held-out loss is lowest at step 12."""
LAST = {"train.checkpoint.every_steps": 1000}


@pytest.fixture(autouse=True)
def own_home(home):
    return home


def rows_of(recipe: Path, part: str) -> list[dict]:
    """The rows that the fixture wrote beside a recipe."""
    return [json.loads(line) for line in (recipe.parent / f"{part}.jsonl").read_text().splitlines()]


@pytest.fixture
def few(make_recipe, sharp_base):
    """A recipe of four rows on a base that can learn them by heart."""

    def make(**changes) -> Path:
        return make_recipe(train=rows_of(make_recipe(), "train")[:4], **{"base": str(sharp_base)} | LAST | changes)

    return make


@pytest.fixture
def fitted_base(make_recipe, sharp_base, tmp_path, monkeypatch) -> Path:
    """A base that knows the rows already: an adapter merged into `sharp_base`."""
    rows = rows_of(recipe := make_recipe(), "train") + rows_of(recipe, "test")
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "before"))
    state = train(make_recipe("fit.yaml", base=str(sharp_base), train=rows,
                              **{"train.epochs": 30, "train.learning_rate": 0.003} | LAST))
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    shutil.copytree(sharp_base, tmp_path / "fitted")
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sharp_base), state["adapter_dir"])
    tuned.merge_and_unload().save_pretrained(tmp_path / "fitted")
    return tmp_path / "fitted"


def stopped(recipe: Path) -> tuple[TrainingError, Run]:
    """The error that a training ends with, and its run, which must have no adapter."""
    with pytest.raises(TrainingError) as caught:
        train(recipe)
    run = Run.find(all_runs()[0]["run_id"])
    assert run.state["status"] == "failed" and caught.value.what in run.state["error"]
    assert not run.adapter.exists()
    assert caught.value.why and caught.value.fix
    return caught.value, run


def steps_of(run: Run) -> list[dict]:
    return [r for r in read_metrics(run.path) if "loss" in r]


# ---- what stops a run ------------------------------------------------------------------------------------------------


def test_a_gradient_that_explodes_late_stops_the_run_and_is_named(few):
    """The learning rate rises until it throws the model off rows that it knew by heart."""
    error, run = stopped(few(**{"train.learning_rate": 3.0, "train.warmup": 1.0, "train.epochs": 200,
                                "method.targets": ["down_proj", "o_proj", "v_proj"]}))
    last = steps_of(run)[-EXPLODED_STEPS:]
    assert error.what == f"step {last[-1]['step']}: the gradient exploded"
    usual = np.median([r["grad_norm"] for r in steps_of(run)[-EXPLODED_STEPS - 50 : -EXPLODED_STEPS]])
    factor = float(error.why.split("times the")[0].rsplit(",", 1)[1])
    assert factor == pytest.approx(last[-1]["grad_norm"] / usual, rel=0.1)
    assert min(r["grad_norm"] for r in last) > 20 * usual
    assert "train.learning_rate" in error.fix


def test_a_loss_that_diverges_stops_the_run(make_recipe, fitted_base):
    error, run = stopped(make_recipe(base=str(fitted_base), **{"train.learning_rate": 1.0, "train.schedule": "constant",
                                                               "train.tokens_per_step": 128, "train.epochs": 10} | LAST))
    records = steps_of(run)
    assert error.what == f"step {records[-1]['step']}: the loss diverged"
    assert min(r["loss"] for r in records[-20:]) > 1.5 * records[0]["loss"]
    assert "worse than its base" in error.why


def test_an_absurd_learning_rate_that_kills_the_gradient_stops_the_run(make_recipe):
    error, run = stopped(make_recipe(**{"train.learning_rate": 1.0e3, "train.epochs": 12} | LAST))
    assert error.what.endswith("the gradient is gone")
    assert all(r["grad_norm"] == 0 for r in steps_of(run)[-20:])


def test_learning_rates_that_cannot_change_a_model_stop_before_step_1(make_recipe):
    error, run = stopped(make_recipe(**{"train.learning_rate": 1.0e-12}))
    assert "14 steps at a learning rate of at most 1.0e-12 cannot change the model" in error.what
    assert read_metrics(run.path) == [] and checkpoint.all_in(run.path) == []


def test_an_adapter_that_did_not_change_is_seen_after_three_steps(make_recipe):
    error, run = stopped(make_recipe(**{"train.clip_norm": 1.0e-50} | LAST))
    assert error.what == "the adapter did not change" and "after step 3" in error.why
    assert len(steps_of(run)) == 3


def test_a_loss_that_never_falls_is_a_warning_and_then_an_error(few, tiny_base):
    flat = {"base": str(tiny_base), "train.learning_rate": 1.0e-7, "train.epochs": 320}
    error, run = stopped(few(**flat | {"train.eval_every_steps": 80}))
    assert error.what == "step 310: nothing was learned in 300 steps"
    (warning,) = run.state["warnings"]
    assert (warning["code"], warning["step"]) == ("flat_loss", 160)


@pytest.mark.slow
def test_without_a_second_evaluation_a_flat_loss_is_only_a_warning(few, tiny_base):
    said = []
    state = train(few(base=str(tiny_base), **{"train.learning_rate": 1.0e-7, "train.epochs": 320}), say=said.append)
    assert state["status"] == "finished"
    assert [w["code"] for w in state["warnings"]] == ["flat_loss"]


@pytest.mark.parametrize("part", ["train", "test.test"])
def test_a_dataset_without_trained_tokens_stops_before_step_1(make_recipe, part):
    """Rows cannot say so (preparing refuses them); a file that was damaged on the disk can."""
    from tunesmith.verbs import prepare

    recipe = make_recipe()
    file = Path(prepare(recipe)["path"]) / f"{part}.trained.npy"
    np.save(file, np.zeros_like(np.load(file)))
    error, run = stopped(recipe)
    assert error.what == f"step 1 of {part.rsplit('.')[-1]}: no token is trained"
    assert read_metrics(run.path) == []


# ---- what is a warning -----------------------------------------------------------------------------------------------


def noise(count: int, seed: int) -> list[dict]:
    """Questions with answers that follow from nothing."""
    rng = random.Random(seed)
    return [{"messages": [{"role": "user", "content": f"{n} {rng.choice(['Oak', 'Elm', 'Main'])} Street"},
                          {"role": "assistant", "content": "".join(rng.choices("abcdefghijklmnop", k=8))}]}
            for n in range(count)]


def test_labels_that_are_noise_diverge_from_the_held_out_rows_and_the_step_is_named(make_recipe, sharp_base, capsys):
    state = train(make_recipe(base=str(sharp_base), train=noise(20, 1), test=noise(8, 2), **{
        "train.learning_rate": 0.003, "train.epochs": 20, "train.eval_every_steps": 6} | LAST))
    (warning,) = state["warnings"]
    evals = {r["step"]: r["eval_loss"] for r in read_metrics(Path(state["run_dir"])) if "eval_loss" in r}
    lowest = min((s for s in evals if s <= warning["step"]), key=evals.get)
    assert warning["code"] == "overfit"
    assert f"rises since step {lowest}, from {evals[lowest]:.4g} to {evals[warning['step']]:.4g}" in warning["message"]
    assert warning["step"] == lowest + 3 * 6
    assert "warning: the held-out loss rises" in capsys.readouterr().err
    events = [json.loads(line) for line in (Path(state["run_dir"]) / "events.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e["event"] == "warning"] == [warning["step"]]


def test_an_overfit_run_that_is_only_evaluated_at_both_ends_is_told_at_the_end(make_recipe, fitted_base):
    """Other rows than the base knows: the ones it is trained on."""
    state = train(make_recipe(base=str(fitted_base), train=noise(4, 1), **{
        "train.learning_rate": 0.003, "train.epochs": 30} | LAST))
    assert [(w["code"], w["step"]) for w in state["warnings"]] == [("overfit", state["steps"])]


# ---- what is neither -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [
    {}, {"train.epochs": 12, "train.eval_every_steps": 14}, {"train.schedule": "constant", "train.epochs": 6},
    {"train.learning_rate": 1.0e-6, "train.max_steps": 2}, {"train.learning_rate": 0.1, "train.epochs": 8},
    {"train.epochs": 6, "train.tokens_per_step": 64, "train.learning_rate": 1.0e-3}, {"train.max_steps": 1},
    {"train.warmup": 1.0, "train.epochs": 10}, {"train.dtype": "bfloat16"},
], ids=str)
@pytest.mark.parametrize("base", ["tiny_base", "lively_base"])
def test_ordinary_runs_give_no_alarm(make_recipe, request, base, changes):
    state = train(make_recipe(base=str(request.getfixturevalue(base)), **changes | LAST))
    assert (state["status"], state["warnings"]) == ("finished", [])


def test_a_held_out_loss_that_wavers_at_nothing_is_no_overfitting():
    """The evaluations of a real run, SmolLM2-135M on addresses; the same twenty times as large are."""
    def warnings(scale: float) -> list[dict]:
        health, found = Health(64), []
        for at, loss in enumerate([1.757, 0.187, 0.0815, 0.0541, 0.0379, 0.0276, 0.0297, 0.0303, 0.0295]):
            for i in range(max(0, 8 * at - 7), 8 * at + 1) if at else ():
                found += health.observe(step(i, scale / i, 1.0))
            found += health.observe({"step": 8 * at, "eval_loss": scale * loss})
        return found

    assert warnings(1.0) == []
    assert [(w["code"], w["step"]) for w in warnings(20.0)] == [("overfit", 64)]


@pytest.mark.parametrize("rate", [0.003, 0.03])
def test_rows_learned_by_heart_are_not_stopped(few, rate):
    """Norms that fall by four powers of ten, and a loss of nothing for hundreds of steps."""
    state = train(few(**{"train.learning_rate": rate, "train.schedule": "constant", "train.epochs": 200}))
    assert state["status"] == "finished" and state["train_loss"] < 0.001


def step(number: int, loss: float, norm: float) -> dict:
    return {"step": number, "loss": loss, "grad_norm": norm}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.01, 1.0), st.floats(0.0, 0.2), st.integers(1, 4))
def test_noisy_falling_losses_with_spikes_of_the_gradient_are_healthy(seed, floor, noise, spike):
    """Spikes of up to four steps at a thousand times the usual norm, as large models have them, with a loss that jumps."""
    rng = np.random.default_rng(seed)
    health, warned = Health(600), []
    spikes = {s + i for s in rng.integers(10, 590, 5) for i in range(spike) if s % 13 == 0}
    for i in range(1, 601):
        loss = (floor + 2 * np.exp(-i / 60)) * np.exp(noise * rng.normal())
        warned += health.observe(step(i, 3 * loss if i in spikes else loss,
                                      np.exp(rng.normal() / 2) * (1000 if i in spikes else 1)))
    assert warned == []


def test_a_gradient_that_stays_a_thousand_times_larger_is_not():
    health = Health(600)
    for i in range(1, 101):
        health.observe(step(i, 2.0 - i / 100, 1.0))
    with pytest.raises(TrainingError, match=f"step {100 + EXPLODED_STEPS}: the gradient exploded"):
        for i in range(101, 200):
            health.observe(step(i, 1.9, 1000.0))


# ---- early stopping and the best adapter -----------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.sampled_from([1.0, 1.1, 1.2, 1.3, 0.9]), min_size=1, max_size=12), st.integers(1, 4))
def test_best_step_and_patience_equal_a_look_at_all_evaluations(losses, patience):
    health = Health(10**6, patience=patience)
    health.observe({"step": 0, "eval_loss": 0.5})
    for i, loss in enumerate(losses, 1):
        health.observe(step(i, 1.0, 1.0))
        health.observe({"step": i, "eval_loss": loss})
    best = int(np.argmin(losses)) + 1
    assert (health.best_step, health.best_loss, health.stale) == (best, min(losses), len(losses) - best)
    assert health.exhausted == (len(losses) - best >= patience)


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def test_early_stopping_ends_with_the_adapter_of_the_lowest_held_out_loss(few):
    state = train(few(**SHARP | {"train.early_stop": {"patience": 3}}))
    run = Run.find(state["run_id"])
    evals = {r["step"]: r["eval_loss"] for r in read_metrics(run.path) if "eval_loss" in r}
    best = min(evals, key=evals.get)
    assert (state["status"], state["adapter_step"], state["steps"], state["total_steps"]) == ("finished", best, best + 18, 60)
    assert state["eval_loss"] == evals[best]
    events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    assert [(e["steps"], e["best_step"]) for e in events if e["event"] == "stopped_early"] == [(best + 18, best)]

    alike = Run.find(train(few(**SHARP | {"train.checkpoint": {"every_steps": best, "keep": 100}}))["run_id"])
    assert weights(run.adapter) == weights(alike.path / f"checkpoint-{best}") != weights(alike.adapter)
    assert alike.state["adapter_step"] == alike.state["steps"] == 60
    assert not list(run.path.glob("best-*"))


def test_keep_best_trains_to_the_end_and_gives_the_same_adapter(few):
    stopped_early = train(few(**SHARP | {"train.early_stop": {"patience": 3}}))
    kept = train(few(**SHARP | {"train.checkpoint": {"every_steps": 7, "keep": 1, "keep_best": True}}))
    assert kept["steps"] == kept["total_steps"] == 60
    assert kept["adapter_step"] == stopped_early["adapter_step"]
    assert weights(Path(kept["adapter_dir"])) == weights(Path(stopped_early["adapter_dir"]))


@pytest.mark.parametrize("at", [7, 14, 30], ids="crash after checkpoint {}".format)
def test_early_stopping_resumes_to_the_same_adapter_step_and_warnings(few, at, monkeypatch):
    """Wherever it was ended: before the best step, after it, and between its last step and its adapter."""
    recipe = few(**SHARP | {"train.early_stop": {"patience": 3}, "train.checkpoint": {"every_steps": 7, "keep": 100}})
    with monkeypatch.context() as before_the_crash:
        before_the_crash.setattr(checkpoint, "forget_best", lambda *_: None)  # the last thing that a finished run does
        straight = train(recipe)
    run = Run.find(straight["run_id"])
    before = _numbers(run)
    kept = weights(run.adapter)
    shutil.rmtree(run.adapter)
    for path in checkpoint.all_in(run.path):
        if checkpoint.step_of(path) > at:
            shutil.rmtree(path)
    run.update(status="running")
    again = train(recipe, resume=straight["run_id"])
    assert weights(run.adapter) == kept
    results = ("steps", "adapter_step", "warnings", "eval_loss", "train_loss", "status")
    assert {k: again[k] for k in results} == {k: straight[k] for k in results}
    assert _numbers(run) == before


def _numbers(run: Run) -> list[dict]:
    """What a resumed run must repeat: everything but times and memory."""
    return [{k: v for k, v in r.items() if "second" not in k and "memory" not in k} for r in read_metrics(run.path)]


def test_a_damaged_best_adapter_is_not_taken(few, monkeypatch):
    recipe = few(**SHARP | {"train.early_stop": {"patience": 3}})
    save = checkpoint.save_best

    def save_and_spoil(run_dir, number, model):
        save(run_dir, number, model)
        file = run_dir / f"best-{number}" / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-1])

    monkeypatch.setattr(checkpoint, "save_best", save_and_spoil)
    with pytest.raises(OSError, match="best-12 is damaged"):
        train(recipe)


@pytest.mark.parametrize("changes", [{"train.early_stop": {"patience": 3}}, {"train.checkpoint.keep_best": True}])
def test_comparing_evaluations_that_are_not_made_is_a_mistake_of_the_recipe(make_recipe, changes):
    with pytest.raises(RecipeError) as caught:
        load(make_recipe(**changes))
    assert "set train.eval_every_steps" in caught.value.problems[0].message
