"""One run of a sweep, in a process of its own: trained, or gone on with, and evaluated.

A process of its own, because the peak of its memory is then that of this run, and because nothing of the run before is left.

`python -m tunesmith.evals.one JOB` is the child: lines for people on stderr, one JSON document on stdout.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from tunesmith import errors
from tunesmith.errors import TrainingError, TunesmithError


def in_a_process(job: dict) -> dict:
    """`{run_id, status}`: `finished` and evaluated, or `stopped` by Ctrl-C, which the child gets as well.

    `job`: `recipe` (a file), `resume` (a run's id, or None), `remembered` (a directory for what the base says) and
    `threads`.

    Raises:
        TunesmithError: what the child raised.
        TrainingError: it was killed, as the system does with a process that takes more memory than there is.
    """
    with subprocess.Popen([sys.executable, "-m", "tunesmith.evals.one", json.dumps(job)], stdout=subprocess.PIPE, text=True,
                          encoding="utf-8") as child:
        said = _heard(child)
    if child.returncode == -signal.SIGKILL:
        raise TrainingError("its process was killed", why="as the system does when memory runs out",
                            fix="lower train.tokens_per_pack: the result is the same")
    try:
        document = json.loads(said[said.rstrip().rfind("\n") + 1 :])
    except ValueError:
        if child.returncode == -signal.SIGINT:
            return {"run_id": None, "status": "stopped"}
        raise TrainingError(f"its process ended with {child.returncode}", why="what it wrote above says more",
                            fix="`tunesmith train` with the same recipe") from None
    if "error" in document:
        kind = getattr(errors, document["error"], TunesmithError)
        raise kind(document["what"], where=document["where"], why=document["why"], fix=document["fix"],
                   problems=[errors.Problem(**p) for p in document["problems"]])
    return document


def _heard(child: subprocess.Popen) -> str:
    """All that it says. A Ctrl-C is for the child: it writes a checkpoint first."""
    parts = []
    while True:
        try:
            for line in child.stdout:
                parts.append(line)
            return "".join(parts)
        except KeyboardInterrupt:
            continue


def _child(job: dict) -> dict:
    import torch

    from tunesmith.evals.run import evaluate
    from tunesmith.track.progress import say
    from tunesmith.training.run import Run, train

    torch.set_num_threads(job["threads"])
    try:
        state = train(job["recipe"], resume=job["resume"], say=say)
        if state["status"] == "finished":
            evaluate(Run(Path(state["run_dir"])), say, Path(job["remembered"]))
        return {"run_id": state["run_id"], "status": state["status"]}
    except TunesmithError as error:
        return error.as_dict()
    except KeyboardInterrupt:
        return {"run_id": None, "status": "stopped"}


if __name__ == "__main__":
    print(json.dumps(_child(json.loads(sys.argv[1]))))  # noqa: T201 - the document that the parent reads
