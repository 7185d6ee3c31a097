"""A run: the directory of one training, made before step 1 and true at every moment after.

    runs/RUN_ID/   run.json              status, base and digest, dataset, dtype, threads, result
                   recipe.yaml           the recipe as it was given
                   recipe.resolved.json  every value, defaults included
                   environment.json      versions and machine
                   metrics.jsonl         one record a step
                   events.jsonl          what happened to it, and when
                   checkpoint-N/  adapter/
"""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.data.dataset import TRAIN, Dataset, Tokens
from tunesmith.data.pack import Step, plan_steps
from tunesmith.data.prepare import prepare
from tunesmith.errors import NotFoundError, RecipeError, TunesmithError, UsageError
from tunesmith.models.base import Base, resolve
from tunesmith.models.load import model_of, parameter_count, tokenizer_of
from tunesmith.recipe.load import Loaded, load
from tunesmith.store.files import (
    explain_os_errors,
    held,
    publish_directory,
    read_json,
    sha256_json,
    sha256_tree,
    sweep,
    write_json,
    write_text,
)
from tunesmith.store.home import find, home, new_run_id
from tunesmith.training.environment import distributions, environment

if TYPE_CHECKING:
    from tunesmith.recipe.schema import Train

Say = Callable[[str], None]
RUN_FILE, EVENTS_FILE, ADAPTER = "run.json", "events.jsonl", "adapter"
ORIGIN_FILE = "tunesmith.json"
"""In the adapter's directory: what it was trained on and how it is prompted, wherever it is copied. PEFT leaves it alone."""
HELD_OUT_ROWS = 64
"""Rows of the primary test set whose loss is watched during training."""


@dataclass(frozen=True)
class Run:
    """A run on disk."""

    path: Path

    @classmethod
    def find(cls, name: str) -> Run:
        """By id, unique prefix, or path. Raises NotFoundError."""
        path = find("runs", name)
        if not (path / RUN_FILE).is_file():
            raise NotFoundError(f"no run {name!r}", where=str(path), fix="see `tunesmith runs`")
        return cls(path)

    @property
    def state(self) -> dict:
        return read_json(self.path / RUN_FILE)

    @property
    def adapter(self) -> Path:
        return self.path / ADAPTER

    def recipe(self) -> Loaded:
        """The recipe this run was made from, its paths relative to where it was."""
        from tunesmith.recipe.schema import Recipe

        text = (self.path / "recipe.resolved.json").read_text(encoding="utf-8")
        return Loaded(Recipe.model_validate_json(text), Path(self.state["recipe_path"]))

    def dataset(self) -> Dataset:
        return Dataset.open(home() / "datasets" / self.state["dataset_id"])

    def base(self) -> Base:
        """Raises RecipeError when the base's bytes are not those this run was trained on."""
        base = resolve(self.state["base"]["ref"], Path(self.state["recipe_path"]).parent)
        if base.digest != self.state["base"]["digest"]:
            raise RecipeError(f"base {base.ref!r} has changed since this run", where=str(self.path),
                              why=f"digest is {base.digest}, the run's is {self.state['base']['digest']}",
                              fix="bring the old base back, or train again")
        return base

    def update(self, **values) -> None:
        """Replace values of run.json. A change of status is an event."""
        before = self.state
        write_json(self.path / RUN_FILE, before | values)
        if values.get("status", before["status"]) != before["status"]:
            self.event(values["status"], **{k: values[k] for k in ("steps", "error") if values.get(k)})

    def warn(self, warning: dict) -> None:
        """Add `{code, step, message, fix}` to run.json's `warnings`, and an event."""
        self.update(warnings=[*self.state.get("warnings", []), warning])
        self.event("warning", **warning)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else trains this run until the block ends. Raises UsageError when somebody does."""
        with ExitStack() as stack:
            try:
                stack.enter_context(held(self.path))
            except BlockingIOError:
                process = self.state.get("process", {})
                raise UsageError(f"run {self.path.name} is being trained", where=str(self.path),
                                 why=f"by process {process.get('pid', '?')} on {process.get('host', '?')}; two would write "
                                     "over each other", fix="look at it with `tunesmith watch`, or stop it first") from None
            except OSError:
                pass  # a file system without locks
            yield

    def event(self, what: str, **facts) -> None:
        """Add a line to events.jsonl."""
        path = self.path / EVENTS_FILE
        with explain_os_errors(path, "write"), open(path, "a", encoding="utf-8") as f:
            f.write(json.dumps({"at": now(), "event": what, **facts}, ensure_ascii=False) + "\n")


def all_runs() -> list[dict]:
    """States of all runs, newest first."""
    root = home() / "runs"
    states = [read_json(p) for p in root.glob(f"[!.]*/{RUN_FILE}")] if root.is_dir() else []
    return sorted(states, key=lambda s: s["created"], reverse=True)


def train(recipe: str | Path, *, resume: str | None = None, extend_epochs: int = 0, say: Say = lambda _line: None) -> dict:
    """Train a recipe, or go on with a run that was interrupted, or for `extend_epochs` more than the total it has.

    Returns the run's state: run_id, run_dir, adapter_dir, steps, train_loss, eval_loss, tokens_per_second,
    peak_memory_bytes, and status `finished` or `stopped`.

    Raises:
        RecipeError, DataError, BaseModelError, UsageError: invalid input (exit code 2).
        TrainingError: it would end with a wrong model.
    """
    return train_loaded(load(recipe), resume=resume, extend_epochs=extend_epochs, say=say)


def train_loaded(loaded: Loaded, *, resume: str | None = None, extend_epochs: int = 0, say: Say = lambda _line: None) -> dict:
    """`train` for a recipe that is already loaded, perhaps with values replaced."""
    from tunesmith.training.extend import agreed, extend, settle

    if extend_epochs and not resume:
        raise UsageError("--extend-epochs is for a run that is there already", why="without --resume RUN a new one is trained",
                         fix="give --resume RUN, or more train.epochs in the recipe")
    base = resolve(loaded.recipe.base, loaded.folder)
    dataset = prepare(loaded, tokenizer_for(base, loaded), say)
    run = _resumed(resume, loaded, base, dataset) if resume else _created(loaded, base, dataset, say)
    loaded = agreed(run.state, loaded)
    with run.alone():
        sweep(run.path)
        if extend_epochs:
            loaded = extend(run, loaded, dataset, extend_epochs, say)
        if run.state["status"] == "finished":
            from tunesmith.training.checkpoint import forget_best

            forget_best(run.path, None)
            say(f"{run.path.name} is already finished")
            return run.state
        try:
            settle(run, loaded)
            return _train(run, loaded, base, dataset, say)
        except BaseException as error:
            run.update(status="failed", error=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            if isinstance(error, TunesmithError) and (error.why or error.fix):
                run.event("reason", why=error.why, fix=error.fix)
            raise


def tokenizer_for(base: Base, loaded: Loaded):
    template = loaded.recipe.data.template
    return tokenizer_of(base, loaded.resolve(template) if template else None)


def prepare_engine(model, recipe, say: Say) -> tuple[str, Callable]:
    """(`fast` or `plain`, its forward_loss): accelerates the PEFT model in place when the fast path is exact for it.

    Raises:
        RecipeError: train.engine is `fast` and it is not.
    """
    from tunesmith.engine import fast, plain

    reason = "the recipe says so" if recipe.train.engine == "plain" else fast.why_not(model, recipe.data.max_tokens)
    if reason and recipe.train.engine == "fast":
        raise RecipeError("train.engine is fast, and the fast path cannot train this", why=reason,
                          fix="set train.engine: auto")
    if reason:
        say(f"chose engine=plain ({reason})")
        plain.prepare()
        return "plain", plain.forward_loss
    without = fast.accelerate(model)
    fused = "fused LoRA, " if recipe.method.type in ("lora", "qlora") and not getattr(recipe.method, "dora", False) else ""
    say(f"chose engine=fast (packed rows, {fused}chunked loss, {f'no kernels in C: {without}' if without else 'kernels in C'})")
    return "fast", fast.forward_loss


def _created(loaded: Loaded, base: Base, dataset: Dataset, say: Say) -> Run:
    import torch

    from tunesmith import methods
    from tunesmith.engine.precision import choose
    from tunesmith.training import start

    wanted = methods.wanted_dtype(loaded.recipe.method, loaded.recipe.train.dtype)
    choice = choose(wanted)
    say(choice.because if wanted == loaded.recipe.train.dtype else
        choice.because.replace("the recipe says so", f"{loaded.recipe.method.type} trains weights of the base itself"))
    run_id = new_run_id(loaded.recipe.name)
    started = {"started_from": found} if (found := start.facts(loaded, base)) else {}
    path = home() / "runs" / run_id
    sweep(path.parent)
    with publish_directory(path) as staging:
        shutil.copyfile(loaded.path, staging / "recipe.yaml")
        write_json(staging / "recipe.resolved.json", loaded.recipe.model_dump(mode="json"))
        write_json(staging / "environment.json", environment() | {
            "distributions": distributions([loaded.recipe.method.type])})
        write_text(staging / "metrics.jsonl", "")
        write_json(staging / RUN_FILE, {
            "run_id": run_id, "name": loaded.recipe.name, "status": "running", "created": now(),
            "recipe_path": str(loaded.path), "run_dir": str(path), "adapter_dir": str(path / ADAPTER),
            "base": {"ref": base.ref, "digest": base.digest, "parameters": parameter_count(base)},
            "dataset_id": dataset.id, "template_fingerprint": dataset.manifest["inputs"]["template"],
            "dtype": str(choice.dtype).removeprefix("torch."), "device": choice.device,
            "threads": torch.get_num_threads(), "warnings": [], **started,
        })
    run = Run(path)
    run.event("created", dataset=dataset.id, base=base.digest)
    return run


def _resumed(name: str, loaded: Loaded, base: Base, dataset: Dataset) -> Run:
    """Raises RecipeError when recipe, base or data are not those that the run began with."""
    from tunesmith.training.extend import agreed

    run = Run.find(name)
    before, now_ = (r.recipe.model_dump(mode="json") for r in (run.recipe(), agreed(run.state, loaded)))
    if past := run.state.get("extended"):
        before["train"]["epochs"] = past[-1]["epochs"][1]
    changed = sorted(_flat(before).items() ^ _flat(now_).items())
    if changed:
        keys = sorted({k for k, _ in changed})
        raise RecipeError(f"the recipe has changed since run {run.path.name}: {', '.join(keys)}", where=str(loaded.path),
                          why="a resumed run must equal the uninterrupted one", fix="change it back, or start a new run"
                          + ("; for more epochs change it back and give --extend-epochs" * (keys == ["train.epochs"])))
    for what, old, new in (("base", run.state["base"]["digest"], base.digest),
                           ("data", run.state["dataset_id"], dataset.id)):
        if old != new:
            raise RecipeError(f"the {what} has changed since run {run.path.name}", where=str(loaded.path),
                              why=f"it was {old}, it is {new}", fix="bring it back, or start a new run")
    return run


def _flat(value, prefix: str = "") -> dict[str, str]:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}".lstrip(".")).items()}
    return {prefix: repr(value)}


def planned(train: Train, lengths: list[int]) -> list[Step]:
    """All steps of a training. More epochs only add steps at the end."""
    return plan_steps(lengths, tokens_per_step=train.tokens_per_step, tokens_per_pack=train.tokens_per_pack,
                      rows_per_step=train.rows_per_step, epochs=train.epochs, max_steps=train.max_steps, seed=train.seed)


def _train(run: Run, loaded: Loaded, base: Base, dataset: Dataset, say: Say) -> dict:
    import torch

    from tunesmith import methods
    from tunesmith.engine.memory import peak_bytes
    from tunesmith.engine.native import build
    from tunesmith.training import checkpoint, drift, loop, start
    from tunesmith.training import objective as objectives
    from tunesmith.training.extend import earlier_schedules
    from tunesmith.training.health import check_trained

    recipe, state = loaded.recipe, run.state
    _same_arithmetic(state, say)
    tokens, watched = (objectives.rows_of(recipe, dataset, part) for part in (TRAIN, dataset.tests[0]))
    torch.manual_seed(recipe.train.seed)
    random.seed(recipe.train.seed)  # checkpoints hold its state; unseeded, no two processes would agree on it
    model = methods.attach(model_of(base, getattr(torch, state["dtype"]), state["device"]), recipe.method, base.ref,
                           base.digest)
    started = start.begin(run, loaded, model, say)
    engine, _forward_loss = prepare_engine(model, recipe, say)
    kernels = build.digest() if engine == "fast" else "torch"
    steps = planned(recipe.train, tokens.lengths)
    held_out = plan_steps(watched.lengths[:HELD_OUT_ROWS],
                          tokens_per_step=recipe.train.tokens_per_pack or recipe.train.tokens_per_step)
    check_trained(steps, tokens.trained_lengths(), TRAIN)
    check_trained(held_out, watched.trained_lengths(), dataset.tests[0])
    facts = {"engine": engine, "kernels": kernels, "dtype": state["dtype"], "device": state["device"]}
    facts |= {"started_from": started["digest"]} if started else {}
    made = objectives.make(loaded, base, dataset, model, facts, (steps, held_out), state.get("reference"), say)
    tracker = _tracker(run, loaded, dataset)

    def shares(step: int, found: dict[str, float]) -> None:
        run.update(gradient_shares=run.state.get("gradient_shares", {}) | {str(step): found})

    training = loop.Training(run.path, recipe.train, model, made.objective, steps, made.train,
                             [[made.held_out(r) for r in s.rows] for s in held_out],
                             _largest(steps, tokens), _tolerant(tracker.metrics, say), run.warn, run.event, shares,
                             earlier_schedules(state), methods.learning_rate_ratios(recipe.method), made.first_loss,
                             drift.during_training(recipe, model, tokenizer_for(base, loaded), engine))
    first = 0
    if newest := checkpoint.newest_whole(run.path, say):
        first = checkpoint.restore(newest, model, training.optimizer, training.scheduler)["global_step"]
        training.renew_learning_rate()
        say(f"resuming {run.path.name} after step {first}")
        if kernels != state.get("kernels", "torch"):
            say("it began with other kernels (of the C compiler or of torch): equal to rounding, not bit for bit")
        run.event("resumed", after_step=first)
    if made.reference:
        run.update(reference=made.reference)
    run.update(status="running", process={"pid": os.getpid(), "host": platform.node()}, engine=engine, kernels=kernels,
               trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad), total_steps=len(steps),
               rows_trained=len({row for step in steps for row in step.rows}), mlflow_run_id=tracker.run_id, error=None,
               warnings=[w for w in state.get("warnings", []) if w["step"] <= first])
    try:
        outcome = loop.train(training, first)
    except BaseException:
        tracker.finish("FAILED")
        raise
    if not outcome.finished:
        run.update(status="stopped", steps=outcome.steps)
        tracker.finish("KILLED")
        return run.state
    best = outcome.best
    with publish_directory(run.adapter) as staging:
        if best is None or best == outcome.steps:
            methods.save(model, staging)
        else:
            checkpoint.copy_best(run.path, best, staging)
            say(f"the adapter is that of step {best}, where the held-out loss was lowest")
        write_json(staging / ORIGIN_FILE, {"base": {"ref": base.ref, "digest": base.digest}, "dataset_id": dataset.id,
                                           "template_fingerprint": run.state["template_fingerprint"],
                                           "dtype": run.state["dtype"], "method": recipe.method.model_dump(mode="json"),
                                           **({"started_from": started["digest"]} if started else {})})
    if outcome.steps < len(steps):
        run.event("stopped_early", steps=outcome.steps, best_step=best)
    step = best or outcome.steps
    checkpoint.prune(run.path, outcome.steps, recipe.train.checkpoint.keep)
    run.update(status="finished", steps=outcome.steps, adapter_step=step, **_result(loop.read_metrics(run.path), step),
               peak_memory_bytes=peak_bytes(), adapter_digest=sha256_json(sha256_tree(run.adapter)))
    checkpoint.forget_best(run.path, None)
    _track_adapter(tracker, run, loaded)
    return run.state


def _result(metrics: list[dict], adapter_step: int) -> dict:
    """Of the whole run, whatever number of processes it took. The losses are those of the adapter's step."""
    steps = [r for r in metrics if "loss" in r]
    held_out = [r["eval_loss"] for r in metrics if "eval_loss" in r and r["step"] <= adapter_step]
    seconds, tokens = sum(r["seconds"] for r in steps), sum(r["tokens"] for r in steps)
    return {"train_loss": steps[adapter_step - 1]["loss"], "eval_loss": held_out[-1] if held_out else None,
            "train_seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / seconds}


def _largest(steps: list[Step], tokens: Tokens) -> list[int]:
    """Rows of the pack with the most tokens, among those with a trained one."""
    lengths, trained = tokens.lengths, tokens.trained_lengths()
    packs = [pack for step in steps for pack in step.packs if any(trained[row] for row in pack)]
    return list(max(packs, key=lambda pack: sum(lengths[row] for row in pack)))


def _same_arithmetic(state: dict, say: Say) -> None:
    """A resumed run computes with as many threads as it began with: sums in another order differ in the last bit."""
    import torch

    from tunesmith.engine.memory import keep_pages

    if keep_pages():
        say("chose allocator=keep (freed memory stays for the next step)")
    torch.use_deterministic_algorithms(True, warn_only=True)
    if torch.get_num_threads() != state["threads"]:
        say(f"chose threads={state['threads']} (as the run began; this machine would take {torch.get_num_threads()})")
        torch.set_num_threads(state["threads"])


def _tracker(run: Run, loaded: Loaded, dataset: Dataset):
    from tunesmith.track import mlflow

    state, track, recipe = run.state, loaded.recipe.track, loaded.recipe.model_dump(mode="json")
    extended = {}
    if past := state.get("extended"):  # MLflow refuses a parameter that has changed
        recipe["train"]["epochs"], extended = past[0]["epochs"][0], {"tunesmith.epochs": past[-1]["epochs"][1]}
    tracker = mlflow.start(track.mlflow, home(), experiment=track.experiment or loaded.recipe.name,
                           run_name=state["run_id"], params=recipe,
                           tags={"tunesmith.run_id": state["run_id"], "tunesmith.base": state["base"]["digest"],
                                 "tunesmith.dataset": dataset.id, **track.tags, **extended},
                           mlflow_run_id=state.get("mlflow_run_id"))
    if not state.get("mlflow_run_id"):
        for part in (TRAIN, *dataset.tests):
            rows = dataset.manifest["counts"].get(part if part == TRAIN else f"test:{part}")
            tracker.dataset(f"{loaded.recipe.name}-{part}", dataset.id, {"path": str(dataset.path), "part": part},
                            {"rows": rows}, "training" if part == TRAIN else "testing")
        tracker.artifact(run.path / "recipe.yaml")
    return tracker


def _tolerant(send: Callable, say: Say) -> Callable:
    """A tracking server that goes away in the middle does not end a training: metrics.jsonl is the record."""
    from tunesmith.errors import TrackingError

    def metrics(step: int, values: dict) -> None:
        try:
            send(step, values)
        except TrackingError as error:
            say(f"tracking: {error.what} ({error.why}); going on, metrics.jsonl has everything")

    return metrics


def _track_adapter(tracker, run: Run, loaded: Loaded) -> None:
    from tunesmith.methods import describe

    state = run.state
    numbers = {k: state[k] for k in ("train_loss", "eval_loss", "tokens_per_second", "peak_memory_bytes") if state[k]}
    tracker.metrics(state["steps"], {f"final_{k}": float(v) for k, v in numbers.items()})
    facts = {k: v for k, v in describe(loaded.recipe.method).items() if v is not None}
    model = tracker.adapter(loaded.recipe.name, run.adapter, params=facts | {"base": state["base"]["ref"]},
                            tags={"tunesmith.run_id": state["run_id"], "tunesmith.adapter": state["adapter_digest"]},
                            metrics={k: float(v) for k, v in numbers.items()})
    tracker.finish("FINISHED")
    run.update(mlflow_model=model)


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
