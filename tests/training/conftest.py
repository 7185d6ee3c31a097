"""Runs to compare: what a training leaves behind, and ways to end one early."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tunesmith.training import checkpoint
from tunesmith.training.run import Run, train

DEADLINE_SECONDS = 120
TIMES = {"seconds", "tokens_per_second", "trained_tokens_per_second", "peak_memory_bytes"}
"""The only values of metrics.jsonl that two equal trainings may disagree on."""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """In this process and in those it starts: models this small are faster, and other work does not slow them down."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.use_deterministic_algorithms(False)


class Left(NamedTuple):
    """Everything by which two finished runs are compared."""

    adapter: bytes
    config: bytes
    optimizer: dict[str, torch.Tensor]
    scheduler: dict
    random: dict
    metrics: list[dict]


def _left(run_dir: str | Path) -> Left:
    run_dir = Path(run_dir)
    last = checkpoint.all_in(run_dir)[-1]

    def state(name: str) -> dict:
        return torch.load(last / name, weights_only=True)

    moments = {f"{i}.{name}": v for i, values in state("optimizer.pt")["state"].items() for name, v in values.items()}
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    metrics = [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]
    adapter = run_dir / "adapter"
    assert (last / "adapter_model.safetensors").read_bytes() == (adapter / "adapter_model.safetensors").read_bytes()
    return Left((adapter / "adapter_model.safetensors").read_bytes(), (adapter / "adapter_config.json").read_bytes(), moments,
                state("scheduler.pt"), state("rng_state.pth"), metrics)


@pytest.fixture
def left() -> Callable[[str | Path], Left]:
    """What a finished run left behind."""
    return _left


@pytest.fixture
def assert_same() -> Callable[[Left, Left], None]:
    """Two runs are equal bit for bit: adapter, optimizer, schedule, random state, and every number but the times."""

    def check(a: Left, b: Left) -> None:
        assert a.adapter == b.adapter
        assert a.config == b.config
        assert a.optimizer.keys() == b.optimizer.keys() and len(a.optimizer) == 3 * 28
        assert all(torch.equal(a.optimizer[k], b.optimizer[k]) for k in a.optimizer)
        assert a.scheduler == b.scheduler
        assert torch.equal(a.random["torch"], b.random["torch"]) and a.random["python"] == b.random["python"]
        assert a.metrics == b.metrics

    return check


@pytest.fixture
def crashed(home) -> Callable[..., tuple[Run, Left]]:
    """Train a recipe to the end, then take its run back to how a crash after checkpoint `at` would have left it.

    Returns the run and what the uninterrupted training left.
    """

    def crash(recipe: Path, at: int) -> tuple[Run, Left]:
        state = train(recipe)
        run = Run.find(state["run_id"])
        straight = _left(run.path)
        shutil.rmtree(run.adapter)
        for path in checkpoint.all_in(run.path):
            if checkpoint.step_of(path) > at:
                shutil.rmtree(path)
        run.update(status="running")
        assert (run.path / f"checkpoint-{at}").is_dir()
        return run, straight

    return crash


@pytest.fixture
def command(home, monkeypatch, capsys):
    """Run `tunesmith ...` in this process: (exit code, stdout, stderr). Importing torch again would take seconds."""

    def run(*arguments: object) -> tuple[int, str, str]:
        from tunesmith.cli.app import main

        monkeypatch.setattr(sys, "argv", ["tunesmith", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
        except SystemExit as end:
            code = end.code
        else:
            code = 0
        return code or 0, *capsys.readouterr()

    return run


class Process:
    """A `tunesmith train` in a process of its own, watched through its files."""

    def __init__(self, home: Path, *arguments: object):
        self.runs = home / "runs"
        self.popen = subprocess.Popen([sys.executable, "-m", "tunesmith", "train", *map(str, arguments), "--json"],
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait_for_step(self, step: int) -> Path:
        """Return the run's directory as soon as metrics.jsonl has a line of `step`."""
        end = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < end:
            assert self.popen.poll() is None, self.popen.communicate()[1]
            for file in self.runs.glob("[!.]*/metrics.jsonl"):
                lines = file.read_text().splitlines(keepends=True)
                if any(line.endswith("\n") and json.loads(line)["step"] >= step and "loss" in line for line in lines):
                    return file.parent
            time.sleep(0.002)
        raise AssertionError(f"no step {step} after {DEADLINE_SECONDS} s")

    def send(self, signum: int) -> tuple[int, str, str]:
        """Signal it and wait: (exit code, stdout, stderr)."""
        self.popen.send_signal(signum)
        out, err = self.popen.communicate(timeout=DEADLINE_SECONDS)
        return self.popen.returncode, out, err


@pytest.fixture
def start(home):
    """Start `tunesmith train ...`; whatever is left of it is ended after the test."""
    started = []

    def begin(*arguments: object) -> Process:
        started.append(Process(home, *arguments))
        return started[-1]

    yield begin
    for process in started:
        process.popen.kill()
        process.popen.communicate()
