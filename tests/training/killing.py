"""Trainings that are killed, each in a fork of one process that has imported everything: seconds become tenths.

    python tests/training/killing.py RECIPE PLAN.json     prints what happened to each as a JSON document

Nothing is computed here before the forks but the kernels' own test, on one thread; a fork after a parallel region can hang.
A plan is a list of trials, each a list of deaths that one run dies in turn before it is resumed to the end. A death is

    {"operation": 0.4}           at a file operation below `runs`, as a share of those of a whole training
    {"step": 6, "checkpoint": 9} at the 9th operation on a checkpoint after the line of step 6
    {"between": true}            between the renames by which a checkpoint replaces a damaged one of the same step
    {"seconds": 0.2}             after that share of the time of a whole training, wherever it is
    {"whole": true}              none: it goes on to its end
    {"damage": FILE}             none: a byte of that file of the newest checkpoint is changed
    {"alter": FILE}              none: a number in it is changed, and its digest with it, which resume cannot notice

With "extend_epochs" in it, the process that dies is one that was to extend the run.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

from tunesmith.engine.native import build
from tunesmith.methods import lora  # noqa: F401 - imports are what a fork saves
from tunesmith.objectives import sft  # noqa: F401
from tunesmith.store.files import sha256_file
from tunesmith.store.home import home
from tunesmith.training import checkpoint, loop  # noqa: F401
from tunesmith.training.killed import Moment, Operation, after_death, listen, stop_at
from tunesmith.training.run import train

TIMES = {"seconds", "tokens_per_second", "trained_tokens_per_second", "peak_memory_bytes"}
DEADLINE_SECONDS = 60


def child(recipe: str, resume: str | None, death: dict, tell_fd: int, log: Path) -> None:
    """Train until the end, or until the death has come and somebody sends the signal."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1), os.dup2(out, 2)

    def tell(run_id: str) -> None:
        os.write(tell_fd, f"{run_id}\n".encode())

    def wait() -> None:
        while True:
            time.sleep(1)

    count = 0

    def hear(operation: Operation) -> None:
        nonlocal count
        count += 1
        come = count == death.get("operation")
        if "between" in death and operation.event == "os.rename":
            staging = Path(operation.paths[0])
            come = staging.match(".checkpoint-*.tmp") and staging.with_suffix(".old").exists()
        if come:
            tell("")
            wait()

    listen(stop_at(Moment(death["step"], death["checkpoint"]), tell, wait) if "step" in death else hear)
    code = 0
    try:
        train(recipe, resume=resume, extend_epochs=death.get("extend_epochs", 0), say=print)
    except BaseException:
        traceback.print_exc()
        code = 1
    os.write(tell_fd, f"end {count}\n".encode())
    sys.stdout.flush()
    os._exit(code)


def lived(recipe: str, resume: str | None, death: dict, log: Path) -> tuple[int, str]:
    """(exit status, negative for a signal; what it told) of one process."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_fd)
        child(recipe, resume, death, write_fd, log)
    os.close(write_fd)
    wait = death.get("seconds", DEADLINE_SECONDS)
    ready, _, _ = select.select([read_fd], [], [], wait)
    told = os.read(read_fd, 100).decode() if ready else ""
    if "seconds" not in death:
        assert ready, f"{death}: no answer after {wait} s\n{log.read_text()}"
    if not told.startswith("end"):
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(read_fd)
    return os.waitstatus_to_exitcode(status), told


def newest(run: Path) -> Path:
    return checkpoint.all_in(run)[-1]


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(data)


def alter(file: Path) -> None:
    """The smallest change to one number, or another random state; the checkpoint's own digest is made to agree."""
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file, save_file

        state = load_file(file)
        tensor = max(state.values(), key=torch.numel)
        tensor.view(torch.int32).view(-1)[0] += 1 << 10
        save_file(state, file)
    else:
        state = torch.load(file, weights_only=True)
        if file.name == "rng_state.pth":
            state["torch"] = torch.Generator().manual_seed(5).get_state()
        elif file.name == "optimizer.pt":
            state["state"][0]["exp_avg"].view(-1)[0] *= 1.01
        else:
            state["last_epoch"] += 1
        torch.save(state, file)
    path = file.parent / "trainer_state.json"
    known = json.loads(path.read_text())
    known["files"][file.name] = sha256_file(file)
    path.write_text(json.dumps(known))
    assert checkpoint.damage(file.parent) is None


def left(run: Path) -> dict:
    """Everything by which two runs are compared, as plain values and digests."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    state = json.loads((run / "run.json").read_text())
    tensors = {}
    for path in checkpoint.all_in(run):
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            tensors[f"{path.name}/{name}"] = _plain(torch.load(path / name, weights_only=True))
    return {"files": sorted(str(p.relative_to(run)) for p in run.rglob("*")),
            "adapter": {p.name: sha256_file(p) for p in sorted((run / "adapter").iterdir())},
            "checkpoints": {p.name: sha256_file(p / "adapter_model.safetensors") for p in checkpoint.all_in(run)},
            "states": tensors, "metrics": [{k: v for k, v in r.items() if k not in TIMES} for r in lines],
            "result": {k: state[k] for k in ("status", "steps", "train_loss", "eval_loss", "tokens", "adapter_step",
                                             "adapter_digest", "gradient_shares", "warnings", "rows_trained")}}


def _plain(value):
    if isinstance(value, torch.Tensor):
        return [str(value.dtype), list(value.shape), value.contiguous().numpy().tobytes().hex()]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def trial(recipe: str, deaths: list[dict], log: Path) -> dict:
    """One run through all its deaths and to its end: how it died, and what it left."""
    root = home() / "runs"
    root.mkdir(parents=True, exist_ok=True)
    before = set(root.iterdir())

    def run_of() -> Path | None:
        made = [p for p in set(root.iterdir()) - before if not p.name.startswith(".")]
        assert len(made) <= 1, made
        return made[0] if made else None

    died = []
    for death in deaths:
        run = run_of()
        if "damage" in death or "alter" in death:
            (damage if "damage" in death else alter)(newest(run) / next(iter(death.values())))
            continue
        code, told = lived(recipe, run and run.name, death, log)
        run = run_of()
        died.append({"signal": -code, "late": told.startswith("end"), "in_run": run is not None,
                     **(after_death(run) if run else {"after_step": 0, "in_checkpoint": False}),
                     "leftovers": sorted(p.name for p in (run or root).iterdir() if p.name.startswith("."))})
    run = run_of()
    code, told = lived(recipe, run and run.name, {}, log)
    assert code == 0, log.read_text()
    run = run_of()
    hidden = sorted(p.name for p in root.iterdir() if p.name.startswith("."))
    return {"died": died, "operations": int(told.split()[1]), "hidden": hidden, "left": left(run)}


def main(recipe: str, plan: str) -> None:
    torch.set_num_threads(1)
    assert os.environ["OMP_NUM_THREADS"] == "1", "a fork after a parallel region can hang"
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401 - transformers imports when it is asked

    build.start()
    log = home().parent / "trainings.log"
    trial(recipe, [], log)  # prepares the data
    began = time.monotonic()
    straight = trial(recipe, [], log)
    life = {"operations": straight["operations"], "seconds": time.monotonic() - began, "left": straight["left"]}
    trials = []
    for deaths in json.loads(Path(plan).read_text()):
        for death in deaths:
            for key in ("operation", "seconds"):  # a share of a life
                if key in death:
                    death[key] = max(1, round(death[key] * life["operations"])) if key == "operation" else (
                        death[key] * life["seconds"])
        trials.append({"deaths": deaths, **trial(recipe, deaths, log)})
        print(deaths, [(d["after_step"], d["in_checkpoint"]) for d in trials[-1]["died"]], file=sys.stderr)
    json.dump({"straight": life, "trials": trials}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
