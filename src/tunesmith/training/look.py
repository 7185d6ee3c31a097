"""What a run is doing now, from its files alone: while it trains, after it ended, and after it was killed.

Nothing heavy is imported, so that looking costs a training nothing.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

from tunesmith.store.files import read_json
from tunesmith.training.run import EVENTS_FILE, Run

METRICS_FILE = "metrics.jsonl"
RECENT_STEPS = 20
"""Speed, and with it the time left, is that of so many steps."""
EVENTS = 8
ENDED = ("finished", "failed", "stopped", "lost")


class Tail:
    """Records of a growing JSON-lines file; each call of `read` parses only what is new."""

    def __init__(self, path: Path):
        self.path, self.records = path, []
        self._offset, self._file = 0, None

    def read(self) -> list[dict]:
        """All records so far. A file that was replaced, as a resumed run does, is read again; half a line waits."""
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            return self.records
        if stat.st_ino != self._file or stat.st_size < self._offset:
            self.records, self._offset, self._file = [], 0, stat.st_ino
        with open(self.path, "rb") as f:
            f.seek(self._offset)
            new = f.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                self.records.append(json.loads(line))
            except ValueError:  # cut off by a crash in the middle of a line
                continue
        return self.records


class Look:
    """The state of one run, again and again."""

    def __init__(self, run: Run):
        self.run = run
        self._metrics, self._events = Tail(run.path / METRICS_FILE), Tail(run.path / EVENTS_FILE)
        self._recipe = read_json(run.path / "recipe.resolved.json")

    def now(self) -> dict:
        """One JSON document. Losses in nats a token; `seconds_left` is None when the run has ended or not begun a step.

        `status` is that of run.json, or `lost` when it says running and its process is gone.
        """
        state, records = self.run.state, self._metrics.read()
        steps = [r for r in records if "loss" in r]
        evals = [r for r in records if "eval_loss" in r]
        recent = steps[-RECENT_STEPS:]
        seconds = sum(r["seconds"] for r in recent)
        status = "lost" if state["status"] == "running" and _gone(state.get("process")) else state["status"]
        last, total = steps[-1] if steps else {}, state.get("total_steps")
        left = seconds / len(recent) * (total - last["step"]) if recent and total and status == "running" else None
        best = min((r for r in evals if r["step"]), key=lambda r: r["eval_loss"], default=None)
        return {
            "run_id": state["run_id"], "name": state["name"], "status": status, "ended": status in ENDED,
            "error": state.get("error"), "run_dir": str(self.run.path), "recipe_path": state["recipe_path"],
            "created": state["created"], "base": state["base"]["ref"], "engine": state.get("engine"), "dtype": state["dtype"],
            "step": last.get("step", 0), "total_steps": total, "epoch": last["epoch"] + 1 if last else 0,
            "epochs": self._recipe["train"]["epochs"], "train_loss": last.get("loss"),
            "eval_loss": evals[-1]["eval_loss"] if evals else None, "adapter_step": state.get("adapter_step"),
            "best": {"step": best["step"], "eval_loss": best["eval_loss"]} if best else None,
            "learning_rate": last.get("learning_rate"), "grad_norm": last.get("grad_norm"),
            "tokens_per_second": sum(r["tokens"] for r in recent) / seconds if recent else None,
            "peak_memory_bytes": max((r.get("peak_memory_bytes", 0) for r in steps), default=None),
            "seconds": sum(r["seconds"] for r in steps), "seconds_left": left,
            "warnings": state.get("warnings", []), "events": self._events.read()[-EVENTS:],
            "curves": {"loss": [[r["step"], r["loss"]] for r in steps],
                       "eval_loss": [[r["step"], r["eval_loss"]] for r in evals],
                       "learning_rate": [[r["step"], r["learning_rate"]] for r in steps],
                       "grad_norm": [[r["step"], r["grad_norm"]] for r in steps]},
        }


def _gone(process: dict | None) -> bool:
    """Whether a process of this machine has ended. Of one elsewhere nothing is known."""
    if not process or process["host"] != platform.node():
        return False
    try:
        os.kill(process["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's, and alive
        return False
    return False
