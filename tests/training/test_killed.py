"""Trainings that get a SIGKILL at any moment leave nothing half, and resumed they equal the uninterrupted one bit for bit.

pytest -m slow tests/training/test_killed.py        fifty-odd deaths; -s shows each

The moments are drawn from the seed below. What a SIGKILL leaves is what is on the disk, so most of them are file operations:
of the whole life of a run, from making its directory to its last line, and of the writing of checkpoints. Some are times.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tunesmith
from tunesmith.training.killed import WRITE_OPERATIONS, draw_moments
from tunesmith.training.run import all_runs

SEED = 20261122
KEEP_BEST = {"train.eval_every_steps": 2, "train.checkpoint": {"every_steps": 3, "keep": 2, "keep_best": True}}
RECIPES = {"fast": {}, "plain, with dropout": {"method.dropout": 0.1}, "keeps the best": KEEP_BEST}
"""Dropout, so that the random state makes a difference."""
CHECKPOINTS = (3, 6, 9, 12, 14)
FILES = ("adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt",
         "trainer_state.json")


@pytest.fixture
def killing(make_recipe, home, tmp_path) -> Callable[[dict, list], dict]:
    """Run a plan of deaths (tests/training/killing.py) in a process that forks."""

    def run(changes: dict, plan: list[list[dict]]) -> dict:
        recipe, file = make_recipe(**changes), tmp_path / "plan.json"
        file.write_text(json.dumps(plan))
        done = subprocess.run([sys.executable, str(Path(__file__).with_name("killing.py")), str(recipe), str(file)],
                              env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        print(done.stderr)
        return json.loads(done.stdout)

    return run


def draw_deaths(dice: random.Random) -> list[list[dict]]:
    """Eighteen deaths: seven anywhere in a life, four at any time, five in a checkpoint, two between its renames."""
    def in_a_checkpoint() -> dict:
        return {"step": dice.choice(CHECKPOINTS), "checkpoint": dice.randint(2, WRITE_OPERATIONS - 6)}

    return ([[{"operation": round(dice.random(), 3)}] for _ in range(7)]
            + [[{"seconds": round(dice.random(), 3)}] for _ in "1234"]
            + [[in_a_checkpoint()] for _ in "123"]
            + [[in_a_checkpoint() | {"step": 7}, {"damage": dice.choice(FILES)}, {"between": True}] for _ in "12"])


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "seed"), zip(RECIPES.values(), range(SEED, SEED + 3), strict=True), ids=RECIPES)
def test_killed_at_any_moment_and_resumed_it_equals_the_uninterrupted_run(killing, changes, seed):
    """Adapter, optimizer, schedule, random state, the lines of metrics.jsonl and the names of all files."""
    print(f"seed {seed}")
    found = killing(changes, draw_deaths(random.Random(seed)))
    straight = found["straight"]["left"]
    died = [d for trial in found["trials"] for d in trial["died"]]
    assert len(died) == 18 and sum(d["signal"] == 9 for d in died) >= 17  # a time may come too late
    assert sum(d["in_checkpoint"] for d in died) >= 5
    assert sum(any(name.endswith(".old") for name in d["leftovers"]) for d in died) >= 2
    assert len({d["after_step"] for d in died}) >= 5
    for trial in found["trials"]:
        assert trial["left"] == straight, trial["deaths"]
        assert trial["hidden"] == []
    assert not any(name.startswith(".") for name in straight["files"])


@pytest.mark.slow
def test_killed_while_it_is_extended_it_is_extended_or_as_it_was(killing):
    """Resumed without the flag. Before run.json says so it is not extended, and after it is, wholly."""
    dice, whole = random.Random(SEED), {"whole": True}
    early = [{"extend_epochs": 1, "operation": round(0.12 * dice.random(), 3)} for _ in range(8)]
    late = [{"extend_epochs": 1, "operation": round(0.6 * dice.random(), 3)} for _ in range(4)]
    found = killing(KEEP_BEST, [[whole, {"whole": True, "extend_epochs": 1}], *([whole, death] for death in early + late)])
    short, (longer, *killed) = found["straight"]["left"], found["trials"]
    assert (short["result"]["steps"], longer["left"]["result"]["steps"]) == (14, 21)
    assert "adapter-14" in longer["left"]["files"]
    for trial in killed:
        assert trial["left"] in (short, longer["left"]), trial["deaths"]
        assert trial["hidden"] == []
    assert sum(trial["left"] == short for trial in killed) >= 1
    assert sum(trial["died"][-1]["signal"] == 9 and trial["left"] == longer["left"] for trial in killed) >= 6


@pytest.mark.slow
def test_control_one_thing_not_restored_and_the_comparison_says_so(killing):
    """The digests are made to agree, so that resume takes what it finds. Control of the control: damage is passed over."""
    death = {"step": 6, "checkpoint": WRITE_OPERATIONS}
    altered = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")
    found = killing({"method.dropout": 0.1}, [[death, {"alter": f}] for f in altered] + [[death, {"damage": f}] for f in FILES])
    straight = found["straight"]["left"]
    for trial in found["trials"]:
        same = {name for name in straight if trial["left"][name] == straight[name]}
        if "alter" in trial["deaths"][1]:
            assert same == {"files"}, trial["deaths"]
        else:
            assert same == set(straight), trial["deaths"]


@pytest.mark.slow
def test_verify_resume_with_kills_is_identical_and_leaves_no_run(make_recipe, command):
    code, out, err = command("verify", "resume", make_recipe(), "--steps", 6, "--kills", 3, "--json")
    proof = json.loads(out)
    assert (code, proof["identical"], proof["first_difference"], proof["steps"]) == (0, True, None, 6), err
    assert [k.keys() for k in proof["kills"]] == [{"after_step", "in_checkpoint"}] * 3
    assert [k["after_step"] for k in proof["kills"]] == sorted(k["after_step"] for k in proof["kills"])
    assert any(k["in_checkpoint"] for k in proof["kills"])
    assert "drew 3 moments with seed 0" in err
    assert all_runs() == []


def test_without_kills_nobody_is_killed(make_recipe, home):
    assert tunesmith.verify_resume(make_recipe())["kills"] == []


def test_moments_are_those_of_the_seed_in_order_and_every_other_one_in_a_checkpoint():
    moments = draw_moments(20, 8, seed=3)
    assert moments == draw_moments(20, 8, seed=3) != draw_moments(20, 8, seed=4)
    assert [m.step for m in moments] == sorted(m.step for m in moments)
    assert {m.step for m in moments} <= set(range(1, 9))
    assert [m.operation is None for m in moments] == [True, False] * 10
