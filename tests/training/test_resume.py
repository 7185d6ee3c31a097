"""A resumed training equals the uninterrupted one bit for bit, however it was ended; or it is refused.

pytest tests/training/test_resume.py
"""

from __future__ import annotations

import json
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch

from tunesmith.errors import RecipeError
from tunesmith.training import checkpoint
from tunesmith.training.run import Run, all_runs, train

KEEP_ALL = {"train.checkpoint.keep": 100}
LONG = {"train.epochs": 25, "train.checkpoint.every_steps": 7}
"""175 steps: after the last one that is waited for, there are seconds left for the signal to arrive."""


@pytest.mark.slow
def test_ctrl_c_and_sigterm_stop_at_a_checkpoint_and_resume_to_the_same_bytes(make_recipe, start, left, assert_same):
    recipe = make_recipe(**LONG)
    process = start(recipe)
    run_dir = process.wait_for_step(10)
    code, out, err = process.send(signal.SIGINT)
    state = json.loads(out)
    assert (code, state["status"]) == (130, "stopped"), err
    assert 10 <= state["steps"] < state["total_steps"]
    assert checkpoint.step_of(checkpoint.all_in(run_dir)[-1]) == state["steps"]
    assert not (run_dir / "adapter").exists()
    assert f"stopped: checkpoint-{state['steps']} is written" in err

    process = start(recipe, "--resume", run_dir.name)
    process.wait_for_step(state["steps"] + 10)
    code, out, err = process.send(signal.SIGTERM)
    again = json.loads(out)
    assert (code, again["status"]) == (130, "stopped"), err
    assert f"resuming {run_dir.name} after step {state['steps']}" in err
    assert state["steps"] + 10 <= again["steps"] < again["total_steps"]

    finished = train(recipe, resume=run_dir.name)
    assert finished["status"] == "finished"
    assert_same(left(run_dir), left(train(recipe)["run_dir"]))


@pytest.mark.slow
def test_kill_9_at_three_moments_resumes_to_the_same_bytes(make_recipe, start, left, assert_same):
    recipe = make_recipe(**LONG)
    process = start(recipe)
    run_dir = process.wait_for_step(1)  # before the first checkpoint
    assert process.send(signal.SIGKILL)[0] == -signal.SIGKILL
    for step in (20, 50):
        assert json.loads((run_dir / "run.json").read_text())["status"] == "running"
        process = start(recipe, "--resume", run_dir.name)
        process.wait_for_step(step)
        assert process.send(signal.SIGKILL)[0] == -signal.SIGKILL
    said = []
    state = train(recipe, resume=run_dir.name, say=said.append)
    assert any(line.startswith(f"resuming {run_dir.name} after step ") for line in said)
    assert len(all_runs()) == 1
    assert_same(left(state["run_dir"]), left(train(recipe)["run_dir"]))


def test_a_line_of_metrics_cut_off_by_a_crash_is_left_out(make_recipe, crashed, left, assert_same):
    recipe = make_recipe(**KEEP_ALL)
    run, straight = crashed(recipe, at=6)
    metrics = run.path / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join(lines[:9]) + lines[9][:25])
    train(recipe, resume=run.path.name)
    assert_same(left(run.path), straight)


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(("break_", "file"), [
    (flip_a_byte, "adapter_model.safetensors"), (cut_off, "optimizer.pt"), (Path.unlink, "rng_state.pth"),
    (flip_a_byte, "scheduler.pt"), (Path.unlink, "adapter_config.json"), (cut_off, "trainer_state.json")])
def test_damaged_checkpoint_is_named_and_the_one_before_gives_the_same_bytes(make_recipe, crashed, left, assert_same, file,
                                                                            break_):
    recipe = make_recipe(**{"train.epochs": 1, "train.checkpoint": {"every_steps": 2, "keep": 100}})
    run, straight = crashed(recipe, at=4)
    break_(run.path / "checkpoint-4" / file)
    said = []
    train(recipe, resume=run.path.name, say=said.append)
    why = "cannot be read" if file == "trainer_state.json" else "changed or missing"
    assert f"checkpoint-4 is damaged ({file} {why}): going back to the one before" in said
    assert f"resuming {run.path.name} after step 2" in said
    assert_same(left(run.path), straight)
    assert all(checkpoint.damage(path) is None for path in checkpoint.all_in(run.path))


def test_when_every_checkpoint_is_damaged_it_begins_again(make_recipe, crashed, left, assert_same):
    recipe = make_recipe(**KEEP_ALL)
    run, straight = crashed(recipe, at=6)
    for path in checkpoint.all_in(run.path):
        flip_a_byte(path / "optimizer.pt")
    said = []
    train(recipe, resume=run.path.name, say=said.append)
    assert "checkpoint-3 is damaged (optimizer.pt changed or missing): going back to the beginning" in said
    assert_same(left(run.path), straight)


def test_a_damaged_checkpoint_does_not_push_out_the_whole_ones_written_after_it(make_recipe, crashed, monkeypatch):
    """keep: 1, and newest by number is the damaged one: what is kept must be what was just written."""
    recipe = make_recipe(**{"train.checkpoint.keep": 1})
    run, _ = crashed(recipe, at=14)
    assert [p.name for p in checkpoint.all_in(run.path)] == ["checkpoint-14"]
    flip_a_byte(run.path / "checkpoint-14" / "optimizer.pt")
    seen, save = [], checkpoint.save

    def save_and_look(*arguments, **named):
        path = save(*arguments, **named)
        seen.append([p.name for p in checkpoint.all_in(run.path)])
        return path

    monkeypatch.setattr(checkpoint, "save", save_and_look)
    train(recipe, resume=run.path.name)
    assert seen == [[f"checkpoint-{n}"] for n in (3, 6, 9, 12, 14)]


def test_dropout_resumes_to_the_same_bytes_because_the_random_state_comes_back(make_recipe, crashed, left, assert_same,
                                                                              monkeypatch):
    recipe = make_recipe(**{"method.dropout": 0.2, "train.epochs": 1})
    run, straight = crashed(recipe, at=3)
    assert run.state["engine"] == "plain"
    torch.rand(5), random.random()
    train(recipe, resume=run.path.name)
    assert_same(left(run.path), straight)

    run, straight = crashed(recipe, at=3)  # the control: without it they differ
    monkeypatch.setattr(checkpoint, "_set_rng_state", lambda _state: None)
    train(recipe, resume=run.path.name)
    assert left(run.path).adapter != straight.adapter


def test_resumed_run_computes_with_the_threads_it_began_with(make_recipe, crashed, left, assert_same):
    torch.set_num_threads(2)
    recipe = make_recipe(**{"train.epochs": 1})
    run, straight = crashed(recipe, at=3)
    assert run.state["threads"] == 2
    torch.set_num_threads(1)
    said = []
    train(recipe, resume=run.path.name, say=said.append)
    assert any(line.startswith("chose threads=2 ") for line in said)
    assert torch.get_num_threads() == 2
    assert_same(left(run.path), straight)


@pytest.mark.parametrize(("key", "value"), [("train.learning_rate", 0.02), ("train.epochs", 3), ("method.rank", 8),
                                            ("data.max_tokens", 100), ("train.checkpoint.keep", 7)])
def test_changed_recipe_is_refused_naming_the_key(make_recipe, crashed, key, value):
    run, _ = crashed(make_recipe(**KEEP_ALL), at=3)
    before = run.state
    with pytest.raises(RecipeError, match=f"the recipe has changed since run .*: {key}\n") as caught:
        train(make_recipe(**KEEP_ALL | {key: value}), resume=run.path.name)
    assert caught.value.exit_code == 2
    assert run.state == before


@pytest.mark.slow
def test_a_run_that_is_being_trained_cannot_be_resumed_by_another(make_recipe, start, command):
    recipe = make_recipe(**LONG)
    process = start(recipe)
    run_dir = process.wait_for_step(5)
    code, out, err = command("train", recipe, "--resume", run_dir.name)
    assert (code, out) == (2, "")
    assert f"run {run_dir.name} is being trained" in err and f"by process {process.popen.pid} on " in err
    assert process.popen.poll() is None  # and it goes on
    process.send(signal.SIGKILL)
    assert train(recipe, resume=run_dir.name)["status"] == "finished"  # the control: killed, it can be


def test_a_run_whose_making_was_killed_is_no_run_and_goes_with_the_next(make_recipe, home):
    state = train(make_recipe(**{"train.max_steps": 1}))
    half = home / "runs" / f".{state['run_id']}.abcd1234.tmp"
    shutil.copytree(state["run_dir"], half)
    assert [s["run_id"] for s in all_runs()] == [state["run_id"]]
    train(make_recipe(**{"train.max_steps": 1}))
    assert not half.exists() and len(all_runs()) == 2


def test_what_a_killed_training_left_is_taken_away_when_it_is_resumed(make_recipe, crashed, left, assert_same):
    recipe = make_recipe(**KEEP_ALL)
    run, straight = crashed(recipe, at=6)
    newer = run.path / ".checkpoint-9.abcd1234.tmp"
    shutil.copytree(run.path / "checkpoint-6", newer)  # the digests of another step: it must not be looked at
    (run.path / ".run.json.abcd1234.tmp").write_text("{")
    assert checkpoint.newest_whole(run.path, print) == run.path / "checkpoint-6"
    train(recipe, resume=run.path.name)
    assert [p.name for p in run.path.iterdir() if p.name.startswith(".")] == []
    assert_same(left(run.path), straight)


def test_python_s_random_numbers_begin_with_the_seed_too(make_recipe):
    """A checkpoint holds their state: if it were the process's own, no run could be repeated in another."""
    states = []
    for disturb in (1, 2):
        random.seed(disturb)
        run = train(make_recipe(**{"train.max_steps": 1}))["run_dir"]
        states.append(torch.load(Path(run) / "checkpoint-1" / "rng_state.pth", weights_only=True)["python"])
    assert states[0] == states[1]


def test_changed_data_are_refused(make_recipe, crashed):
    from tunesmith.recipe.load import load  # the rows as the fixture wrote them

    recipe = make_recipe(**KEEP_ALL)
    run, _ = crashed(recipe, at=3)
    file = load(recipe).folder / "train.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(RecipeError, match="the data has changed since run") as caught:
        train(recipe, resume=run.path.name)
    assert caught.value.exit_code == 2
    assert (run.path / "checkpoint-3").is_dir()


def test_changed_base_is_refused(make_recipe, crashed, tiny_base, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    recipe = make_recipe(base=str(base), **KEEP_ALL)
    run, _ = crashed(recipe, at=3)
    generation = base / "generation_config.json"
    generation.write_text(json.dumps(json.loads(generation.read_text()) | {"temperature": 0.5}))
    with pytest.raises(RecipeError, match="the base has changed since run"):
        train(recipe, resume=run.path.name)


def test_refusal_and_finished_run_at_the_command_line(make_recipe, command):
    state = train(make_recipe(**{"train.max_steps": 3}))
    code, out, err = command("train", make_recipe(**{"train.max_steps": 4}), "--resume", state["run_id"])
    assert (code, out) == (2, "")
    assert "train.max_steps" in err
    code, out, err = command("train", make_recipe(**{"train.max_steps": 3}), "--resume", state["run_id"])
    assert code == 0, err
    assert "is already finished" in err
    assert f"run {state['run_id']}: 3 steps" in out


def test_resuming_a_finished_run_changes_nothing(make_recipe):
    recipe = make_recipe()
    state = train(recipe)
    run = Run.find(state["run_id"])
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in run.path.rglob("*") if p.is_file()}
    said = []
    assert train(recipe, resume=state["run_id"], say=said.append) == state
    assert said[-1] == f"{state['run_id']} is already finished"
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in run.path.rglob("*") if p.is_file()} == before


def test_crash_between_the_last_checkpoint_and_the_adapter_loses_nothing(make_recipe, crashed, left, assert_same):
    recipe = make_recipe()
    run, straight = crashed(recipe, at=14)
    before = run.state
    state = train(recipe, resume=run.path.name)
    assert_same(left(run.path), straight)
    results = ("steps", "train_loss", "eval_loss", "tokens", "train_seconds", "tokens_per_second", "adapter_digest")
    assert {k: state[k] for k in results} == {k: before[k] for k in results}
