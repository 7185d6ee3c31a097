"""Proofs about training that anybody can run on their own recipe and machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

from tunesmith.data.dataset import TRAIN
from tunesmith.data.prepare import prepare
from tunesmith.errors import RecipeError
from tunesmith.models.base import resolve
from tunesmith.recipe.load import Loaded, load
from tunesmith.store.home import home
from tunesmith.training import killed
from tunesmith.training.look import METRICS_FILE, Tail
from tunesmith.training.run import EVENTS_FILE, Run, tokenizer_for, train_loaded

Say = Callable[[str], None]
ROWS = 12
TOLERANCE = 2e-4
"""Relative, in float32: sums in another order."""
EVERY_STEPS, KEPT = 2, 2
"""Checkpoints of a training that is killed: steps are lost and done again, and old checkpoints removed."""
MEASURED = {"seconds", "tokens_per_second", "trained_tokens_per_second", "peak_memory_bytes"}
"""What two equal trainings may disagree on."""


def packing(recipe: str | Path, say: Say) -> dict:
    """Compare the loss and the gradients of packed rows with those of each row alone, in float32, adapter not zero.

    `{identical, rows, tokens, largest_loss_difference, largest_gradient_difference, message}`, relative differences.
    """
    import torch

    from tunesmith import methods
    from tunesmith.engine import fast, plain
    from tunesmith.models.load import model_of
    from tunesmith.objectives.sft import sample

    loaded = load(recipe)
    base = resolve(loaded.recipe.base, loaded.folder)
    dataset = prepare(loaded, tokenizer_for(base, loaded), say)
    tokens = dataset.tokens(TRAIN)
    rows = [sample(*tokens[i]) for i in range(min(ROWS, len(tokens)))]
    torch.manual_seed(0)
    method = loaded.recipe.method
    method = method.model_copy(update={"dropout": 0.0}) if hasattr(method, "dropout") else method
    model = methods.attach(model_of(base, torch.float32), method, base.ref)
    for p in model.parameters():
        if p.requires_grad and not p.any():  # born zero: nothing would pass through it
            torch.nn.init.normal_(p, std=0.02)
    reason = fast.why_not(model, loaded.recipe.data.max_tokens)
    if reason:
        return {"identical": True, "rows": len(rows), "message": f"rows are never packed on the plain path ({reason})"}

    def measured(forward_loss, packs) -> tuple[list[float], list[torch.Tensor]]:
        model.zero_grad()
        losses = []
        for pack in packs:
            loss, _ = forward_loss(model, pack)
            loss.backward()
            losses.append(loss.item())
        return losses, [p.grad.clone() for p in model.parameters() if p.requires_grad]

    alone, alone_grads = measured(plain.forward_loss, [[r] for r in rows])
    fast.accelerate(model)
    packed, packed_grads = measured(fast.forward_loss, [rows])
    loss = abs(packed[0] - sum(alone)) / abs(sum(alone))
    grad = max(((a - b).norm() / a.norm().clamp(min=1e-12)).item() for a, b in zip(alone_grads, packed_grads, strict=True))
    return {"identical": max(loss, grad) < TOLERANCE, "rows": len(rows), "tokens": sum(len(t) for t, _ in rows),
            "largest_loss_difference": loss, "largest_gradient_difference": grad, "tolerance": TOLERANCE,
            "message": f"{len(rows)} rows packed against each alone on the plain path: loss differs by {loss:.1e}, "
                       f"gradients by at most {grad:.1e} (relative; float32 rounding allows {TOLERANCE:.0e})"}


def resume(recipe: str | Path, steps: int, say: Say, kills: int = 0) -> dict:
    """Train `steps` steps; do it again with interruptions; compare the final checkpoints tensor by tensor, bit for bit.

    Without `kills`, the run is taken back to half-way and goes on in this process. With them, the second training runs in
    processes of their own that get a SIGKILL at so many moments (`training.killed`), and its metrics are compared as well.
    `{identical, steps, resumed_after, first_difference, kills[{after_step, in_checkpoint}], message}`. Leaves no run behind.

    Raises:
        RecipeError: the data make only one step, which cannot be halved.
        TrainingError: a training in a process of its own failed.
    """
    loaded = load(recipe)
    straight = _shortened(loaded, steps, every_steps=EVERY_STEPS if kills else 1, keep=KEPT if kills else steps)
    state = train_loaded(straight, say=say)
    run, made = Run.find(state["run_id"]), [state["run_id"]]
    try:
        if state["steps"] < 2:
            raise RecipeError("the whole training is one step: there is no half-way to resume from", where=str(loaded.path),
                              fix="lower train.tokens_per_step")
        found = _killed(run, straight, kills, made, say) if kills else _halved(run, straight, say)
    finally:
        for name in made:
            shutil.rmtree(home() / "runs" / name, ignore_errors=True)
    return {"identical": found["first_difference"] is None, "steps": state["steps"], **found}


def _shortened(loaded: Loaded, steps: int, every_steps: int, keep: int, **train) -> Loaded:
    recipe = loaded.recipe
    kept = recipe.train.checkpoint.model_copy(update={"every_steps": every_steps, "keep": keep, "keep_best": False})
    short = {"max_steps": steps, "eval_every_steps": None, "early_stop": None, "checkpoint": kept, **train}
    return Loaded(recipe.model_copy(update={"train": recipe.train.model_copy(update=short),
                                            "track": recipe.track.model_copy(update={"mlflow": None})}), loaded.path)


def _halved(run: Run, loaded: Loaded, say: Say) -> dict:
    total, half = run.state["steps"], run.state["steps"] // 2
    straight = run.path / "straight"
    (run.path / f"checkpoint-{total}").rename(straight)
    for step in range(half + 1, total):
        shutil.rmtree(run.path / f"checkpoint-{step}")
    run.update(status="stopped")
    train_loaded(loaded, resume=run.path.name, say=say)
    difference = _first_difference(straight, run.path / f"checkpoint-{total}")
    return {"resumed_after": half, "first_difference": difference, "kills": [], "message": _verdict(
        f"{total} steps straight against {half} + resume + {total - half}", difference, "adapter, optimizer, scheduler and "
        "random state")}


def _killed(run: Run, loaded: Loaded, kills: int, made: list[str], say: Say) -> dict:
    """`made` gets the id of the other run. It computes in the dtype that was chosen for the first, with as many threads."""
    state, seed = run.state, loaded.recipe.train.seed
    total, last = state["steps"], f"checkpoint-{state['steps']}"
    moments = killed.draw_moments(kills, total, seed)
    say(f"drew {kills} moments with seed {seed}: {'; '.join(map(str, moments))}")
    kept = loaded.recipe.train.checkpoint
    other = _shortened(loaded, loaded.recipe.train.max_steps, kept.every_steps, kept.keep, dtype=state["dtype"])
    job = {"recipe": other.recipe.model_dump(mode="json"), "path": str(loaded.path), "threads": state["threads"]}
    found = killed.train_killed(job, moments, state["train_seconds"] / total, made, say)
    again = Run(home() / "runs" / made[-1])
    difference = _first_difference(run.path / last, again.path / last) or _first_other_line(run, again)
    resumed = [e["after_step"] for e in Tail(again.path / EVENTS_FILE).read() if e["event"] == "resumed"]
    return {"resumed_after": resumed[-1] if resumed else 0, "first_difference": difference, "kills": found,
            "message": _verdict(f"{total} steps straight against {kills} SIGKILLs, {sum(k['in_checkpoint'] for k in found)} of "
                                "them while a checkpoint was written", difference,
                                "adapter, optimizer, scheduler, random state and metrics")}


def _verdict(what: str, difference: str | None, all_of_it: str) -> str:
    return f"{what}: " + (f"{difference} differs" if difference else f"{all_of_it} equal bit for bit")


def _first_other_line(a: Run, b: Run) -> str | None:
    """Where the metrics of two runs differ in anything but time and memory."""
    left, right = ([{k: v for k, v in r.items() if k not in MEASURED} for r in Tail(run.path / METRICS_FILE).read()]
                   for run in (a, b))
    for one, other in zip_longest(left, right, fillvalue={}):
        if one != other:
            name = min((k for k in one.keys() | other.keys() if one.get(k) != other.get(k)), key=str)
            return f"{METRICS_FILE}: {name} of step {(one or other)['step']}"
    return None


def _first_difference(a: Path, b: Path) -> str | None:
    """Name of the first tensor or value that differs between two checkpoints."""
    import torch
    from safetensors.torch import load_file

    def values(folder: Path) -> dict:
        found = {f"adapter:{k}": v for k, v in load_file(folder / "adapter_model.safetensors").items()}
        for file in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            found |= _leaves(torch.load(folder / file, weights_only=True), file)
        return found

    left, right = values(a), values(b)
    for name in sorted(left.keys() | right.keys()):
        x, y = left.get(name), right.get(name)
        same = torch.equal(x, y) if torch.is_tensor(x) and torch.is_tensor(y) else x == y
        if not same:
            return name
    return None


def _leaves(value, name: str) -> dict:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in _leaves(item, f"{name}:{key}").items()}
    return {name: value}
