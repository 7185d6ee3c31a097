"""The training loop: read it top to bottom.

One optimizer step a turn: the plan says which rows (`data.pack`), the objective accumulates their gradients, the norm
is clipped, AdamW and the schedule move, a line is written, and now and then a checkpoint. Nothing hooks into it.
"""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tunesmith.data.pack import Step
from tunesmith.engine.memory import peak_bytes
from tunesmith.methods.report import gradient_shares
from tunesmith.objectives.step import Measured, Objective, evaluate, forward_backward
from tunesmith.recipe.schema import Train
from tunesmith.store.files import explain_os_errors, write_text
from tunesmith.track.progress import StepLines
from tunesmith.training import checkpoint, schedule
from tunesmith.training.health import MOVED_AFTER, Health, check_adapter, check_first_loss, check_reach, overflow

METRICS_FILE = "metrics.jsonl"


@dataclass
class Training:
    """Everything the loop moves. `training.run` builds it."""

    run_dir: Path
    config: Train
    model: Any
    objective: Objective
    steps: list[Step]
    sample: Callable[[int], Any]
    """What the objective trains of a row."""
    held_out: list[list[Any]]
    """Packs of the held-out rows whose loss is watched."""
    largest: list[int] = field(default_factory=list)
    """Rows of the pack with the most tokens, to be tried before step 1."""
    on_metrics: Callable[[int, dict], None] = lambda _step, _values: None
    on_warning: Callable[[dict], None] = lambda _warning: None
    on_event: Callable[..., None] = lambda _what, **_facts: None
    on_gradient: Callable[[int, dict[str, float]], None] = lambda _step, _shares: None
    """Of the first and the last step: each module's share of the gradient."""
    earlier: list[tuple[int, int]] = field(default_factory=list)
    """`(until, total)`: steps before `until` have the learning rate of a training of `total` steps (`training.extend`)."""
    learning_rate_ratios: dict[str, float] = field(default_factory=dict)
    """{part of a parameter's name: its learning rate over the others'} (LoRA+)."""
    first_loss: Callable[[list], float | None] = lambda _packs: None
    """What the loss of packs must be before step 1, as far as that is known."""
    drift: Callable[[], dict[str, float]] | None = None
    """How far the model as it is has moved on neutral text, where the recipe asks for it (`training.drift`)."""
    optimizer: torch.optim.Optimizer = field(init=False)
    scheduler: Any = field(init=False)

    def __post_init__(self):
        self.optimizer = torch.optim.AdamW(self._groups(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: self.factor(step))

    def factor(self, step: int) -> float:
        """Of the learning rate, for a step from 0."""
        total = next((total for until, total in self.earlier if step < until), len(self.steps))
        return schedule.factor(step, total, self.config.warmup, self.config.schedule)

    def is_end(self, done: int) -> bool:
        """Whether the training ended after so many steps, now or before it was extended."""
        return done == len(self.steps) or (done, done) in self.earlier

    def ends_epoch(self, done: int) -> bool:
        """Whether an epoch is over after so many steps."""
        return done == len(self.steps) or self.steps[done].epoch != self.steps[done - 1].epoch

    def renew_learning_rate(self) -> None:
        """Of an extended run: a checkpoint holds the rate of the step after it by the schedule that was known then."""
        if self.earlier:
            rates = [rate * self.factor(self.scheduler.last_epoch) for rate in self.scheduler.base_lrs]
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            self.scheduler._last_lr = rates

    def _groups(self) -> list[dict]:
        """Parameters by their learning rate, in the model's order; those that have the recipe's come first."""
        groups: dict[float, list] = {1.0: []}
        for name, p in self.model.named_parameters():
            if p.requires_grad:
                ratio = next((r for part, r in self.learning_rate_ratios.items() if part in name), 1.0)
                groups.setdefault(ratio, []).append(p)
        return [{"params": ps, "lr": r * self.config.learning_rate} for r, ps in groups.items() if ps]


@dataclass(frozen=True, slots=True)
class Outcome:
    finished: bool
    """False after Ctrl-C: the checkpoint of `steps` is there to resume from."""
    steps: int
    best: int | None = None
    """The step of the lowest held-out loss, where the recipe asks for that adapter."""


def train(t: Training, start: int = 0) -> Outcome:
    """Run steps `start`.. to the end.

    Raises:
        TrainingError: going on would end with a wrong model (`training.health`).
        StoreError: metrics or a checkpoint cannot be written.
    """
    _keep_metrics(t.run_dir, up_to=start)
    wants_best = t.config.checkpoint.keep_best or t.config.early_stop is not None
    health = _health(t)
    t.model.train()
    with _interrupts() as interrupted, StepLines(len(t.steps), start) as lines:

        def judge(record: dict) -> None:
            for warning in health.observe(record):
                lines.note(f"warning: {warning['message']}\n  do: {warning['fix']}")
                t.on_warning(warning)

        def held_out(step: int) -> None:
            if not t.held_out:
                return
            t.model.eval()
            value = evaluate(t.objective, t.model, t.held_out)
            t.model.train()
            if not math.isfinite(value.loss):
                raise overflow(f"step {step}: held-out loss {value.loss}")
            if step == 0:
                check_first_loss(value.loss, t.first_loss(t.held_out))
            record = {"eval_loss": value.loss, "eval_accuracy": value.accuracy}
            record |= {f"eval_{name}": mean for name, mean in value.extra.items()}
            _write(t.run_dir, {"step": step} | record)
            t.on_metrics(step, record)
            lines.note(f"step {step}: held-out loss {value.loss:.4f}, {t.objective.accuracy} {value.accuracy:.1%}")
            judge({"step": step} | record)
            if wants_best and health.best_step == step:
                check_adapter(t.model, step)
                checkpoint.save_best(t.run_dir, step, t.model)

        def drifted(step: int) -> None:
            t.model.eval()
            record = t.drift()
            t.model.train()
            if not all(map(math.isfinite, record.values())):
                raise overflow(f"step {step}: on neutral text {record}")
            _write(t.run_dir, {"step": step} | record)
            t.on_metrics(step, record)
            lines.note(f"step {step}: on neutral text {record['drift_kl']:.4f} nats from the base, its loss "
                       f"{record['drift_loss']:+.4f}")
            judge({"step": step} | record)

        def halved(tokens: int) -> None:
            lines.note(f"memory does not hold a pack of {tokens} tokens: it is trained in halves, which give the same step")
            t.on_event("halved", tokens=tokens)

        if start == 0:
            held_out(0)
        if t.largest:
            lines.note(_rehearse(t, halved))
        done = start
        while done < len(t.steps) and not health.exhausted:
            number = done
            began = time.perf_counter()
            packs = [[t.sample(row) for row in pack] for pack in t.steps[number].packs]
            measured = forward_backward(t.objective, t.model, packs, halved)
            if number == 0:
                check_first_loss(measured.loss, t.first_loss(packs))
            if number == 0 or t.is_end(number + 1):
                t.on_gradient(number + 1, gradient_shares(t.model))
            record = _update(t, number, measured)
            took = time.perf_counter() - began
            record |= {"seconds": took, "tokens_per_second": measured.tokens / took,
                       "trained_tokens_per_second": measured.trained_tokens / took, "peak_memory_bytes": peak_bytes()}
            done = number + 1
            _write(t.run_dir, record)
            t.on_metrics(done, {k: float(v) for k, v in record.items() if k != "step"})
            lines.step(record)
            judge(record)

            last, stop = t.is_end(done), interrupted()
            if last or (t.config.eval_every_steps and done % t.config.eval_every_steps == 0) or (
                    t.config.eval_every_epoch and t.ends_epoch(done)):
                held_out(done)
            last = last or health.exhausted
            if t.drift and (last or done % t.config.drift_every_steps == 0):
                drifted(done)
            if done == MOVED_AFTER:
                check_adapter(t.model, done)
            if t.config.checkpoint.keep_epochs and t.ends_epoch(done):
                check_adapter(t.model, done)  # before the checkpoint: who goes on from there does not come by here again
                checkpoint.save_epoch(t.run_dir, done, t.model, t.config.checkpoint.keep_epochs)
            if last or stop or done % t.config.checkpoint.every_steps == 0:
                check_adapter(t.model, done)
                saved = checkpoint.save(t.run_dir, done, t.model, t.optimizer, t.scheduler,
                                        {"epoch": t.steps[number].epoch, "max_steps": len(t.steps)},
                                        t.config.checkpoint.keep)
                checkpoint.forget_best(t.run_dir, health.best_step)
                if stop and not last:
                    lines.note(f"stopped: {saved.name} is written")
                    return Outcome(False, done)
        if done < len(t.steps):
            lines.note(f"stopped early: {health.stale} evaluations since step {health.best_step} had no lower held-out loss")
    return Outcome(True, done, health.best_step if wants_best else None)


def _rehearse(t: Training, halved: Callable[[int], None]) -> str:
    """Try the largest pack before any step counts: what does not fit should fail now. Leaves no trace."""
    pack, began = [t.sample(row) for row in t.largest], time.perf_counter()
    with torch.random.fork_rng():
        measured = forward_backward(t.objective, t.model, [pack], halved)
    t.optimizer.zero_grad(set_to_none=True)
    return (f"the largest pack, {measured.tokens:,} tokens, takes {time.perf_counter() - began:.1f} s and "
            f"{peak_bytes() / 1e9:.1f} GB")


def _update(t: Training, number: int, measured: Measured) -> dict:
    """Clip, move, and report. The learning rate in the record is the one this step used."""
    learning_rate = t.scheduler.get_last_lr()[0]
    norm = torch.nn.utils.clip_grad_norm_((p for p in t.model.parameters() if p.requires_grad), t.config.clip_norm).item()
    if not (math.isfinite(measured.loss) and math.isfinite(norm)):
        raise overflow(f"step {number + 1}: loss {measured.loss}, gradient norm {norm}; rows {t.steps[number].rows[:10]}")
    t.optimizer.step()
    t.scheduler.step()
    t.optimizer.zero_grad(set_to_none=True)
    return {"step": number + 1, "epoch": t.steps[number].epoch, "loss": measured.loss, "accuracy": measured.accuracy,
            "grad_norm": norm, "learning_rate": learning_rate, "tokens": measured.tokens,
            "trained_tokens": measured.trained_tokens} | measured.extra


def _health(t: Training) -> Health:
    """Judge of this run, which has seen what was recorded so far."""
    total, config = len(t.steps), t.config
    check_reach(config.learning_rate, [t.factor(i) for i in range(total)])
    health = Health(total, round(config.warmup * total), config.early_stop.patience if config.early_stop else None)
    for record in read_metrics(t.run_dir):
        health.observe(record)
    return health


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM ask for a checkpoint after the step at hand; a second Ctrl-C ends at once."""
    asked: list[int] = []  # no Event: its lock, held by a handler that a second signal interrupts, would wait for itself
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def ask(signum, _frame):
        if asked and signum == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(signum)

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _write(run_dir: Path, record: dict) -> None:
    path = run_dir / METRICS_FILE
    with explain_os_errors(path, "write"), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())  # a checkpoint must not be newer than the lines before it


def read_metrics(run_dir: Path) -> list[dict]:
    """Records of metrics.jsonl; a last line cut off by a crash is left out."""
    path = run_dir / METRICS_FILE
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def _keep_metrics(run_dir: Path, up_to: int) -> None:
    """Forget what a crashed run logged after the checkpoint that it goes on from."""
    kept = [r for r in read_metrics(run_dir) if r["step"] <= up_to] if up_to else []
    write_text(run_dir / METRICS_FILE, "".join(json.dumps(r) + "\n" for r in kept))
