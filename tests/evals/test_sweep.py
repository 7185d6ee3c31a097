"""A sweep trains every combination once, goes on where it was interrupted, and recommends by evidence.

pytest tests/evals/test_sweep.py
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.conftest import chat_row, write_jsonl

import tunesmith
from tunesmith.errors import DataError, RecipeError, UsageError
from tunesmith.evals import sweep as room
from tunesmith.evals.sweep_page import render
from tunesmith.recipe.combine import combine
from tunesmith.store.files import held
from tunesmith.training import checkpoint
from tunesmith.training.run import Run, all_runs, train

RANKS = ["method.rank=1,4"]
ROW = {"values", "label", "run_id", "status", "error", "trainable_parameters", "target", "regression", "peak_memory_bytes",
       "seconds", "spectrum", "against_best"}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def recipe(make_recipe):
    return make_recipe(**{"data.test": {"near": "test.jsonl", "far": "test.jsonl"}, "train.epochs": 1})


@pytest.mark.slow
def test_a_sweep_from_start_to_end_after_a_crash_and_once_more(recipe, home, command):
    first = command("sweep", recipe, "--set", RANKS[0], "--json", check=0)
    swept = first.json
    assert "answered before" in first.stderr  # the base, by the second run
    assert (swept["status"], swept["combinations"], swept["keys"], swept["primary"]) == ("finished", 2, ["method.rank"], "near")
    assert len(list((home / "sweeps" / swept["sweep_id"] / "base").iterdir())) == 2  # of each test set, once
    assert len(list((home / "datasets").iterdir())) == 1
    small, large = swept["rows"]
    for row in swept["rows"]:
        assert row.keys() == ROW and row["status"] == "finished"
        run = Run.find(row["run_id"])
        report = json.loads((run.path / "report" / "report.json").read_text())
        measured = report["sets"]["near"]["metrics"]["loss"]
        assert (row["target"]["value"], row["target"]["base"]) == (measured["tuned"], measured["base"])
        assert row["target"]["gain"] == -measured["delta"]
        assert row["trainable_parameters"] == run.state["trainable_parameters"]
        assert row["regression"]["set"] == "far"
        assert row["regression"]["drop"] == report["sets"]["far"]["metrics"]["loss"]["delta"]
        assert row["peak_memory_bytes"] >= run.state["peak_memory_bytes"] > 50e6
        assert 1 <= row["spectrum"]["effective_rank"] <= row["values"]["method.rank"] + 1e-9
        assert row["run_id"] in {s["run_id"] for s in tunesmith.runs()["runs"]}
    assert small["target"]["base"] == large["target"]["base"]
    assert 4 * small["trainable_parameters"] == large["trainable_parameters"]
    assert swept["recommended"]["run_id"] in (small["run_id"], large["run_id"])
    best = next(r for r in swept["rows"] if r["run_id"] == swept["best"])
    assert best["target"]["value"] == min(r["target"]["value"] for r in swept["rows"])
    assert json.loads(Path(swept["path"]).read_text()) == swept
    page = Path(swept["page"]).read_text()
    assert swept["conclusion"].split(":")[0] in page and "<script" not in page and "http:" not in page and "https:" not in page

    resumed = train(Run.find(large["run_id"]).state["recipe_path"], resume=large["run_id"])  # an ordinary run
    assert (resumed["run_id"], resumed["status"]) == (large["run_id"], "finished")
    with pytest.raises(RecipeError, match="method.rank"):
        train(Run.find(small["run_id"]).state["recipe_path"], resume=large["run_id"])

    first, second = (Run.find(r["run_id"]) for r in swept["rows"])  # as a crash of the second would have left them
    untouched = (first.path / "run.json").read_bytes()
    for folder in (second.adapter, second.path / "report", checkpoint.all_in(second.path)[-1]):
        shutil.rmtree(folder)
    at = checkpoint.step_of(checkpoint.all_in(second.path)[-1])
    second.update(status="running")
    again = tunesmith.sweep(recipe, RANKS)
    events = [json.loads(line) for line in (second.path / "events.jsonl").read_text().splitlines()]
    assert {"resumed"} == {e["event"] for e in events if e.get("after_step") == at > 0}
    assert len(all_runs()) == 2 and (first.path / "run.json").read_bytes() == untouched
    assert [r["target"] for r in again["rows"]] == [r["target"] for r in swept["rows"]]
    assert (again["recommended"], again["conclusion"]) == (swept["recommended"], swept["conclusion"])

    for_nothing = command("sweep", recipe, "--set", RANKS[0], check=0)
    assert len(all_runs()) == 2 and "step " not in for_nothing.stderr
    lines = for_nothing.stdout.splitlines()
    assert lines[0].split()[:3] == ["method.rank", "trainable", "loss"] and len(lines) == 5
    assert lines[3] == swept["conclusion"]


def test_paths_of_a_recipe_mean_the_same_from_another_directory(make_recipe, tmp_path, tiny_tokenizer):
    (tmp_path / "own.jinja").write_text(tiny_tokenizer.chat_template)
    write_jsonl(tmp_path / "more.jsonl", [chat_row(n, "Elm") for n in range(20_000, 20_030)])
    write_jsonl(tmp_path / "kept.jsonl", [chat_row(n, "Elm") for n in range(30_000, 30_005)])
    recipe = make_recipe(**{"data.train": ["train.jsonl"], "data.test": {"near": "test.jsonl"}, "data.template": "own.jinja",
                            "data.evals": ["kept.jsonl"], "data.replay": {"rows": "more.jsonl", "share": 0.2}})
    original, made = combine(recipe, RANKS)
    planned = room._plan(original, made, tmp_path / "elsewhere" / "recipes", lambda _line: None)
    there = {str(one.dataset.path) for one in planned}
    assert there == {tunesmith.prepare(recipe)["path"]}
    assert [one.loaded.recipe.method.rank for one in planned] == [1, 4]


@pytest.mark.slow
def test_a_combination_that_cannot_be_trained_is_a_row_and_the_others_count(recipe):
    swept = tunesmith.sweep(recipe, ["train.learning_rate=0.01,1e+30"])
    good, bad = swept["rows"]
    assert (good["status"], bad["status"]) == ("finished", "failed")
    assert "step " in bad["error"] and bad["target"] is None and Run.find(bad["run_id"]).state["status"] == "failed"
    assert swept["recommended"]["run_id"] == good["run_id"]
    assert swept["conclusion"].startswith("Only train.learning_rate=0.01 could be trained.")
    assert any("1e+30 failed" in note for note in swept["notes"])
    assert "failed" in render(swept)


@pytest.mark.slow
def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(make_recipe, home):
    recipe = make_recipe(**{"train.epochs": 500})
    process = subprocess.Popen([sys.executable, "-m", "tunesmith", "sweep", str(recipe), "--set", RANKS[0], "--json"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    for line in process.stderr:
        if line.startswith("step "):
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the sweep and to the training
    said, complaints = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in complaints
    swept = json.loads(said)
    assert (swept["status"], swept["recommended"], [r["status"] for r in swept["rows"]]) == ("stopped", None, ["stopped"])
    assert swept["conclusion"] == "stopped after 0 of 2 combinations: the same command goes on"
    run = Run.find(swept["rows"][0]["run_id"])
    assert run.state["status"] == "stopped" and checkpoint.all_in(run.path)
    assert "stopped" in render(swept)
    with held(Path(swept["path"]).parent), pytest.raises(UsageError, match="another process"):
        tunesmith.sweep(recipe, RANKS)


@pytest.mark.parametrize(("given", "kind", "words"), [
    (["method.targets=[q_prj],[k_proj]"], RecipeError, "did you mean 'q_proj'"),
    (["data.train=train.jsonl,nowhere.jsonl"], DataError, "nowhere.jsonl"),
    (["method.rank=4"], UsageError, "one combination"),
])
def test_what_can_be_known_before_is_said_before_anything_is_trained(recipe, given, kind, words):
    with pytest.raises(kind) as refused:
        tunesmith.sweep(recipe, given)
    assert words in refused.value.render() and refused.value.exit_code == 2
    assert all_runs() == []


def test_combinations_that_would_be_tested_on_other_rows_are_refused(make_recipe):
    recipe = make_recipe(**{"data.test": None})
    with pytest.raises(DataError, match="other rows"):
        tunesmith.sweep(recipe, ["train.seed=0,1"])
    assert all_runs() == []


def test_wrong_use_at_the_command_line_is_exit_code_2(recipe, command):
    for arguments in ([], ["--set", "method.rank"], ["--set", "method.rank=1,2", "--margin", "-1"]):
        assert command("sweep", recipe, *arguments, "--json", check=2).json["error"] == "UsageError"
