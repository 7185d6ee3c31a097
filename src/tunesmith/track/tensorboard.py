"""TensorBoard event files of a run, for those who keep their curves there: `tunesmith watch RUN --tensorboard DIR`.

Written by tensorboardX, which needs neither TensorFlow nor TensorBoard (`pip install tunesmith[tensorboard]`).
"""

from __future__ import annotations

from pathlib import Path

from tunesmith.errors import UsageError

TAGS = {"loss": "loss/train", "eval_loss": "loss/held_out", "learning_rate": "learning_rate", "grad_norm": "gradient_norm"}
"""Curve of a look -> tag in TensorBoard; the two losses share a section."""


class Events:
    """Scalars of one run in `directory`/RUN_ID, each step once. Raises UsageError when there is no writer installed."""

    def __init__(self, directory: str | Path, run_id: str):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise UsageError("TensorBoard files need the package tensorboardX", why=str(error),
                             fix="pip install 'tunesmith[tensorboard]'") from error
        self.path = Path(directory).absolute() / run_id
        if self.path.is_dir() and any(self.path.glob("events.out.tfevents.*")):
            raise UsageError("there are event files of this run already", where=str(self.path),
                             why="TensorBoard would draw every step twice", fix="delete them, or give another directory")
        self._writer = SummaryWriter(str(self.path))
        self._written = dict.fromkeys(TAGS, -1)

    def add(self, look: dict) -> None:
        """Write what `training.look` found since the last time."""
        for name, tag in TAGS.items():
            for step, value in look["curves"][name]:
                if step > self._written[name]:
                    self._writer.add_scalar(tag, value, step)
                    self._written[name] = step
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
