"""What a person sees while it runs: one line a step on stderr, and a bar below it on a terminal."""

from __future__ import annotations

import sys
import time


def say(line: str) -> None:
    """One line for the user. Standard output is kept for results."""
    print(line, file=sys.stderr, flush=True)


class StepLines:
    """Lines of a training. `total` and `start` count optimizer steps; use as a context manager."""

    def __init__(self, total: int, start: int = 0):
        self.total, self.start, self.began = total, start, time.monotonic()
        self._bar = None

    def __enter__(self) -> StepLines:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(TextColumn("training"), BarColumn(bar_width=None), MofNCompleteColumn(),
                                 TimeRemainingColumn(), console=Console(stderr=True), expand=True)
            self._bar.start()
            self._task = self._bar.add_task("training", total=self.total, completed=self.start)
        return self

    def __exit__(self, *_exc) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, record: dict) -> None:
        """Show one record of metrics.jsonl."""
        done = record["step"] - self.start
        left = (time.monotonic() - self.began) / done * (self.total - record["step"])
        masked = 1 - record["trained_tokens"] / record["tokens"]
        self.note(f"step {record['step']:>{len(str(self.total))}}/{self.total} | loss {record['loss']:.4f} | "
                  f"gnorm {record['grad_norm']:.2f} | lr {record['learning_rate']:.1e} | "
                  f"{record['trained_tokens_per_second']:.0f} trained tok/s | {masked:.0%} masked | "
                  f"{int(left) // 60:02d}:{int(left) % 60:02d} left")
        if self._bar:
            self._bar.update(self._task, completed=record["step"])

    def note(self, line: str) -> None:
        if self._bar:
            self._bar.console.print(line, highlight=False)
        else:
            say(line)
