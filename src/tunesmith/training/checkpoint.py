"""Checkpoints from which training goes on bit for bit, or which are refused.

    checkpoint-N/   adapter_config.json  adapter_model.safetensors     loads in plain PEFT
                    optimizer.pt  scheduler.pt  rng_state.pth
                    trainer_state.json      step, and the digest of every other file

    best-N/         the same without optimizer, schedule and random state: the adapter of the lowest held-out loss
    epoch-N/        the same of an epoch that ended with step N

The directory appears in one rename when all of it is on disk. `.pt` files are read with `weights_only`: no code runs.
"""

from __future__ import annotations

import io
import pickle
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tunesmith import methods
from tunesmith.errors import StoreError
from tunesmith.methods import files
from tunesmith.store.files import publish_directory, read_json, remove_directory, sha256_tree, write_json

if TYPE_CHECKING:
    from peft import PeftModel

NAME = re.compile(r"^(?:checkpoint|best|epoch)-(\d+)$")
STATE_FILE = "trainer_state.json"


def save(run_dir: Path, step: int, model: PeftModel, optimizer, scheduler, state: dict, keep: int) -> Path:
    """Write `checkpoint-{step}` and remove all but the newest `keep` up to it. `step` counts finished optimizer steps.

    Later ones are removed too: they are damaged, and training went back behind them.

    Raises:
        StoreError: it could not be written; the checkpoints before it are still there.
    """
    path = run_dir / f"checkpoint-{step}"
    with publish_directory(path) as staging:
        methods.save(model, staging)
        _save(staging / "optimizer.pt", optimizer.state_dict())
        _save(staging / "scheduler.pt", scheduler.state_dict())
        _save(staging / "rng_state.pth", _rng_state())
        write_json(staging / STATE_FILE, {"global_step": step, **state, "files": sha256_tree(staging)})
    prune(run_dir, step, keep)
    return path


def prune(run_dir: Path, step: int, keep: int) -> None:
    """Remove all but the newest `keep` up to `step`: as many as a kill left that came after `save` and before this."""
    found = all_in(run_dir)
    for old in set(found) - set([p for p in found if step_of(p) <= step][-keep:]):
        remove_directory(old)


def save_best(run_dir: Path, step: int, model: PeftModel) -> None:
    """Write `best-{step}`. The one before stays until a checkpoint is newer: a crash may go back to where it is the best."""
    with publish_directory(run_dir / f"best-{step}") as staging:
        methods.save(model, staging)
        write_json(staging / STATE_FILE, {"global_step": step, "files": sha256_tree(staging)})


def save_epoch(run_dir: Path, step: int, model: PeftModel, keep: int) -> None:
    """Write `epoch-{step}` and remove all but the newest `keep`. Later ones, of before a crash, are what they will be again."""
    with publish_directory(run_dir / f"epoch-{step}") as staging:
        methods.save(model, staging)
        write_json(staging / STATE_FILE, {"global_step": step, "files": sha256_tree(staging)})
    for old in epochs_in(run_dir)[:-keep]:
        remove_directory(old)


def epochs_in(run_dir: Path) -> list[Path]:
    """Kept epochs of a run, oldest first."""
    return sorted((p for p in run_dir.glob("epoch-*") if NAME.match(p.name)), key=step_of)


def save_best_again(run_dir: Path, step: int, adapter: Path) -> None:
    """Write `best-{step}` from the adapter of a finished run, whose own was forgotten, if it is not there."""
    if not (run_dir / f"best-{step}").is_dir():
        with publish_directory(run_dir / f"best-{step}") as staging:
            for name in (files.CONFIG_FILE, files.WEIGHTS_FILE):
                shutil.copyfile(adapter / name, staging / name)
            write_json(staging / STATE_FILE, {"global_step": step, "files": sha256_tree(staging)})


def forget_best(run_dir: Path, keep: int | None) -> None:
    """Remove all but `best-{keep}`."""
    for path in run_dir.glob("best-*"):
        if NAME.match(path.name) and step_of(path) != keep:
            remove_directory(path)


def copy_best(run_dir: Path, step: int, target: Path) -> None:
    """Copy the adapter of `best-{step}` into the directory `target`. Raises StoreError when it is not as it was written."""
    path = run_dir / f"best-{step}"
    if found := damage(path):
        raise StoreError(f"{path.name} is damaged", where=str(path), why=found,
                         fix="train again; the adapter of the last step is in the newest checkpoint")
    for name in read_json(path / STATE_FILE)["files"]:
        shutil.copyfile(path / name, target / name)


class _File(io.FileIO):
    """Remembers what the operating system said: of a full disk, torch.save says RuntimeError: unexpected pos."""

    refused: OSError | None = None

    def write(self, data) -> int:
        try:
            written, view = 0, memoryview(data).cast("B")
            while written < len(view):
                written += super().write(view[written:])
            return written
        except OSError as error:
            self.refused = error
            raise


def _save(path: Path, value: dict) -> None:
    with _File(path, "w") as file:
        try:
            torch.save(value, file)
        except RuntimeError:
            if file.refused:
                raise file.refused from None
            raise


def all_in(run_dir: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted((p for p in run_dir.glob("checkpoint-*") if NAME.match(p.name)), key=step_of)


def step_of(path: Path) -> int:
    return int(NAME.match(path.name)[1])


def newest_whole(run_dir: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files are all as they were written; damaged ones are named and passed over."""
    paths = all_in(run_dir)
    for path in reversed(paths):
        damaged = damage(path)
        if damaged is None:
            return path
        say(f"{path.name} is damaged ({damaged}): going back to "
            f"{'the beginning' if path == paths[0] else 'the one before'}")
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        state = read_json(path / STATE_FILE)
        step, expected = state["global_step"], dict(state["files"])
    except (StoreError, KeyError, TypeError, ValueError):
        return f"{STATE_FILE} cannot be read"
    if step != step_of(path):
        return f"{STATE_FILE} is of step {step}"
    found = {n: d for n, d in sha256_tree(path).items() if n != STATE_FILE}
    odd = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
    return f"{odd[0]} changed or missing" if odd else None


def restore(path: Path, model: PeftModel, optimizer, scheduler) -> dict:
    """Put everything back, in place, and return the saved state.

    Raises:
        StoreError: a file cannot be read.
    """
    try:
        methods.restore(model, path)
        optimizer.load_state_dict(torch.load(path / "optimizer.pt", weights_only=True))
        scheduler.load_state_dict(torch.load(path / "scheduler.pt", weights_only=True))
        _set_rng_state(torch.load(path / "rng_state.pth", weights_only=True))
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise StoreError(f"{path.name} cannot be read", where=str(path), why=str(error).splitlines()[0],
                         fix="delete it, and resume from the one before") from error
    return read_json(path / STATE_FILE)


def _rng_state() -> dict:
    state = {"torch": torch.get_rng_state(), "python": list(random.getstate()[1])}
    return state | ({"cuda": torch.cuda.get_rng_state_all()} if torch.cuda.is_available() else {})


def _set_rng_state(state: dict) -> None:
    torch.set_rng_state(state["torch"])
    random.setstate((3, tuple(state["python"]), None))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
