"""What a training writes into its files, as a job tells it: events, checkpoints, and a table of all steps.

    metrics.jsonl   {"step": 35, "loss": 0.98, "accuracy": 0.71, ...}        ->  Step 35/1501: training loss=0.98
                    {"step": 35, "eval_loss": 1.1, "eval_accuracy": 0.64}        , validation loss=1.10

`train_loss` is the mean over the trained tokens of a step: those of the assistant's messages with weight 1, the token that ends
them included. `train_mean_token_accuracy` is the share of them that the model finds likeliest. `valid_*` are the same of up to
64 held-out examples; at the end of an epoch they are told as `full_valid_*` too. Of dpo, loss and accuracy are those of pairs.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy", "full_valid_loss",
           "full_valid_mean_token_accuracy")
"""Of the table. It is plain text; OpenAI's is in base64 since 2024, which its readers undo where it is so."""
RECENT = 20
"""Steps whose time says how long the rest will take."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a training with everything that is known of it."""

    number: int
    epoch: int
    loss: float
    accuracy: float
    seconds: float
    valid: tuple[float, float] | None = None
    """(loss, accuracy) of the held-out examples after it."""
    ends_epoch: bool = False

    def data(self, total: int) -> dict[str, Any]:
        """Of its event."""
        return {"step": self.number, "total_steps": total} | {k: v for k, v in self.metrics().items() if k != "step"}

    def metrics(self) -> dict[str, Any]:
        """Of a checkpoint."""
        told = {"step": self.number, "train_loss": self.loss, "train_mean_token_accuracy": self.accuracy}
        if self.valid:
            told |= {"valid_loss": self.valid[0], "valid_mean_token_accuracy": self.valid[1]}
            if self.ends_epoch:
                told |= {"full_valid_loss": self.valid[0], "full_valid_mean_token_accuracy": self.valid[1]}
        return told

    def message(self, total: int) -> str:
        told = self.metrics()
        return f"Step {self.number}/{total}: training loss={self.loss:.2f}" + "".join(
            f", {words}={told[name]:.2f}" for name, words in (("valid_loss", "validation loss"),
                                                              ("full_valid_loss", "full validation loss")) if name in told)


def steps_of(records: Sequence[Mapping], total: int | None, over: bool) -> Iterator[Step]:
    """Steps of which nothing more will be written: a later one has begun, or the training is `over`.

    `records`: of metrics.jsonl. `total`: steps of the whole training.
    """
    trained = [r for r in records if "loss" in r]
    held_out = {r["step"]: (r["eval_loss"], r["eval_accuracy"]) for r in records if "eval_loss" in r}
    for record, after in zip_longest(trained, trained[1:]):
        if after is None and not over:
            return
        last = after["epoch"] != record["epoch"] if after else record["step"] == total
        yield Step(record["step"], record["epoch"], record["loss"], record["accuracy"], record["seconds"],
                   held_out.get(record["step"]), last)


def seconds_left(steps: Sequence[Step], total: int) -> float | None:
    """Of the training alone, as long as its last steps took."""
    recent = steps[-RECENT:]
    return (total - steps[-1].number) * sum(s.seconds for s in recent) / len(recent) if recent else None


def table(steps: Sequence[Step]) -> bytes:
    """All steps as CSV (COLUMNS), with empty cells where nothing was measured."""
    names = {"train_accuracy": "train_mean_token_accuracy"}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for step in steps:
        told = step.metrics()
        writer.writerow([told.get(names.get(c, c), "") for c in COLUMNS])
    return out.getvalue().encode()
