"""More epochs for a run that is finished or stopped.

    epochs   0      1      2      3
    steps    |......|......|......|......|
             old schedule  ^ after_step: from here the schedule of all four epochs, as if they had been wanted from the start

`run.json` holds every extension as `{after_step, epochs: [old, new], steps: [old, new]}`, and with them the learning rate of a
step is a function of its number again: whatever is killed later and goes back to whichever checkpoint, resumes exactly. The
file is written first and is what counts; the rest (`settle`) is made to follow it at every resume.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tunesmith.data.dataset import TRAIN, Dataset
from tunesmith.errors import RecipeError
from tunesmith.recipe.load import Loaded
from tunesmith.store.files import sha256_json, sha256_tree, write_json

if TYPE_CHECKING:
    from tunesmith.training.run import Run


def agreed(state: dict, loaded: Loaded) -> Loaded:
    """The recipe with the epochs of an extended run, where it still says those that the run began with."""
    past = state.get("extended")
    if not past or loaded.recipe.train.epochs != past[0]["epochs"][0]:
        return loaded
    return _with_epochs(loaded, past[-1]["epochs"][1])


def earlier_schedules(state: dict) -> list[tuple[int, int]]:
    """`(until, total)` for each extension: steps before `until` have the learning rate of a training of `total` steps."""
    return [(e["after_step"], e["steps"][0]) for e in state.get("extended", [])]


def extend(run: Run, loaded: Loaded, dataset: Dataset, more: int, say: Callable[[str], None]) -> Loaded:
    """Add `more` epochs to the run's total, and return the recipe with it. Training is the caller's.

    Raises:
        RecipeError: `max_steps` or early stopping would end it all the same, or there is no checkpoint to go on from.
    """
    from tunesmith.training import checkpoint, loop, schedule
    from tunesmith.training.health import Health
    from tunesmith.training.run import planned

    train, state = loaded.recipe.train, run.state

    def refuse(what: str, why: str, fix: str) -> RecipeError:
        return RecipeError(f"run {run.path.name} cannot be extended: {what}", where=str(loaded.path), why=why, fix=fix)

    if train.max_steps is not None:
        raise refuse(f"train.max_steps is {train.max_steps}", "it ends the training and its schedule, however many epochs "
                     "there are", "train a new run with a larger train.max_steps, or without it and with more train.epochs")
    lengths = dataset.tokens(TRAIN).lengths
    longer = _with_epochs(loaded, train.epochs + more)
    old, new = len(planned(train, lengths)), len(planned(longer.recipe.train, lengths))
    newest = checkpoint.newest_whole(run.path, say)
    after = checkpoint.step_of(newest) if newest else 0
    if state["status"] == "finished" and after < state["steps"]:
        raise refuse(f"checkpoint-{state['steps']} is not whole", "it is where a finished run goes on from",
                     "bring it back from where it was copied, or train a new run with more train.epochs")
    if train.early_stop:
        health = Health(new, patience=train.early_stop.patience)
        for record in loop.read_metrics(run.path):
            health.observe(record)
        if health.exhausted:
            raise refuse(f"train.early_stop has ended it after step {after}", f"{health.stale} evaluations had no lower "
                         "held-out loss", "train a new run with a larger train.early_stop.patience and more train.epochs")
    past = [*state.get("extended", []), {"after_step": after, "epochs": [train.epochs, longer.recipe.train.epochs],
                                         "steps": [old, new]}]
    rates = [train.learning_rate * schedule.factor(after, total, train.warmup, train.schedule) if after < total else 0.0
             for total in (old, new)]
    run.update(extended=past, status="running", report_path=None)
    run.event("extended", **past[-1], learning_rate=rates)
    say(f"extended {run.path.name} from {train.epochs} to {train.epochs + more} epochs, from {old} to {new} steps; step "
        f"{after + 1} has the learning rate of {new} steps, {rates[1]:.1e}"
        + ("" if after == old else f" instead of {rates[0]:.1e}"))
    return longer


def settle(run: Run, loaded: Loaded) -> None:
    """Make the run's files follow what run.json says. A kill may have come in between; then the next resume does it.

    The resolved recipe gets the new total. The adapter and the report of the shorter training are kept as `adapter-N` and
    `report-N`: nobody shall take them for those of the longer one.
    """
    from tunesmith.training import checkpoint

    state = run.state
    if not state.get("extended"):
        return
    write_json(run.path / "recipe.resolved.json", loaded.recipe.model_dump(mode="json"))
    if not run.adapter.is_dir() or sha256_json(sha256_tree(run.adapter)) != state.get("adapter_digest"):
        return
    if loaded.recipe.train.checkpoint.keep_best or loaded.recipe.train.early_stop:
        checkpoint.save_best_again(run.path, state["adapter_step"], run.adapter)
    for path in (run.path / "report", run.adapter):
        if path.is_dir():
            path.rename(path.with_name(f"{path.name}-{state['steps']}"))


def _with_epochs(loaded: Loaded, epochs: int) -> Loaded:
    recipe = loaded.recipe
    return Loaded(recipe.model_copy(update={"train": recipe.train.model_copy(update={"epochs": epochs})}), loaded.path)
