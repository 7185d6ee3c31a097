"""A channel points at a release, goes back where it came from, and forgets nothing.

pytest tests/releases/test_channel.py
"""

import json
import os
import random
import subprocess
import sys
import time

import pytest

import tunesmith
from tunesmith.errors import NotFoundError, StoreError, UsageError
from tunesmith.releases.bundle import Release
from tunesmith.releases.channel import current


@pytest.fixture
def releases(project, rebundled) -> list[str]:
    """Three releases: the project's, and two that differ in their name."""
    return [project.done["release_id"], rebundled(name="second"), rebundled(name="third")]


def file_of(project, channel):
    return json.loads((project.home / "channels" / f"{channel}.json").read_text())


def test_promote_points_and_says_what_was_there(project, releases):
    a, b, _ = releases
    assert tunesmith.promote(a, "production") == {"channel": "production", "release_id": a, "previous": None}
    assert tunesmith.promote(b[:14], "production", why="better") == {"channel": "production", "release_id": b, "previous": a}
    state = file_of(project, "production")
    assert state["release_id"] == b == current("production")["release_id"]
    moves = [(m["action"], m["release_id"], m["why"]) for m in state["history"]]
    assert moves == [("promote", a, ""), ("promote", b, "better")]
    assert all(m["at"] and m["by"] for m in state["history"])


def test_promoting_the_same_release_again_changes_nothing(project, releases):
    tunesmith.promote(releases[0], "production")
    before = (project.home / "channels" / "production.json").read_bytes()
    assert tunesmith.promote(releases[0], "production") == {"channel": "production", "release_id": releases[0],
                                                            "previous": releases[0]}
    assert (project.home / "channels" / "production.json").read_bytes() == before


def test_rollback_goes_back_step_by_step_until_nothing_is_before(project, releases):
    a, b, c = releases
    for r in (a, b, c):
        tunesmith.promote(r, "production")
    assert tunesmith.rollback("production", why="slow") == {"channel": "production", "release_id": b, "previous": c}
    assert tunesmith.rollback("production") == {"channel": "production", "release_id": a, "previous": b}
    with pytest.raises(NotFoundError, match="nothing to roll back to"):
        tunesmith.rollback("production")
    assert file_of(project, "production")["release_id"] == a
    tunesmith.promote(c, "production")
    assert tunesmith.rollback("production")["release_id"] == a, "not b: the rollback took it off"


def test_going_back_to_an_earlier_release_by_promoting_it_can_itself_be_rolled_back(releases):
    a, b, _ = releases
    for r in (a, b, a):
        tunesmith.promote(r, "production")
    assert [tunesmith.rollback("production")["release_id"] for _ in range(2)] == [b, a]


def test_the_history_only_grows(project, releases):
    a, b, c = releases
    before = []
    for move in (lambda: tunesmith.promote(a, "x"), lambda: tunesmith.promote(b, "x"), lambda: tunesmith.rollback("x"),
                 lambda: tunesmith.promote(c, "x"), lambda: tunesmith.rollback("x")):
        move()
        after = file_of(project, "x")["history"]
        assert after[:-1] == before
        before = after
    assert [m["action"] for m in before] == ["promote", "promote", "rollback", "promote", "rollback"]


def test_channels_are_apart(project, releases):
    tunesmith.promote(releases[0], "production")
    tunesmith.promote(releases[1], "staging")
    assert (current("production")["release_id"], current("staging")["release_id"]) == tuple(releases[:2])


def test_rollback_to_a_bundle_that_was_changed_is_refused_and_moves_nothing(project, releases):
    a, b, _ = releases
    tunesmith.promote(a, "production")
    tunesmith.promote(b, "production")
    (project.home / "releases" / a / "golden.json").write_text("[]")
    with pytest.raises(StoreError, match="golden.json"):
        tunesmith.rollback("production")
    assert file_of(project, "production")["release_id"] == b


def test_an_unknown_channel_or_release_is_named_with_those_there_are(project, releases):
    tunesmith.promote(releases[0], "staging")
    with pytest.raises(NotFoundError, match="no channel 'production'") as raised:
        tunesmith.rollback("production")
    assert "staging" in raised.value.why and raised.value.exit_code == 2
    with pytest.raises(NotFoundError, match="no release 'rel-none'"):
        tunesmith.promote("rel-none", "production")
    assert not (project.home / "channels" / "production.json").exists()


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "Production", "-x", "_x", "x" * 64, "a b", "prod\n", "ü", "x.json"])
def test_names_that_could_be_paths_or_are_hard_to_tell_apart_are_refused(project, releases, name):
    with pytest.raises(UsageError, match="channel name"):
        tunesmith.promote(releases[0], name)
    with pytest.raises(NotFoundError):
        tunesmith.rollback(name)
    assert not (project.home / "channels").exists() and not (project.home.parent / "x.json").exists()


def test_good_names(releases):
    for name in ("production", "a", "0", "blue-2_x", "x" * 63):
        assert tunesmith.promote(releases[0], name)["channel"] == name


def test_a_user_without_a_name_can_promote(project, releases, monkeypatch):
    """Containers run under numbers that no password file knows."""
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    tunesmith.promote(releases[0], "production")
    assert file_of(project, "production")["history"][0]["by"] == "uid 54321"


# ---- who, when, why, and what the gates had said


def test_an_entry_says_who_when_why_and_what_the_gates_and_overrides_were(project, rebundled):
    gates = Release.find(project.done["release_id"]).manifest["gates"]
    gates[0]["verdict"] = "fail"
    override = {"gate": gates[0]["name"], "by": "ada", "reason": "a demo", "verdict": "fail", "message": "m"}
    by_hand = rebundled(gates=gates, overrides=[override])
    tunesmith.promote(project.done["release_id"], "production", by="grace", why="first")
    tunesmith.promote(by_hand, "production", by="ada")
    tunesmith.rollback("production", by="the night shift", why="complaints")
    first, second, third = file_of(project, "production")["history"]
    assert (first["by"], first["why"], first["previous"]) == ("grace", "first", None)
    assert first["verdicts"] == {g["name"]: "pass" for g in gates} and first["overrides"] == [] and first["signed_by"] == []
    assert second["verdicts"][gates[0]["name"]] == "fail"
    assert second["overrides"] == [{"gate": gates[0]["name"], "by": "ada", "reason": "a demo"}]
    assert (third["action"], third["by"], third["previous"], third["verdicts"]) == (
        "rollback", "the night shift", by_hand, first["verdicts"])
    assert all(abs(time.time() - time.mktime(time.strptime(m["at"], "%Y-%m-%dT%H:%M:%SZ")) + time.timezone) < 600
               for m in (first, second, third))


def test_expect_moves_only_from_what_was_seen(project, releases):
    a, b, c = releases
    with pytest.raises(UsageError, match="does not point at"):
        tunesmith.promote(a, "production", expect=b)
    assert not (project.home / "channels").exists()
    tunesmith.promote(a, "production", expect="nothing")
    tunesmith.promote(b, "production", expect=a[:12])
    before = (project.home / "channels" / "production.json").read_bytes()
    for move in (lambda: tunesmith.promote(c, "production", expect=a), lambda: tunesmith.promote(c, "production", expect=""),
                 lambda: tunesmith.promote(c, "production", expect="nothing"),
                 lambda: tunesmith.rollback("production", expect=a)):
        with pytest.raises(UsageError, match=f"it points at {b}") as raised:
            move()
        assert raised.value.exit_code == 2
    assert (project.home / "channels" / "production.json").read_bytes() == before
    assert tunesmith.rollback("production", expect=b)["release_id"] == a


def test_a_release_that_lies_elsewhere_cannot_be_promoted(project, releases, tmp_path):
    """A channel names a release of this home; the server would not find another."""
    path = project.home / "releases" / releases[0]
    path.rename(tmp_path / releases[0])
    with pytest.raises(NotFoundError, match="no release"):
        tunesmith.promote(str(tmp_path / releases[0]), "production")
    assert not (project.home / "channels").exists()


def test_the_command_line_says_by_and_expect(project, releases, command):
    a, b, _ = releases
    done = command("promote", a, "--to", "production", "--by", "ada", "--expect", "nothing", "--json", check=0).json
    assert done == {"channel": "production", "release_id": a, "previous": None}
    assert command("promote", b, "--to", "production", "--expect", b, "--json", check=2).json["error"] == "UsageError"
    assert file_of(project, "production")["history"][0]["by"] == "ada"


# ---- many at once, and the sudden end


MOVER = """
import sys, tunesmith
channel, *ids = sys.argv[1:]
print("ready", flush=True)
for n in range(10_000):
    moved = tunesmith.promote(ids[n % len(ids)], channel, why=str(n))
    print(moved["release_id"], flush=True)
"""


def mover(channel, ids) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", MOVER, channel, *ids], stdout=subprocess.PIPE, text=True)


def test_promotions_at_the_same_time_are_all_recorded(project, releases):
    a, b, c = releases
    code = MOVER.replace("10_000", "12")
    processes = [subprocess.Popen([sys.executable, "-c", code, "production", *ids], stdout=subprocess.PIPE, text=True)
                 for ids in ([a, b], [c, a])]
    for process in processes:
        process.communicate(timeout=120)
        assert process.returncode == 0
    history = file_of(project, "production")["history"]
    previous = None
    for entry in history:
        assert entry["previous"] == previous != entry["release_id"], "each saw what the one before had done"
        previous = entry["release_id"]
    promoted = sorted(int(e["why"]) for e in history)
    assert previous == file_of(project, "production")["release_id"]
    assert len(history) >= 12 and set(promoted) == set(range(12)), "what is missing promoted what was there already"


def test_a_kill_at_any_moment_leaves_a_whole_file_with_every_move_that_was_reported(project, releases):
    rng, acknowledged = random.Random(5), 0
    for _ in range(3):
        process = mover("production", releases)
        assert process.stdout.readline() == "ready\n" and process.stdout.readline().startswith("rel-")
        time.sleep(rng.uniform(0.05, 0.4))
        process.kill()
        acknowledged += 1 + len(process.stdout.read().split())
        process.wait()
        state = file_of(project, "production")
        moves = [m["release_id"] for m in state["history"]]
        assert state["release_id"] == moves[-1]
        assert len(moves) >= acknowledged - 3, "at most the first of each process found its release there already"
    assert acknowledged > 3
    assert tunesmith.promote(releases[1], "other")["release_id"] == releases[1], "the lock went with the processes"
    for path in (project.home / "channels").iterdir():
        assert path.suffix == ".json" or path.name.endswith(".tmp"), path
