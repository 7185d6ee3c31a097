"""A training that is killed at a moment which can be named again.

What a SIGKILL leaves behind is what is on the disk, and that changes only with a file operation. So a moment is one of
those: the child that trains hears of its own through an audit hook (PEP 578), tells its parent when the moment has come,
and waits there; the parent sends the signal. Nothing of the training knows about it.

    parent  job ──stdin──▶ child trains ... line of step 3 ... checkpoint-4: write, write |
    parent  ◀──RUN_ID── told                                                              | waits
    parent  ──SIGKILL──▶                                                                  ✕

`python -m tunesmith.training.killed JOB_FD TELL_FD` is the child.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tunesmith.errors import TrainingError
from tunesmith.store.home import home

OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.listdir", "os.scandir",
              "tempfile.mkstemp", "tempfile.mkdtemp", "shutil.rmtree"}
"""Audit events of whatever touches a file by name; each is raised before it happens."""
WRITE_OPERATIONS = 36
"""Of one checkpoint, about: making its directory, six files, their digests, flushing each, the rename."""


@dataclass(frozen=True, slots=True)
class Moment:
    """After the line of `step` in metrics.jsonl: at the `operation`-th file operation on a checkpoint, or, where that is
    None, `share` of a step's time later, whatever is going on then."""

    step: int
    operation: int | None
    share: float = 0.0

    def __str__(self) -> str:
        return f"step {self.step}, " + (f"operation {self.operation} of a checkpoint" if self.operation
                                        else f"{self.share:.2f} steps later")


@dataclass(frozen=True, slots=True)
class Operation:
    event: str
    paths: tuple[str, ...]
    step: int
    """Of the last line in metrics.jsonl that this process wrote; -1 before the first."""

    @property
    def run_id(self) -> str:
        return Path(self.paths[0].rsplit(f"{os.sep}runs{os.sep}", 1)[1]).parts[0]


def draw_moments(kills: int, steps: int, seed: int) -> list[Moment]:
    """So many moments of a training of so many steps, each not before the one before it; every other one in a checkpoint."""
    dice = random.Random(f"kills/{seed}")
    at = sorted(dice.randint(1, steps) for _ in range(kills))
    return [Moment(step, dice.randint(1, WRITE_OPERATIONS) if i % 2 else None, round(dice.random(), 3))
            for i, step in enumerate(at)]


def listen(hear: Callable[[Operation], None]) -> None:
    """Call `hear` before every file operation below a `runs` directory, for as long as this process lives."""
    state = {"inside": False, "writing": None, "step": -1}

    def hook(event: str, arguments: tuple) -> None:
        if event not in OPERATIONS or state["inside"]:
            return
        paths = tuple(str(a) for a in arguments[:2] if isinstance(a, str | Path) and f"{os.sep}runs{os.sep}" in str(a))
        if not paths:
            return
        state["inside"] = True  # what is done here is no operation of the training
        try:
            if state["writing"]:
                state["step"], state["writing"] = _last_step(Path(state["writing"])), None
            if event == "open" and arguments[1] == "a" and paths[0].endswith("metrics.jsonl"):
                state["writing"] = paths[0]
            hear(Operation(event, paths, state["step"]))
        finally:
            state["inside"] = False

    sys.addaudithook(hook)


def stop_at(moment: Moment, tell: Callable[[str], None], wait: Callable[[], None]) -> Callable[[Operation], None]:
    """A listener that tells its parent when the moment has come. The end of the training is the last one."""
    counted, told = 0, False

    def hear(operation: Operation) -> None:
        nonlocal counted, told
        due, over = operation.step >= moment.step, any(f"{os.sep}.adapter." in p for p in operation.paths)
        if due and any(f"{os.sep}.checkpoint-" in p for p in operation.paths):
            counted += 1
        if not told and (over or due and (moment.operation is None or counted >= moment.operation)):
            told = True
            tell(operation.run_id)
            if moment.operation is not None:
                wait()
        if over:
            wait()

    return hear


def after_death(run_dir: Path) -> dict:
    """`{after_step, in_checkpoint}`: the last step that was recorded, and whether a checkpoint was being written."""
    return {"after_step": max(0, _last_step(run_dir / "metrics.jsonl")),
            "in_checkpoint": any(run_dir.glob(".checkpoint-*.tmp"))}


def _last_step(metrics: Path) -> int:
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines[-2:] if line.endswith("\n")]
    return json.loads(whole[-1])["step"] if whole else -1


def train_killed(job: dict, moments: Sequence[Moment], step_seconds: float, made: list[str],
                 say: Callable[[str], None]) -> list[dict]:
    """Train in processes of their own, one killed at each moment, the last one not; return what each death was like.

    `job`: `recipe` (its values), `path` (its file) and `threads` of a training; the home is that of this process. The id of
    the run is added to `made` as soon as it is known.

    Raises:
        TrainingError: one ended by itself before.
    """
    kills = []
    for moment in [*moments, None]:
        run_id = _in_a_process(job | {"resume": made[-1] if kills else ""}, moment, step_seconds)
        if not kills:
            made.append(run_id)
        if moment:
            kills.append(after_death(home() / "runs" / run_id))
            say(f"killed after step {kills[-1]['after_step']}" + ", while it wrote a checkpoint" * kills[-1]["in_checkpoint"])
    return kills


def _in_a_process(job: dict, moment: Moment | None, step_seconds: float) -> str:
    """The id of the run that was trained, until the moment or the end."""
    (job_read, job_write), (tell_read, tell_write) = os.pipe(), os.pipe()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said, os.fdopen(tell_read, encoding="utf-8") as tells:
        child = subprocess.Popen([sys.executable, "-m", "tunesmith.training.killed", str(job_read), str(tell_write)],
                                 pass_fds=(job_read, tell_write), stdout=said, stderr=said)
        os.close(job_read)
        os.close(tell_write)
        try:
            os.write(job_write, json.dumps(job | {"moment": moment and asdict(moment)}).encode() + b"\n")
            run_id = tells.readline().strip()  # empty: it has ended
            if run_id and moment:
                time.sleep(0.0 if moment.operation else moment.share * step_seconds)
                child.kill()
            code = child.wait()
        finally:
            os.close(job_write)  # whoever waits for it ends
            child.kill()
            child.wait()
        said.seek(0)
        last = (said.read().strip().splitlines() or ["it said nothing"])[-1]
    if not run_id or code != (-signal.SIGKILL if moment else 0):
        raise TrainingError(f"a training in a process of its own ended with {code}", why=last,
                            fix="`tunesmith train` with the same recipe says more")
    return run_id


def _child(job_fd: int, tell_fd: int) -> None:
    import torch

    from tunesmith.recipe.load import Loaded
    from tunesmith.recipe.schema import Recipe
    from tunesmith.track.progress import say
    from tunesmith.training.run import train_loaded

    def tell(run_id: str) -> None:
        os.write(tell_fd, f"{run_id}\n".encode())

    def wait() -> None:
        jobs.read()  # nothing comes; it ends with the parent
        os._exit(1)

    jobs = os.fdopen(job_fd, encoding="utf-8")
    job = json.loads(jobs.readline())
    if job["moment"]:
        listen(stop_at(Moment(**job["moment"]), tell, wait))
    torch.set_num_threads(job["threads"])
    loaded = Loaded(Recipe.model_validate(job["recipe"]), Path(job["path"]))
    tell(train_loaded(loaded, resume=job["resume"] or None, say=say)["run_id"])


if __name__ == "__main__":
    _child(*map(int, sys.argv[1:]))
