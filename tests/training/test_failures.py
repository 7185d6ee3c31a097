"""Trainings that must not end with an adapter: overflow, an adapter that does not move, a full disk.

pytest tests/training/test_failures.py
"""

from __future__ import annotations

import errno
import json
import subprocess
from pathlib import Path

import pytest
import torch

from tunesmith.errors import StoreError, TrainingError
from tunesmith.methods import lora
from tunesmith.models.base import resolve
from tunesmith.models.load import model_of
from tunesmith.recipe.methods import Lora
from tunesmith.training import checkpoint
from tunesmith.training.health import check_adapter
from tunesmith.training.loop import _write
from tunesmith.training.run import Run, all_runs, train


def only_run() -> Run:
    (state,) = all_runs()
    return Run.find(state["run_id"])


@pytest.mark.parametrize("changes", [{}, {"train.max_steps": 1}, {"train.max_steps": 1, "train.dtype": "bfloat16"}],
                         ids=["in the middle", "in the last step", "bfloat16"])
def test_overflow_is_an_error_and_leaves_no_adapter(make_recipe, home, changes):
    """In the last step no further loss would show it: the held-out loss and the adapter itself have to."""
    with pytest.raises(TrainingError, match="step [12]: .*nan|inf|not finite") as caught:
        train(make_recipe(**{"train.learning_rate": 1.0e30, **changes}))
    assert "learning_rate" in caught.value.fix
    run = only_run()
    assert run.state["status"] == "failed"
    assert run.state["error"].startswith("TrainingError: step ")
    assert not run.adapter.exists()
    lines = (run.path / "metrics.jsonl").read_text()
    assert "NaN" not in lines and "Infinity" not in lines


def test_overflow_at_the_command_line_is_exit_code_1_and_a_document(make_recipe, command):
    code, out, err = command("train", make_recipe(**{"train.learning_rate": 1.0e30}), "--json")
    document = json.loads(out)
    assert (code, document["error"], document["exit_code"]) == (1, "TrainingError", 1)
    assert "error: step 2: loss nan" in err
    assert only_run().state["status"] == "failed"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_adapter_with_one_number_that_is_not_finite_is_never_saved(tiny_base, value):
    model = lora.attach(model_of(resolve(str(tiny_base)), torch.float32), Lora(rank=2, targets=["q_proj"]), "tiny")
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(p)
    check_adapter(model, 3)
    next(p for n, p in model.named_parameters() if "lora_A" in n).data[0, 0] = value
    with pytest.raises(TrainingError, match="step 3: the adapter is not finite"):
        check_adapter(model, 3)


def assert_resumable(run: Run, recipe: Path, left, assert_same) -> None:
    """Nothing half-written is there, and what is there goes on to the bytes of an undisturbed training."""
    assert not run.adapter.exists()
    assert [p.name for p in run.path.iterdir() if p.name.startswith(".")] == []
    assert all(checkpoint.damage(path) is None for path in checkpoint.all_in(run.path))
    assert train(recipe, resume=run.path.name)["status"] == "finished"
    assert_same(left(run.path), left(train(recipe)["run_dir"]))


def test_file_that_cannot_grow_is_a_store_error_and_the_run_resumes(make_recipe, home, left, assert_same):
    resource = pytest.importorskip("resource")
    recipe = make_recipe(**{"train.epochs": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))  # the optimizer's file is larger, all others smaller
    try:
        with pytest.raises(StoreError, match="could not write .*checkpoint-3") as caught:
            train(recipe)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.why == "File too large"
    run = only_run()
    assert run.state["status"] == "failed"
    assert checkpoint.all_in(run.path) == []
    assert_resumable(run, recipe, left, assert_same)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of so many kilobytes, to be filled and enlarged. Skips where mounting is not allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def size(kilobytes: int) -> Path:
        options = f"{'remount,' if disk.is_mount() else ''}size={kilobytes}k"
        try:
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("a small file system cannot be mounted here")
        return disk

    yield size
    if disk.is_mount():
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("kilobytes", [400, 440, 480, 520])
def test_full_disk_is_a_store_error_and_the_run_resumes(make_recipe, small_disk, monkeypatch, left, assert_same, kilobytes):
    """Four sizes, so that the disk is full in the middle of different files."""
    monkeypatch.setenv("TUNESMITH_HOME", str(small_disk(kilobytes)))
    recipe = make_recipe(**{"train.checkpoint": {"every_steps": 1, "keep": 100}})
    with pytest.raises(StoreError) as caught:
        train(recipe)
    assert "No space left on device" in caught.value.why or "no space left on the disk" in caught.value.why
    assert caught.value.errno in (None, errno.ENOSPC)
    assert "TUNESMITH_HOME" in caught.value.fix
    run = only_run()
    assert 0 < len(checkpoint.all_in(run.path)) < 14
    small_disk(8000)
    assert_resumable(run, recipe, left, assert_same)


def test_events_and_metrics_on_a_full_disk_are_store_errors_too(small_disk):
    run_dir = small_disk(64)
    with pytest.raises(OSError, match="No space left"):
        (run_dir / "filler").write_bytes(bytes(1 << 20))
    for write in (lambda: Run(run_dir).event("stopped"), lambda: _write(run_dir, {"step": 1})):
        with pytest.raises(StoreError, match="could not write"):
            write()
