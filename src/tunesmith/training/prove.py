"""Proofs about training that anybody can run on their own recipe and machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from tunesmith.data.dataset import TRAIN
from tunesmith.data.prepare import prepare
from tunesmith.errors import RecipeError
from tunesmith.models.base import resolve
from tunesmith.recipe.load import Loaded, load
from tunesmith.training.run import Run, tokenizer_for, train_loaded

Say = Callable[[str], None]
ROWS = 12
TOLERANCE = 2e-4
"""Relative, in float32: sums in another order."""


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


def resume(recipe: str | Path, steps: int, say: Say) -> dict:
    """Train `steps` steps; take the run back to half-way; resume; compare every byte of the final checkpoint.

    `{identical, steps, resumed_after, first_difference, message}`. Leaves no run behind.

    Raises:
        RecipeError: the data make only one step, which cannot be halved.
    """
    loaded = load(recipe)
    train = loaded.recipe.train
    short = loaded.recipe.model_copy(update={
        "train": train.model_copy(update={"max_steps": steps, "eval_every_steps": None, "early_stop": None, "checkpoint":
                                          train.checkpoint.model_copy(update={"every_steps": 1, "keep": steps,
                                                                              "keep_best": False})}),
        "track": loaded.recipe.track.model_copy(update={"mlflow": None})})
    short_loaded = Loaded(short, loaded.path)
    state = train_loaded(short_loaded, say=say)
    run = Run.find(state["run_id"])
    total, half = state["steps"], state["steps"] // 2
    straight = run.path / "straight"
    try:
        if total < 2:
            raise RecipeError("the whole training is one step: there is no half-way to resume from", where=str(loaded.path),
                              fix="lower train.tokens_per_step")
        (run.path / f"checkpoint-{total}").rename(straight)
        for step in range(half + 1, total):
            shutil.rmtree(run.path / f"checkpoint-{step}")
        run.update(status="stopped")
        train_loaded(short_loaded, resume=state["run_id"], say=say)
        difference = _first_difference(straight, run.path / f"checkpoint-{total}")
    finally:
        shutil.rmtree(run.path, ignore_errors=True)
    message = f"{total} steps straight against {half} + resume + {total - half}: " + (
        f"{difference} differs" if difference else "adapter, optimizer, scheduler and random state equal bit for bit")
    return {"identical": difference is None, "steps": total, "resumed_after": half, "first_difference": difference,
            "message": message}


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
