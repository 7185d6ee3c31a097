"""Checkpoints: which are whole, which are kept, and that reading one runs no code.

pytest tests/training/test_checkpoint.py
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from tunesmith.errors import StoreError
from tunesmith.methods import lora
from tunesmith.models.base import resolve
from tunesmith.models.load import model_of
from tunesmith.recipe.methods import Lora
from tunesmith.training import checkpoint


@pytest.fixture
def parts(tiny_base):
    """(model, optimizer, scheduler) after one step."""
    model = lora.attach(model_of(resolve(str(tiny_base)), torch.float32), Lora(rank=2, targets=["q_proj"]), "tiny")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    model(input_ids=torch.tensor([[3, 4, 5]])).logits.square().mean().backward()
    optimizer.step()
    scheduler.step()
    return model, optimizer, scheduler


@pytest.fixture
def saved(parts, tmp_path) -> Path:
    return checkpoint.save(tmp_path, 7, *parts, {"epoch": 0, "max_steps": 9}, keep=3)


def names(run: Path) -> list[str]:
    return [p.name for p in checkpoint.all_in(run)]


def test_whole_checkpoint_has_no_damage(saved):
    assert checkpoint.damage(saved) is None


def test_every_flipped_byte_of_the_state_file_is_seen_or_harmless(saved):
    """Harmless: the step and the digests, which are all that resume reads, are what they were."""
    file = saved / "trainer_state.json"
    whole = file.read_bytes()
    before = json.loads(whole)
    unseen = 0
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x01]) + whole[at + 1 :])
        if checkpoint.damage(saved) is None:
            unseen += 1
            after = json.loads(file.read_bytes())
            assert (after["global_step"], after["files"]) == (before["global_step"], before["files"]), at
    assert unseen < 40  # white space, and the epoch and max_steps that nothing reads


FILES = ["adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt",
         "trainer_state.json"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "empty"])
def test_damage_to_any_file_is_named_and_the_checkpoint_before_is_taken(parts, saved, tmp_path, file, damage):
    newer = checkpoint.save(tmp_path, 8, *parts, {"epoch": 0, "max_steps": 9}, keep=3)
    assert sorted(p.name for p in newer.iterdir()) == FILES
    whole = (newer / file).read_bytes()
    if damage == "missing":
        (newer / file).unlink()
    else:
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 0x10]) + whole[middle + 1 :]
        (newer / file).write_bytes({"flipped": flipped, "truncated": whole[:-20], "empty": b""}[damage])
    said = []
    assert checkpoint.newest_whole(tmp_path, said.append) == saved
    (line,) = said
    named = "" if (file, damage) == ("trainer_state.json", "flipped") else file  # a digest in it is flipped: of which file?
    assert line.startswith(f"checkpoint-8 is damaged ({named}")
    assert line.endswith("going back to the one before")


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"\xff\xfe", b'{"global_step": 7}',
                                     b'{"global_step": 7, "files": 3}'])
def test_state_file_of_another_shape_is_damage(saved, content):
    (saved / "trainer_state.json").write_bytes(content)
    assert "trainer_state.json" in checkpoint.damage(saved)


def test_a_file_too_many_is_damage(saved):
    (saved / "extra.bin").write_bytes(b"x")
    assert checkpoint.damage(saved) == "extra.bin changed or missing"


def test_checkpoint_that_was_renamed_is_damage(saved):
    moved = saved.rename(saved.with_name("checkpoint-8"))
    assert checkpoint.damage(moved) == "trainer_state.json is of step 7"


def test_newest_are_kept_by_number_and_not_by_name(parts, tmp_path):
    for step in (8, 9, 10, 11):
        checkpoint.save(tmp_path, step, *parts, {}, keep=2)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-11"]


def test_later_ones_go_when_training_went_back_behind_them(parts, tmp_path):
    for step in (3, 6, 9, 12):
        checkpoint.save(tmp_path, step, *parts, {}, keep=9)
    checkpoint.save(tmp_path, 6, *parts, {}, keep=2)
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-6"]


def test_other_directories_are_no_checkpoints(tmp_path):
    for name in ("checkpoint-", "checkpoint-3.old", ".checkpoint-3.abc.tmp", "checkpoint-x", "adapter"):
        (tmp_path / name).mkdir()
    assert checkpoint.all_in(tmp_path) == []
    assert checkpoint.newest_whole(tmp_path, print) is None


def test_restore_puts_back_every_tensor_and_the_random_state(parts, saved):
    model, optimizer, scheduler = parts
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    moments = [s["exp_avg"].clone() for s in optimizer.state.values()]
    rate = scheduler.get_last_lr()
    drawn = torch.rand(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0) if p.requires_grad else None
    for s in optimizer.state.values():
        s["exp_avg"].zero_()
    scheduler.step()
    state = checkpoint.restore(saved, *parts)
    assert state["global_step"] == 7
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert all(torch.equal(s["exp_avg"], m) for s, m in zip(optimizer.state.values(), moments, strict=True))
    assert scheduler.get_last_lr() == rate
    assert torch.equal(torch.rand(3), drawn)


class Bomb:
    """Unpickling it writes a file: what a hostile checkpoint would do."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "ran")


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_code_in_a_checkpoint_is_refused_and_does_not_run(parts, saved, tmp_path, file):
    mark = tmp_path / "mark"
    torch.save(Bomb(mark), saved / file)
    with pytest.raises(StoreError, match="checkpoint-7 cannot be read"):
        checkpoint.restore(saved, *parts)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))  # the control: it is live
    assert mark.read_text() == "ran"
