"""What nothing needs is collected, and nothing else: whatever was done before, every rollback that was possible stays possible.

pytest tests/releases/test_gc.py
"""

import json
import multiprocessing
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import tunesmith
from tunesmith.errors import StoreError, UsageError
from tunesmith.releases.bundle import Release
from tunesmith.releases.channel import stack
from tunesmith.releases.gc import collect
from tunesmith.store.files import held, sha256_tree, write_json


def ids(home: Path, kind: str) -> set[str]:
    root = home / kind
    return {p.name for p in root.iterdir() if not p.name.startswith(".")} if root.is_dir() else set()


def add_run(home: Path, name: str, dataset: str, **state) -> str:
    """The files of a run that say what it needs."""
    write_json(home / "runs" / name / "run.json", {"run_id": name, "dataset_id": dataset, "status": "finished",
                                                   "created": "2026-01-01T00:00:00Z", **state})
    return name


def add_dataset(home: Path, name: str, age: int = 0) -> str:
    path = home / "datasets" / name / "manifest.json"
    write_json(path, {"id": name})
    os.utime(path, (1_700_000_000 - age, 1_700_000_000 - age))
    return name


def gone(done: dict) -> set[str]:
    return {r["id"] for r in done["removed"]}


# ---- one at a time


def test_what_a_release_needs_stays_with_it_and_goes_with_it(project):
    done = project.done
    dataset = json.loads((project.run_dir / "run.json").read_text())["dataset_id"]
    tunesmith.promote(done["release_id"], "production")
    before = sha256_tree(project.home)
    kept = tunesmith.gc(keep=0)
    assert (kept["removed"], kept["bytes"], kept["kept"]) == ([], 0, {"releases": 1, "runs": 1, "datasets": 1})
    assert sha256_tree(project.home) == before
    (project.home / "channels" / "production.json").unlink()
    size = sum(p.stat().st_size for kind in ("releases", "runs", "datasets") for p in (project.home / kind).rglob("*")
               if p.is_file())
    would = tunesmith.gc(keep=0, dry_run=True)
    assert gone(would) == {done["release_id"], done["run_id"], dataset} and would["bytes"] == size
    assert Release.find(done["release_id"]), "a dry run removes nothing"
    assert tunesmith.gc(keep=0) == would | {"dry_run": False}
    assert [ids(project.home, kind) for kind in ("releases", "runs", "datasets")] == [set()] * 3


def test_the_newest_of_each_kind_stay(home):
    for n in range(4):
        add_run(home, f"r-{n}", add_dataset(home, f"ds-{n}", age=100 - n), created=f"2026-01-0{n + 1}T00:00:00Z")
    assert gone(tunesmith.gc(keep=2)) == {"r-0", "r-1", "ds-0", "ds-1"}
    assert gone(tunesmith.gc(keep=2)) == set()
    with pytest.raises(UsageError):
        collect(keep=-1)


def test_a_dataset_stays_for_a_run_though_newer_ones_are_there(home):
    add_run(home, "r-0", add_dataset(home, "ds-old", age=1000))
    for n in range(3):
        add_dataset(home, f"ds-new-{n}")
    assert gone(tunesmith.gc(keep=1)) < {"ds-new-0", "ds-new-1", "ds-new-2"}
    assert "ds-old" in ids(home, "datasets")


@pytest.mark.parametrize("status, stays", [("running", True), ("stopped", True), ("failed", False), ("finished", False)])
def test_a_run_that_can_go_on_stays(home, status, stays):
    add_run(home, "r-0", add_dataset(home, "ds-0"), status=status)
    tunesmith.gc(keep=0)
    assert ids(home, "runs") == ({"r-0"} if stays else set()) and ids(home, "datasets") == ({"ds-0"} if stays else set())


def test_what_a_sweep_or_another_run_names_stays(home):
    for n in range(4):
        add_run(home, f"r-{n}", add_dataset(home, f"ds-{n}"))
    write_json(home / "sweeps" / "s" / "sweep.json", {"rows": [{"run_id": "r-1"}]})
    write_json(home / "runs" / "r-1" / "recipe.resolved.json", {"teacher": f"{home}/runs/r-2/adapter"})
    assert gone(tunesmith.gc(keep=0)) == {"r-0", "r-3", "ds-0", "ds-3"}


def test_a_run_that_somebody_writes_to_stays(home):
    add_run(home, "r-0", add_dataset(home, "ds-0"))
    with held(home / "runs" / "r-0"):
        done = multiprocessing.get_context("spawn").Pool(1).apply(collect, (0,))
    assert gone(done) == {"ds-0"}
    assert gone(tunesmith.gc(keep=0)) == {"r-0"}


def test_an_older_release_of_a_channel_stays_though_it_was_rolled_back_from(project, rebundled):
    """Its name is in the history: somebody may promote it again."""
    a, b, c = project.done["release_id"], rebundled(name="second"), rebundled(name="third")
    tunesmith.promote(a, "production")
    tunesmith.promote(b, "production")
    tunesmith.rollback("production")
    assert gone(tunesmith.gc(keep=0)) == {c}
    assert tunesmith.promote(b, "production")["previous"] == a


def test_a_history_or_a_state_that_cannot_be_read_stops_it_before_anything_goes(project, rebundled):
    rebundled(name="second")
    (project.home / "channels").mkdir(exist_ok=True)
    (project.home / "channels" / "production.json").write_text("{half")
    before = sha256_tree(project.home)
    with pytest.raises(StoreError, match="production.json is not valid JSON"):
        tunesmith.gc(keep=0)
    (project.home / "channels" / "production.json").unlink()
    (project.run_dir / "run.json").write_text("{half")
    with pytest.raises(StoreError, match="run.json is not valid JSON"):
        tunesmith.gc(keep=0)
    after = sha256_tree(project.home)
    assert {n for n in before.keys() | after.keys() if before.get(n) != after.get(n)} == {
        "channels/production.json", f"runs/{project.done['run_id']}/run.json"}, "only what this test itself changed"


def test_what_is_none_of_its_kinds_is_left_alone_and_what_a_killed_process_left_goes(home):
    (home / "releases" / "rel-unfinished").mkdir(parents=True)
    (home / "runs" / "notes").mkdir(parents=True)
    (home / "runs" / ".r-0.abcd1234.old").mkdir()
    (home / "mlflow.db").write_text("x")
    assert tunesmith.gc(keep=0)["removed"] == []
    assert ids(home, "releases") == {"rel-unfinished"} and (home / "mlflow.db").exists()
    assert [p.name for p in (home / "runs").iterdir()] == ["notes"]


def test_the_command_line(project, command):
    would = command("gc", "--keep", "0", "--dry-run", "--json", check=0).json
    assert set(would) == {"removed", "bytes", "kept", "dry_run"} and len(would["removed"]) == 3
    assert set(would["removed"][0]) == {"kind", "id", "bytes"}
    people = command("gc", "--keep", "0", check=0)
    assert project.done["release_id"] in people.stdout and "freed" in people.stdout
    assert command("gc", "--keep", "-1", "--json", check=2).json["exit_code"] == 2


# ---- any sequence


class Channels(RuleBasedStateMachine):
    """Releases are made, moved and collected in any order; a model remembers what was possible."""

    @initialize()
    def begin(self):
        self.patch = pytest.MonkeyPatch()
        self.home = Path(tempfile.mkdtemp())
        self.patch.setenv("TUNESMITH_HOME", str(self.home))
        self.made, self.stacks, self.ever = 0, {}, set()

    def teardown(self):
        if hasattr(self, "home"):
            self.patch.undo()
            shutil.rmtree(self.home)

    def there(self) -> list[str]:
        return sorted(ids(self.home, "releases"))

    @rule()
    def release(self):
        """A small bundle of a run and a dataset of its own: whole, by the code that makes bundles whole."""
        from tunesmith.releases.bundle import FORMAT, _release_id, tree

        self.made += 1
        run, dataset = f"tiny-2026-{self.made}", f"ds-{self.made}"
        at = f"2026-01-{self.made % 28 + 1:02}T00:00:00Z"
        staging = self.home / "making"
        write_json(staging / "recipe.resolved.json", {"track": {"mlflow": None}, "seed": self.made})
        manifest = {"format": FORMAT, "name": "tiny", "created": at, "run_id": run, "dataset_id": dataset, "gates": [],
                    "files": tree(staging)[0]}
        manifest["release_id"] = _release_id(manifest)
        write_json(staging / "manifest.json", manifest)
        (self.home / "releases").mkdir(exist_ok=True)
        staging.rename(self.home / "releases" / manifest["release_id"])
        add_dataset(self.home, dataset, age=1000 - self.made)
        add_run(self.home, run, dataset, release_id=manifest["release_id"], created=at)

    @precondition(lambda self: self.there())
    @rule(data=st.data(), channel=st.sampled_from(["production", "staging"]))
    def promote(self, data, channel):
        one = data.draw(st.sampled_from(self.there()))
        tunesmith.promote(one, channel)
        mine = self.stacks.setdefault(channel, [])
        if not mine or mine[-1] != one:
            mine.append(one)
        self.ever.add(one)

    @precondition(lambda self: any(len(s) > 1 for s in self.stacks.values()))
    @rule(data=st.data())
    def rollback(self, data):
        channel = data.draw(st.sampled_from(sorted(c for c, s in self.stacks.items() if len(s) > 1)))
        self.stacks[channel].pop()
        assert tunesmith.rollback(channel)["release_id"] == self.stacks[channel][-1]

    @rule(keep=st.integers(0, 3))
    def gc(self, keep):
        before = set(self.there())
        collect(keep)
        after = set(self.there())
        assert after >= before & self.ever, "nothing that was ever promoted is gone"
        assert len(after - self.ever) <= max(keep, 0) * 3, "and of the rest, only what is new or belongs to something new"
        if keep == 0:
            assert after == before & self.ever

    @invariant()
    def every_rollback_is_possible_and_every_release_has_its_run_and_dataset(self):
        if not hasattr(self, "home"):
            return
        for channel, expected in self.stacks.items():
            state = json.loads((self.home / "channels" / f"{channel}.json").read_text())
            assert stack(state["history"]) == expected
            for one in expected:
                manifest = Release.find(one).manifest
                assert (self.home / "runs" / manifest["run_id"] / "run.json").is_file()
                assert (self.home / "datasets" / manifest["dataset_id"] / "manifest.json").is_file()


TestChannels = Channels.TestCase
TestChannels.settings = settings(max_examples=8, stateful_step_count=20, deadline=None)
