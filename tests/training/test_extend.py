"""More epochs for a run that is there: the same order of rows, one schedule from where it goes on, and exact resume after it.

pytest tests/training/test_extend.py
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tunesmith.errors import RecipeError, UsageError
from tunesmith.training import checkpoint, extend
from tunesmith.training.run import Run, train
from tunesmith.training.schedule import factor

STEPS = 7
"""Of an epoch of the fixture's rows."""
FOUR = [{"messages": [{"role": "user", "content": f"{n} {street} Street"},
                      {"role": "assistant", "content": f"{n} in {street}"}]}
        for n, street in ((11, "Oak"), (48, "Elm"), (85, "Main"), (122, "Bever"))]
KEEP_ALL = {"train.checkpoint": {"every_steps": 3, "keep": 100}}
CONSTANT = {"train.schedule": "constant", "train.warmup": 0.0}


def lines(run_dir: str | Path) -> tuple[list[dict], list[dict]]:
    """(steps, evaluations) of metrics.jsonl."""
    records = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    return [r for r in records if "loss" in r], [r for r in records if "eval_loss" in r]


def back_to(run: Run, step: int) -> None:
    """As a crash after `checkpoint-{step}` would have left it."""
    shutil.rmtree(run.adapter)
    for path in checkpoint.all_in(run.path):
        if checkpoint.step_of(path) > step:
            shutil.rmtree(path)
    run.update(status="running")
    assert (run.path / f"checkpoint-{step}").is_dir()


def test_at_a_constant_rate_two_epochs_and_one_more_are_three_bit_for_bit(make_recipe, left):
    recipe = make_recipe(**CONSTANT)
    state = train(recipe)
    longer = train(recipe, resume=state["run_id"], extend_epochs=1)
    straight = train(make_recipe(**CONSTANT | {"train.epochs": 3}))
    assert (longer["run_id"], longer["status"], longer["steps"]) == (state["run_id"], "finished", 3 * STEPS)
    assert longer["adapter_digest"] == straight["adapter_digest"] != state["adapter_digest"]
    one, other = left(longer["run_dir"]), left(straight["run_dir"])
    assert [m for m in one.metrics if m["step"] != 2 * STEPS or "loss" in m] == other.metrics  # but the evaluation between
    assert one.optimizer.keys() == other.optimizer.keys()
    assert all((one.optimizer[k] == other.optimizer[k]).all() for k in one.optimizer)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_schedule_is_that_of_the_new_total_from_there_and_the_rows_come_in_the_same_order(make_recipe, schedule):
    recipe = make_recipe(**{"train.schedule": schedule})
    before, _ = lines(train(recipe)["run_dir"])
    state = train(recipe, resume=Run.find("tiny").path.name, extend_epochs=2)
    straight, _ = lines(train(make_recipe(**{"train.schedule": schedule, "train.epochs": 4}))["run_dir"])
    steps, evals = lines(state["run_dir"])
    assert [r["learning_rate"] for r in steps[: 2 * STEPS]] == [r["learning_rate"] for r in before]
    assert [r["learning_rate"] for r in steps[2 * STEPS :]] == [r["learning_rate"] for r in straight[2 * STEPS :]]
    assert steps[2 * STEPS]["learning_rate"] == 0.01 * factor(14, 28, 0.03, schedule) > 0.004 > before[-1]["learning_rate"]
    assert [(r["epoch"], r["tokens"], r["trained_tokens"]) for r in steps] == [
        (r["epoch"], r["tokens"], r["trained_tokens"]) for r in straight]
    assert [r["step"] for r in evals] == [0, 14, 28]
    assert steps[-1]["loss"] < steps[2 * STEPS - 1]["loss"]  # it did go on learning


@pytest.mark.parametrize("at", [12, 14, 18])
def test_resumed_without_the_flag_it_is_exact_from_any_checkpoint(make_recipe, left, assert_same, at):
    """Also from one that is older than the extension: the steps in between have the old schedule again."""
    recipe = make_recipe(**KEEP_ALL)
    run = Run.find(train(recipe)["run_id"])
    train(recipe, resume=run.path.name, extend_epochs=1)
    straight = left(run.path)
    back_to(run, at)
    state = train(recipe, resume=run.path.name)
    assert (state["status"], state["steps"]) == ("finished", 3 * STEPS)
    assert_same(left(run.path), straight)


def test_a_stopped_run_is_extended_from_its_newest_checkpoint_and_twice_is_twice(make_recipe):
    recipe = make_recipe(**KEEP_ALL)
    run = Run.find(train(recipe)["run_id"])
    back_to(run, 6)
    run.update(status="stopped")
    train(recipe, resume=run.path.name, extend_epochs=1)
    state = train(recipe, resume=run.path.name, extend_epochs=1)
    assert state["extended"] == [{"after_step": 6, "epochs": [2, 3], "steps": [14, 21]},
                                 {"after_step": 21, "epochs": [3, 4], "steps": [21, 28]}]
    steps, evals = lines(run.path)
    totals = [14] * 6 + [21] * 15 + [28] * 7
    assert [r["learning_rate"] for r in steps] == [0.01 * factor(i, total, 0.03, "cosine") for i, total in enumerate(totals)]
    assert [r["step"] for r in evals] == [0, 21, 28]


def test_what_is_said_and_written(make_recipe, command):
    recipe = make_recipe()
    state = train(recipe)
    run = Run.find(state["run_id"])
    (run.path / "report").mkdir()
    (run.path / "report" / "report.json").write_text("{}")
    code, out, err = command("train", recipe, "--resume", state["run_id"], "--extend-epochs", 1)
    assert code == 0, err
    assert "from 2 to 3 epochs, from 14 to 21 steps; step 15 has the learning rate of 21 steps, 2.7e-03" in err
    assert f"run {state['run_id']}: 21 steps" in out
    events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    (event,) = [e for e in events if e["event"] == "extended"]
    assert (event["after_step"], event["epochs"], event["steps"]) == (14, [2, 3], [14, 21])
    assert event["learning_rate"] == [0.0, pytest.approx(lines(run.path)[0][14]["learning_rate"])]
    assert json.loads((run.path / "recipe.resolved.json").read_text())["train"]["epochs"] == 3
    assert run.recipe().recipe.train.epochs == 3
    assert sorted(p.name for p in run.path.iterdir() if p.is_dir()) == ["adapter", "adapter-14", "checkpoint-15",
                                                                        "checkpoint-18", "checkpoint-21", "report-14"]
    before = checkpoint.sha256_tree(run.path / "adapter-14")
    assert extend.sha256_json(before) == state["adapter_digest"] != run.state["adapter_digest"]
    code, _, err = command("train", recipe, "--resume", state["run_id"])
    assert code == 0 and "is already finished" in err


def test_the_recipe_may_say_the_epochs_it_began_with_or_the_new_total_and_no_others(make_recipe):
    run = Run.find(train(make_recipe(**KEEP_ALL))["run_id"])
    train(make_recipe(**KEEP_ALL), resume=run.path.name, extend_epochs=2)
    for epochs in (2, 4):
        back_to(run, 18)
        assert train(make_recipe(**KEEP_ALL | {"train.epochs": epochs}), resume=run.path.name)["steps"] == 4 * STEPS
    for epochs in (3, 5):
        with pytest.raises(RecipeError, match="has changed since run .*: train.epochs\n") as caught:
            train(make_recipe(**KEEP_ALL | {"train.epochs": epochs}), resume=run.path.name)
        assert "--extend-epochs" in caught.value.fix


def test_killed_before_its_files_follow_it_is_extended_all_the_same(make_recipe, left, assert_same, monkeypatch):
    recipe = make_recipe()
    one, other = (Run.find(train(recipe)["run_id"]) for _ in range(2))
    train(recipe, resume=one.path.name, extend_epochs=1)

    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(extend, "settle", kill)
        with pytest.raises(Killed):
            train(recipe, resume=other.path.name, extend_epochs=1)
    assert json.loads((other.path / "recipe.resolved.json").read_text())["train"]["epochs"] == 2
    train(recipe, resume=other.path.name)
    assert_same(left(other.path), left(one.path))
    assert other.recipe().recipe.train.epochs == 3
    assert (other.path / "adapter-14").is_dir()


def test_the_best_adapter_stays_the_best_when_more_epochs_find_no_better(make_recipe, sharp_base):
    """Four rows learned by heart, while the held-out loss rises. The first training had forgotten its `best-N`."""
    recipe = make_recipe(train=FOUR, base=str(sharp_base), **{
        "train.epochs": 40, "train.learning_rate": 0.003, "train.eval_every_steps": 2,
        "train.checkpoint": {"every_steps": 7, "keep": 1, "keep_best": True}})
    state = train(recipe)
    longer = train(recipe, resume=state["run_id"], extend_epochs=10)
    evals = {r["step"]: r["eval_loss"] for r in lines(state["run_dir"])[1] if r["step"]}
    best = min(evals, key=evals.get)
    assert max(evals) == longer["steps"] > state["steps"]
    assert best < state["steps"]
    assert (longer["adapter_step"], longer["eval_loss"]) == (best, evals[best]) == (state["adapter_step"], state["eval_loss"])
    assert longer["adapter_digest"] == state["adapter_digest"]
    assert not list(Path(state["run_dir"]).glob("best-*"))


def test_tracked_by_mlflow_it_stays_one_run(make_recipe):
    recipe = make_recipe(**{"track.mlflow": "sqlite"})
    state = train(recipe)
    longer = train(recipe, resume=state["run_id"], extend_epochs=1)
    assert longer["status"] == "finished" and longer["mlflow_run_id"] == state["mlflow_run_id"]


def test_refused_without_a_run_with_max_steps_after_early_stopping_and_without_its_last_checkpoint(make_recipe, command):
    recipe = make_recipe()
    with pytest.raises(UsageError, match="--extend-epochs is for a run that is there already"):
        train(recipe, extend_epochs=1)
    assert command("train", recipe, "--extend-epochs", 1)[0] == 2

    def refused(why: str, **changes) -> dict:
        recipe = make_recipe(**changes)
        state = train(recipe)
        if why == "is not whole":
            shutil.rmtree(Path(state["run_dir"]) / f"checkpoint-{state['steps']}")
        with pytest.raises(RecipeError, match=f"cannot be extended: .*{why}") as caught:
            train(recipe, resume=state["run_id"], extend_epochs=1)
        assert caught.value.fix and caught.value.exit_code == 2
        assert Run.find(state["run_id"]).state == state  # and nothing has changed
        return state

    refused("train.max_steps is 3", **{"train.max_steps": 3})
    refused("is not whole")
    stopped = refused("early_stop has ended it", **{"train.eval_every_steps": 1, "train.early_stop": {"patience": 1},
                                                    "train.learning_rate": 0.5, **CONSTANT})
    assert stopped["steps"] < stopped["total_steps"]
